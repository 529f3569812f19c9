"""What the command lines of programs that write a record have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from lean.contracts.host import HOST_NAME


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """`--release`, `--host-name` and `--results`."""
    parser.add_argument("--release", type=Path, required=True, help="the release document that a sync left")
    parser.add_argument("--host-name", type=_host_name, required=True, help="the host's name in hosts.yaml")
    parser.add_argument("--results", type=Path, required=True, help="the folder that gets the record")


def _host_name(text: str) -> str:
    if HOST_NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"expected letters, digits, '.', '_' and '-', got {text!r}")
    return text
