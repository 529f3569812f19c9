"""`python -m lean.costs start | decode | clients | records | soak`: one JSON document, every raw sample."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lean.cli import ProgramParser, run_program
from lean.contracts import to_data
from lean.costs.clients import clients_cost
from lean.costs.decode import decode_cost
from lean.costs.records import make_records
from lean.costs.soak import soak_cost
from lean.costs.start import start_cost


def _parser() -> ProgramParser:
    parser = ProgramParser(prog="python -m lean.costs", description="What serving itself costs.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("start", help="time and memory to a first token, beside a bare import of torch")
    decode = verbs.add_parser("decode", help="CPU decode beside transformers' generate")
    decode.add_argument("--checkpoint", required=True, type=Path)
    decode.add_argument("--peer", required=True, type=Path, help="a Python with torch and transformers")
    decode.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    decode.add_argument("--prompt", type=int, default=64, help="tokens")
    decode.add_argument("--new", type=int, default=256, help="tokens")
    records = verbs.add_parser("records", help="a folder of many run records, for timing what reads it")
    records.add_argument("--like", required=True, type=Path, help="a run directory that each one is made of")
    records.add_argument("--out", required=True, type=Path, help="a new folder")
    records.add_argument("--count", type=int, default=10_000)
    records.set_defaults(run=make_records)
    soak = verbs.add_parser("soak", help="reading and judging the rows of a long soak")
    soak.add_argument("--turns", type=int, default=1_000, help="of each of four arms' five replays")
    soak.add_argument("--gaps", type=int, default=48, help="between the tokens of a turn")
    soak.add_argument("--rounds", type=int, default=5)
    soak.set_defaults(run=soak_cost)
    clients = verbs.add_parser("clients", help="our measuring client beside llama-benchy, on one service")
    clients.add_argument("--benchy", required=True, type=Path, help="the program llama-benchy")
    clients.add_argument("--prompt", type=int, default=512, help="tokens")
    clients.add_argument("--new", type=int, default=256, help="tokens")
    clients.add_argument("--pace-ms", type=float, help="a service without a model, at so many ms a token")
    for verb, run in ((start, start_cost), (decode, decode_cost), (clients, clients_cost)):
        verb.set_defaults(run=run)
        verb.add_argument("--pack", required=True, type=Path)
        verb.add_argument("--rounds", type=int, default=5)
        verb.add_argument("--threads", type=int, default=1)
    return parser


def main(argv: list[str]) -> dict[str, Any]:
    """Measure; the result is what `run_program` prints."""
    options = vars(_parser().parse_args(argv))
    del options["verb"]
    return dict(to_data(options.pop("run")(**options)))


if __name__ == "__main__":
    sys.exit(run_program(main))
