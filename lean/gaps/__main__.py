"""`python -m lean.gaps --root DIR`: one JSON document of what a checkout does not have yet."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.gaps.find import KINDS, find_gaps


def main(argv: list[str]) -> dict[str, Any]:
    """Errors: `ContractError` for a contract or a profile that cannot be read."""
    parser = ProgramParser(prog="python -m lean.gaps", description="What a checkout does not have yet.")
    parser.add_argument("--root", type=Path, required=True, help="a checkout")
    parser.add_argument("--index", type=Path, help="a folder for what is remembered of unchanged records")
    options = parser.parse_args(argv)
    gaps = find_gaps(options.root, options.index)
    counts = Counter(gap.kind for gap in gaps)
    return {"gaps": [asdict(gap) for gap in gaps], "counts": {kind: counts[kind] for kind in KINDS}}


if __name__ == "__main__":
    sys.exit(run_program(main))
