"""The soak records of the results folder: found by their names, and only the one that is shown is read."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.bench.results import VERSION
from lean.errors import NotReadyError
from lean.soak.record import DOCUMENT, KIND, PAGE, SUMS
from lean.strict_json import parse_object
from remote.ui.history import NAME, PICTURE, epoch, plain_folder, readable_file
from remote.ui.loose import count, figure, figures, mapping, objects, texts, words

LISTED = 200  # names of records at once, the newest
TRIED = 20  # records read for one that can be read
_BYTES = 32 << 20
_ID = re.compile(r"\d{8}T\d{6}(?:\.\d+)?Z-(?P<plan>.+)-[0-9a-f]{7}(?:-dirty)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A record that is not shown, and why."""

    id: str
    problem: str


class Soaks:
    """What the results folder `root` holds of soaks."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def newest(self, host: str, plan: str, wanted: str | None = None) -> dict[str, Any]:
        """The names of a host's records of a plan, the newest first, and the newest that can be read in full.

        `wanted`: that record instead. Newer ones that cannot be read are in `broken`.
        Errors: `NotReadyError` when there is no record of the wanted name.
        """
        return await asyncio.to_thread(self._newest, host, plan, wanted)

    def _newest(self, host: str, plan: str, wanted: str | None) -> dict[str, Any]:
        known = self._records(host, plan)
        if wanted is not None and wanted not in known:
            raise NotReadyError(f"no record {wanted[:80]!r} of the plan {plan} on {host}")
        record, broken = None, []
        for name in known[:TRIED] if wanted is None else [wanted]:
            try:
                record = read_soak(self._root / VERSION / host / KIND / name, host, plan)
                break
            except ValueError as error:
                broken.append(Broken(id=name, problem=f"{host}/{KIND}/{name}/{DOCUMENT}: {error}"))
        return {
            "host": host,
            "plan": plan,
            "records": [{"id": name, "epoch": epoch(name)} for name in known[:LISTED]],
            "total": len(known),
            "record": record,
            "broken": [{"id": one.id, "problem": one.problem} for one in broken],
        }

    def _records(self, host: str, plan: str) -> list[str]:
        """The names of the plan's records, the newest first; links and unfinished ones are none."""
        folder = self._root / VERSION
        for part in (host, KIND):
            folder = folder / part
            if not plain_folder(folder):
                return []
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        found = ((name, _ID.fullmatch(name)) for name in names if NAME.fullmatch(name))
        return sorted((name for name, fits in found if fits and fits["plan"] == plan), reverse=True)


def read_soak(folder: Path, host: str, plan: str) -> dict[str, Any]:
    """A record as the page shows it. Parts that lack are None or empty.

    Errors: `ValueError` for a file that is no record, is another one's, or is not the one that was written.
    """
    data = _unaltered(folder)
    document = parse_object(data)
    said = (words(document.get("host")), words(mapping(document.get("plan")).get("id")))
    if words(document.get("id")) != folder.name or said != (host, plan):
        raise ValueError(
            f"it says it is {words(document.get('id')) or 'no record'} of {said[1] or 'no plan'} "
            f"on {said[0] or 'no host'}"
        )
    release = mapping(document.get("release"))
    pictures = sorted(name for name in os.listdir(folder) if PICTURE.fullmatch(name))
    return {
        "id": folder.name,
        "epoch": epoch(folder.name),
        "complete": document.get("complete") is True,
        "why_not": texts(document.get("why_not")),
        "cut": len(texts(document.get("incomplete"))),
        "started": words(document.get("started_utc")),
        "finished": words(document.get("finished_utc")),
        "release": words(release.get("git_sha"))[:7] + (" with changes" if release.get("dirty") else ""),
        "pack": words(document.get("pack_lock"))[:8],
        "pictures": [name for name in pictures if readable_file(folder / name)],
        "report": readable_file(folder / PAGE),
        "arms": judged_arms(document),
    }


def judged_arms(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each arm of the plan with its verdict and its numbers, of a record or of a soak that is under way.

    Times in seconds. Where a verdict or a summary lacks, so do its fields.
    """
    plan = mapping(document.get("plan"))
    verdicts = {words(one.get("arm")): one for one in objects(document.get("verdicts"))}
    summaries = {words(one.get("name")): one for one in objects(document.get("summaries"))}
    found = []
    for arm in objects(plan.get("arms")):
        name = words(arm.get("name"))
        verdict, summary = verdicts.get(name, {}), summaries.get(name, {})
        found.append(
            {
                "name": name,
                "baseline": name == words(plan.get("baseline")),
                "control": words(arm.get("control")) or None,
                "verdict": words(verdict.get("verdict")),
                "rule": words(verdict.get("rule")),
                "why": words(verdict.get("why")),
                "also": texts(verdict.get("also")),
                "not_run": words(summary.get("not_run")),
                "score": figure(summary.get("score")),
                "tasks": count(summary.get("tasks")) or None,
                "wall": figures(summary.get("wall"), "mean", "sd", "n"),
                "change": figures(summary.get("change"), "relative", "low", "high"),
                "tpot": figures(summary.get("tpot"), "p50", "p95", "p99"),
            }
        )
    return found


def _unaltered(folder: Path) -> bytes:
    """The bytes of soak.json. Errors: `ValueError` when they cannot be had, or are not those written."""
    file = folder / DOCUMENT
    if not readable_file(file, _BYTES):
        raise ValueError("it is not there, or no file of a record's size")
    try:
        data = file.read_bytes()
        sums = (folder / SUMS).read_text("ascii") if readable_file(folder / SUMS) else ""
    except (OSError, UnicodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    written = re.search(rf"^([0-9a-f]{{64}}) [ *]{re.escape(DOCUMENT)}$", sums, re.MULTILINE)
    if written is None:
        raise ValueError(f"{SUMS} does not name it")
    if hashlib.sha256(data).hexdigest() != written[1]:
        raise ValueError("it was changed since it was written; its verdicts are not shown")
    return data
