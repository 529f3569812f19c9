"""Which candidates win, and what the tuning file says of them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.errors import IntegrityError
from lean.toolchain.tune.plan import Candidate, Key, key_of

GAIN = 0.01  # of the current choice's time that another one must save: less is chance
Times = Mapping[str, float]  # microseconds of the candidates that passed, by digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The winner for one entry; `replaces` is the current choice where another one won."""

    winner: Candidate
    us: float
    replaces: Candidate | None
    replaced_us: float | None


def choose(
    families: Mapping[Key, Sequence[Candidate]], times: Times, kept: Collection[Key] = ()
) -> dict[Key, Choice]:
    """The winner for each entry that has one.

    The fastest wins; the current choice stays unless the fastest saves `GAIN` of its time, and of equals the
    first. Kernels that are tied take the value with the least time together; one of them that has no
    candidate of a value rules it out. A current choice that is wrong gives way to any that passed. What is
    `kept` has no new choice, and those tied to it keep what they share.
    """
    chosen: dict[Key, Choice] = {}
    for tied in _ties(families):
        bound = {tied[key][0].tie for key in tied if key in kept}
        free = {
            key: tuple(c for c in family if c.current or not bound or c.tie in bound)
            for key, family in tied.items()
            if key not in kept
        }
        chosen |= _together(free, times)
    return chosen


def _ties(families: Mapping[Key, Sequence[Candidate]]) -> Iterable[dict[Key, Sequence[Candidate]]]:
    """Families by what ties them; most stand alone."""
    groups: dict[Any, dict[Key, Sequence[Candidate]]] = {}
    for key, family in families.items():
        names = {candidate.tie[0] for candidate in family if candidate.tie}
        groups.setdefault(names.pop() if names else key, {})[key] = family
    return groups.values()


def _together(families: Mapping[Key, Sequence[Candidate]], times: Times) -> dict[Key, Choice]:
    values = dict.fromkeys(c.tie[1] if c.tie else None for family in families.values() for c in family)
    best: dict[Any, dict[Key, Candidate]] = {}
    for value in values:
        picked = {}
        for key, family in families.items():
            fit = [c for c in family if (c.tie[1] if c.tie else None) == value and c.digest in times]
            if fit:
                picked[key] = _fastest(fit, times)
        if len(picked) == len(families):
            best[value] = picked
    if not best:
        return {}
    current = {key: next(c for c in family if c.current) for key, family in families.items()}
    now = {c.tie[1] if c.tie else None for c in current.values()}
    stays = now.pop() if len(now) == 1 else None

    def total(value: Any) -> float:
        return sum(times[c.digest] for c in best[value].values())

    fastest = min(best, key=total)
    if stays in best and total(fastest) > (1 - GAIN) * total(stays):
        fastest = stays
    return {key: _choice(winner, current[key], times) for key, winner in best[fastest].items()}


def _fastest(family: Sequence[Candidate], times: Times) -> Candidate:
    winner = min(family, key=lambda candidate: times[candidate.digest])
    now = next((candidate for candidate in family if candidate.current), None)
    if now is not None and times[winner.digest] > (1 - GAIN) * times[now.digest]:
        return now
    return winner


def _choice(winner: Candidate, current: Candidate, times: Times) -> Choice:
    us = times[winner.digest]
    if winner.current:
        return Choice(winner=winner, us=us, replaces=None, replaced_us=None)
    return Choice(winner=winner, us=us, replaces=current, replaced_us=times.get(current.digest))


def entry_of(choice: Choice, *, samples: int, date: str, driver: str | None, gpu: str) -> dict[str, Any]:
    """A winner as the tuning file has it."""
    path, kernel, rows, reduction = choice.winner.key
    replaced = None
    if choice.replaces is not None:
        replaced = {"tile": choice.replaces.tile, "us": choice.replaced_us}
    return {
        "path": path,
        "kernel": kernel,
        "shape": [int(rows), int(reduction)],
        "tile": choice.winner.tile,
        "basis": "measured",
        "us": choice.us,
        "replaced": replaced,
        "samples": samples,
        "date": date,
        "driver": driver,
        "gpu": gpu,
    }


def merged(tuning: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tuning file with these entries in the place of theirs; all others stay as they are, in order."""
    new = {key_of(entry): dict(entry) for entry in entries}
    tiles = [new.pop(key_of(entry), dict(entry)) for entry in tuning["tiles"]]
    return {**tuning, "tiles": [*tiles, *new.values()]}


def write_tuning(path: Path, tuning: Mapping[str, Any]) -> None:
    """Write a tuning file whole, in the place of the one that is there."""
    staged = path.with_name(f".{path.name}.partial")
    staged.write_text(json.dumps(tuning, indent=1) + "\n", encoding="utf-8")
    os.replace(staged, path)


def check_replaces(tuning: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], where: str) -> None:
    """Errors: `IntegrityError` when the tuning file has another choice than the one that was measured."""
    now = {key_of(entry): entry["tile"] for entry in tuning["tiles"]}
    for entry in entries:
        before = entry["replaced"]["tile"] if entry["replaced"] else entry["tile"]
        found = now.get(key_of(entry))
        if found is not None and found not in (before, entry["tile"]):
            name = f"{entry['path']} {entry['kernel']} {entry['shape']}"
            raise IntegrityError(
                f"{where}: {name} is {found} now, not the {before} that was measured; tune again"
            )
