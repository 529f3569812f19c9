"""The verb `portability` of `python -m lean.toolchain`: arguments, and what they run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lean.toolchain.arguments import add_workers, missing_package_named, names, say, seconds


def add_portability(verbs: Any) -> None:
    """`portability`."""
    verb = verbs.add_parser("portability", help="compile a geometry's kernels for many chips")
    sizes = "a geometry: tiny, 0.6b, 1.7b or 4b, with +ENCODING for its encoded kernels"
    verb.add_argument("--sizes", default="4b", help=sizes)
    verb.add_argument("--target", default="all", help="chips, comma-separated, or all of them")
    verb.add_argument("--cache", type=Path, help="folder of what was compiled before; none by default")
    add_workers(verb)
    verb.add_argument("--limit-s", type=seconds, default=120.0, help="seconds that one compile may take")
    verb.set_defaults(run=_portability)


def _portability(options: argparse.Namespace) -> dict[str, Any]:
    with missing_package_named():
        from lean.toolchain.portability.matrix import TARGETS, Options, portability
    wanted = Options(
        sizes=options.sizes,
        targets=TARGETS if options.target == "all" else names(options.target),
        cache=options.cache,
        workers=options.workers,
        seconds=options.limit_s,
    )
    return portability(wanted, say)
