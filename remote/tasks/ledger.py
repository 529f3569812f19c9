"""The ledger of iterations: what each cost, and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Collection

from lean.errors import UsageError
from remote.console import Console
from remote.tasks.verb import verb, whole_number

if TYPE_CHECKING:
    from lean.ledger import Lines

LEDGER = "results/ledger.jsonl"


@verb(
    contract="the contract that was worked on",
    prompt_tokens="tokens read by the agent",
    response_tokens="tokens written by it",
    first_correct_s="seconds until the first correct output; left out when there was none",
    parity="passed or failed: whether the output agrees with the reference",
    range="commits whose lines count by layer, such as main..HEAD",
    note="a few words",
    ledger="the ledger's file",
)
def add(
    console: Console,
    contract: str,
    prompt_tokens: str,
    response_tokens: str,
    parity: str,
    first_correct_s: str | None = None,
    range: str | None = None,
    note: str = "",
    ledger: str = LEDGER,
) -> None:
    """Append one iteration: tokens in and out, time to the first correct output, parity, lines by layer."""
    from lean.contracts import known_contract, to_data
    from lean.ledger import append_entry, lines_changed, new_entry
    from remote.paths import REPOSITORY

    entry = new_entry(
        contract=known_contract(contract).id,
        prompt_tokens=whole_number("--prompt-tokens", prompt_tokens),
        response_tokens=whole_number("--response-tokens", response_tokens),
        first_correct_s=_seconds(first_correct_s),
        parity=parity,
        lines=lines_changed(REPOSITORY, range) if range else None,
        note=note,
    )
    append_entry(Path(ledger), entry)
    console.result({"entry": to_data(entry), "ledger": ledger})


@verb(contract="only this contract", ledger="the ledger's file")
def report(console: Console, contract: str | None = None, ledger: str = LEDGER) -> None:
    """Total the ledger by contract; a line that cannot be read is named and hides no other."""
    from lean.ledger import read_ledger, totals

    found = read_ledger(Path(ledger))
    entries = [entry for entry in found.entries if contract in (None, entry.contract)]
    rows = totals(entries)

    def show() -> None:
        columns = ("contract", "iterations", "passed", "prompt", "response", "tokens", "first correct s")
        cells = [
            (t.contract, t.iterations, t.passed, t.prompt_tokens, t.response_tokens, t.tokens,
             "-" if t.fastest_correct_s is None else f"{t.fastest_correct_s:g}",
             *map(_lines, (t.kernels, t.runtime, t.control_plane, t.other)), t.uncounted)
            for t in rows
        ]  # fmt: skip
        layers = ("kernels", "runtime", "control plane", "other", "uncounted")
        console.table((*columns, *layers), cells)
        for bad in found.bad:
            console.problem(bad.problem)

    document = {"contracts": [asdict(t) | {"tokens": t.tokens} for t in rows]}
    console.result(
        document | {"entries": len(entries), "bad": [asdict(bad) for bad in found.bad], "ledger": ledger},
        show,
    )


def _lines(lines: Lines) -> str:
    return f"+{lines.added} -{lines.deleted}"


def _seconds(given: str | None) -> float | None:
    try:
        return None if given is None else float(given)
    except ValueError:
        raise UsageError(f"--first-correct-s {given!r}: expected a number of seconds") from None


namespace = Collection("ledger", add, report)
