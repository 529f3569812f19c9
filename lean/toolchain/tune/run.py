"""The search for tiles on the GPU that is here: candidates compiled ahead, checked, then timed, one by one.

Each runs in a worker with a deadline: one that hangs or crashes is recorded with its reason, and the search
goes on. A journal holds every candidate that was tried, so a search that was stopped goes on where it was;
one that was lost, or failed for want of memory, has not been tried, and the next search takes it again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lean.bench.host_state import read_host_state
from lean.errors import GateError, error_document
from lean.host_facts import host_facts
from lean.toolchain.arguments import SEED
from lean.toolchain.chip.pace import Pace
from lean.toolchain.probe import run_folder
from lean.toolchain.sources import timing_sources
from lean.toolchain.speed.contract_shapes import ContractShapes
from lean.toolchain.speed.steadiness import Read, clocks_document, verdict
from lean.toolchain.tune.choice import Choice, choose, entry_of, merged
from lean.toolchain.tune.compile import Entries, compile_plan, kernel_sources, read_plan
from lean.toolchain.tune.job import Run
from lean.toolchain.tune.journal import Journal
from lean.toolchain.tune.plan import Candidate, Key, Plan, kernel_of, make_plan, read_tuning
from lean.toolchain.tune.search import UNSETTLED, Search, proven

SCHEMA = "tune/v1"
DOCUMENT = "tune.json"
JOURNAL = "journal-{contract}-{target}.jsonl"
ABOUT = (
    "Tile choices tried on this GPU. Each candidate passed its case against FP64 before it was timed, in a "
    "graph with programmatic dependent launch, over weights that rotate past the caches; status: passed, "
    "wrong (its case failed), failed (the driver's or torch's words), lost (it hung or crashed), refused (it "
    "does not compile, or spills). A kernel whose current choice failed or was lost keeps it: `kept` says "
    "why, for there is nothing to measure another one against. The current choice and the fastest few of "
    "each kernel then passed all of their cases; one that did not is out. Those that were left were timed "
    "again, one behind the other and every other time backwards, and the median of these `turns_us` decides. "
    "us are microseconds of one launch; `entries` are the winners as the tuning file has them, `replaced` "
    "the choice before and its time in the same turns. A winner saves 1 % at least; kernels that must share "
    "a number take the value that is best for all of them."
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to search. `only`: patterns of kernel names, all by default. `kernels`: candidates from elsewhere.

    `seconds`: the limit of one candidate. `workers`: compiles at a time; one candidate is timed at a time.
    """

    out: Path
    only: tuple[str, ...] = ()
    kernels: Path | None = None
    workers: int = 2
    seconds: float = 20.0
    seed: int = SEED
    pace: Pace = field(default_factory=lambda: Pace(samples=7, seconds=0.008))


def tune(
    options: Options,
    shapes: ContractShapes,
    gpu: Mapping[str, Any],
    say: Say,
    *,
    tuning: Mapping[str, Any] | None = None,
    run: Run | None = None,
    compile_plan: Callable[..., Entries] = compile_plan,
    read_state: Read = read_host_state,
) -> dict[str, Any]:
    """Search. Returns the document, in `<out>/<run>/tune.json` beside the new tuning file `<sm>.json`.

    One with an `error` has a kernel with no candidate that passed, or ran on a machine that was throttled: it
    chooses nothing then, and its journal is put aside. Errors: `UsageError` for unknown kernels
    or another chip's candidates; `IntegrityError` for candidates of other sources or a bad tuning file.
    """
    start, started = time.monotonic(), datetime.now(UTC)
    target = str(gpu["sm"])
    tuning = tuning or read_tuning(target)
    if run is None:
        from lean.toolchain.tune.candidate import run_candidate

        run = run_candidate
    plan = make_plan(shapes, target, options.only, tuning)
    if options.kernels is not None:
        folder = options.kernels
        built, _ = read_plan(plan, folder)
    else:
        folder = options.out / "candidates" / f"{shapes.id}-{target}"
        built = compile_plan(plan, shapes, folder, say, workers=options.workers)
    asked = _asked(options, shapes, gpu)
    journal_file = options.out / JOURNAL.format(contract=shapes.id, target=target)
    before = read_state()
    with Journal(journal_file, {"schema": f"{SCHEMA}-journal"} | asked) as journal:
        search = Search(
            plan=plan,
            shapes=shapes,
            folder=folder,
            built=built,
            journal=journal,
            run=run,
            seconds=options.seconds,
            seed=options.seed,
            pace=options.pace,
            say=say,
        )
        found = _searched(search)
    clocks = clocks_document(before, read_state())
    if clocks["throttled"]:  # no time in it counts
        os.replace(journal_file, journal_file.with_name(f"{journal_file.name}.old"))
    choices = choose(plan.candidates, found.times, found.kept)
    entries = [
        entry_of(
            choice,
            samples=options.pace.samples,
            date=started.date().isoformat(),
            driver=gpu.get("driver_release"),
            gpu=str(gpu["name"]),
        )
        for choice in choices.values()
        if choice.winner.tile is not None and not clocks["throttled"]
    ]
    with run_folder(options.out, started) as (name, results_folder):
        document = {
            "schema": SCHEMA,
            "about": ABOUT,
            "run": name,
            "started": started.isoformat(timespec="seconds"),
            "contract": {"id": shapes.id, "file": shapes.file, "encoding": shapes.encoding},
            "target": target,
            "gpu": dict(gpu),
            "host": host_facts(),
            "sources": asked["sources"] | {shapes.file: shapes.sha256},
            "seed": options.seed,
            "pace": asked["pace"],
            "only": list(options.only),
            "whole": True,
            "entries": entries,
            "kernels": [
                _kernel(key, family, found.results, choices.get(key)) | {"kept": found.kept.get(key)}
                for key, family in plan.candidates.items()
            ],
            "no_kernel": [{"candidate": label, "reason": why} for label, why in plan.left_out],
            "seconds": round(time.monotonic() - start, 3),
            **clocks,
        }
        document |= verdict(_verdict(plan, choices, found), clocks["throttled"])
        results_folder.write(".", DOCUMENT, _text(document))
        results_folder.write(".", f"{target}.json", _text(merged(tuning, entries)))
    changed = sum(choice.replaces is not None for choice in choices.values())
    passed = sum(result["status"] == "passed" for result in found.results.values())
    say(f"{passed} of {len(found.results)} candidates passed; {changed} of {len(choices)} choices changed")
    return document


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """By a candidate's digest its result and the microseconds that count; why a kernel keeps its choice."""

    results: Entries
    times: Mapping[str, float]
    kept: Mapping[Key, str]


def _searched(search: Search) -> _Found:
    """Every round of it."""
    tried = search.try_all()
    times = {digest: float(r["median_us"]) for digest, r in tried.items() if r["status"] == "passed"}
    proofs, left = proven(search, times)
    turns = search.time_in_turns([few for few in left if len(few) > 1])
    results = {
        c.digest: tried.get(c.digest) or _untried(search.built.get(c.digest)) for c in search.plan.all()
    }
    results |= {d: results[d] | proof for d, proof in proofs.items() if proof["status"] != "passed"}
    results |= {d: results[d] | turn for d, turn in turns.items()}
    kept = {
        key: f"the current choice {current['status']}: {current['reason']}"
        for key, family in search.plan.candidates.items()
        if (current := results[family[0].digest])["status"] in UNSETTLED
    }
    return _Found(
        results=results,
        times={c.digest: us for few in left for c in few if (us := _us(results[c.digest])) is not None},
        kept=kept,
    )


def _asked(options: Options, shapes: ContractShapes, gpu: Mapping[str, Any]) -> dict[str, Any]:
    """All that a candidate's result depends on; the journal of another such search is not this one's."""
    target = str(gpu["sm"])
    return {
        "contract": shapes.id,
        "profile": shapes.sha256,
        "target": target,
        "gpu": gpu["name"],
        "driver": gpu.get("driver_release"),
        "sources": kernel_sources(target) | timing_sources(),
        "seed": options.seed,
        "pace": asdict(options.pace),
    }


def _untried(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"status": "refused", "reason": "the folder does not hold it; compile again with these tiles"}
    return dict(entry)


def _us(result: Mapping[str, Any]) -> float | None:
    """Microseconds that count: the median of its turns, of a candidate without any that of its one time."""
    if result["status"] != "passed":
        return None
    return float(median(result["turns_us"]) if "turns_us" in result else result["median_us"])


def _kernel(
    key: Key, family: tuple[Candidate, ...], results: Entries, choice: Choice | None
) -> dict[str, Any]:
    """One kernel's candidates with what became of each."""
    path, _, rows, reduction = key
    left_out = ("key", "candidate", "sha256")
    return {
        "kernel": kernel_of(key),
        "path": path,
        "shape": [int(rows), int(reduction)],
        "winner": None if choice is None else choice.winner.tile,
        "us": None if choice is None else choice.us,
        "before_us": _us(results[family[0].digest]),
        "changed": choice is not None and choice.replaces is not None,
        "candidates": [
            {"tile": c.tile, "current": c.current}
            | {name: value for name, value in results[c.digest].items() if name not in left_out}
            for c in family
        ],
    }


def _verdict(plan: Plan, choices: Mapping[Key, Choice], found: _Found) -> dict[str, Any]:
    without = [
        kernel_of(key)
        for key, family in plan.candidates.items()
        if key not in choices and not (key in found.kept and any(c.digest in found.times for c in family))
    ]
    if not without:
        return {"status": "passed"}
    error = GateError(f"no candidate passed for {', '.join(without)}; `candidates` has each one's reason")
    return {"status": "failed", **error_document(error)}


def _text(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
