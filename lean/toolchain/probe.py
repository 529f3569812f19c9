"""What a verify run leaves behind: `probe.json` and the artefacts of each stage, in one directory per run."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from lean.errors import PreflightError

SCHEMA = "toolchain-probe/v1"
FOLDERS = ("01_bytecode", "02_tileir", "03_cubin", "04_sass", "logs")
ABOUT = (
    "Proof that this machine turns a cuTile kernel written in Python into machine code, stage by stage: the "
    "Python front end writes TileIR bytecode (01), tileirdisasm prints that bytecode as text (02), tileiras "
    "compiles it into a cubin (03), nvdisasm prints the cubin's machine code (04); where a GPU is at hand, "
    "the same cubin is launched through the CUDA driver and its output, poisoned with NaN before, is "
    "compared with the sum in float64 (05). Each stage reads the file of the stage before. Paths are "
    "relative to this file, sizes are bytes, times are seconds, hashes are SHA-256 of the file; `sources` "
    "are the project's own files that the run covers. status: passed = all stages and the GPU; compile-only "
    "= all stages, no GPU run (see gpu.reason); failed = see error."
)


class RunFolder:
    """The directory of one run; it takes its final name only when everything is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for folder in FOLDERS:
            (path / folder).mkdir()

    def write(self, folder: str, name: str, data: bytes) -> dict[str, Any]:
        """Write one artefact. Returns its `file`, `bytes` and `sha256`."""
        target = self.path / folder / name
        target.write_bytes(data)
        return {"file": f"{folder}/{name}", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def log(self, name: str, text: str) -> str:
        """Write one log. Returns its relative path."""
        (self.path / "logs" / name).write_text(text, encoding="utf-8")
        return f"logs/{name}"

    def write_probe(self, document: dict[str, Any]) -> None:
        """Write `probe.json`."""
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        (self.path / "probe.json").write_text(text, encoding="utf-8")


@contextmanager
def run_folder(out: Path, started: datetime) -> Iterator[tuple[str, RunFolder]]:
    """A new `<UTC>` directory under `out`, with the name it will have. It appears whole, or not at all.

    Errors: `PreflightError` when `out` cannot be written: no such parent, no permission, no space.
    """
    try:
        staged, name = _reserve(out, started)
        try:
            yield name, RunFolder(staged)
            os.rename(staged, out / name)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    except OSError as error:
        where = error.filename or out
        raise PreflightError(f"{where}: {error.strerror}; give a writable --out with a few MB free") from None


def _reserve(out: Path, started: datetime) -> tuple[Path, str]:
    out.mkdir(parents=True, exist_ok=True)
    stamp = started.strftime("%Y%m%dT%H%M%SZ")
    for number in itertools.count(1):
        name = stamp if number == 1 else f"{stamp}-{number}"
        staged = out / f".{name}.partial"
        if not (out / name).exists():
            try:
                staged.mkdir()
            except FileExistsError:
                continue
            return staged, name
    raise AssertionError("unreachable: the count above does not end")
