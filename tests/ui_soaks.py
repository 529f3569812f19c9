"""Soak records as `lean.soak` leaves them, without a soak."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63"
    "f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)
ARMS: tuple[dict[str, Any], ...] = (
    {"name": "whole", "engine": "leanserve", "control": None},
    {"name": "twin", "engine": "leanserve", "control": None},
    {"name": "split4", "engine": "leanserve", "control": None, "split_k": 4},
    {"name": "damaged", "engine": "leanserve", "control": "weights"},
)
LINES = (
    "soak 20261121T100000.000Z-quick: 4 arms, quality, conversations, long_decode, concurrent",
    "arm whole: its phases are done",
    "arm twin: starting its engine",
    "arm twin: quality, replay 1 of 1",
    "arm twin: quality, 1 of 1 replays done",
    "arm twin: conversations, replay 2 of 5, about 14 min left",
    "arm twin: conversations, 2 of 5 replays done",
    "arm twin: conversations, replay 3 of 5, about 12 min left",
)
VERDICTS: tuple[dict[str, Any], ...] = (
    {
        "arm": "whole",
        "verdict": "baseline",
        "rule": "the baseline",
        "why": "the others are judged against it",
        "also": [],
    },
    {
        "arm": "twin",
        "verdict": "keep opt-in",
        "rule": "none of the others",
        "why": "its wall is 0.11 % longer than the baseline's, within the 2.00 % that are accepted",
        "also": [],
    },
    {
        "arm": "split4",
        "verdict": "default candidate",
        "rule": "wall gain",
        "why": "its wall is 6.30 % shorter than the baseline's, and its p95 of TPOT is no worse: "
        "4.63 ms, and the baseline's with its spread is 5.02 ms",
        "also": [],
    },
    {
        "arm": "damaged",
        "verdict": "investigate",
        "rule": "score under the floor",
        "why": "11 of 50 tasks are right, under the floor of 30",
        "also": ["investigate: its wall is 3.40 % longer than the baseline's, over the 2.00 % accepted"],
    },
)
_NUMBERS = {
    "whole": (47, 10.02, 4.95),
    "twin": (47, 10.031, 4.97),
    "split4": (48, 9.389, 4.63),
    "damaged": (11, 10.36, 5.11),
}


def summary(name: str) -> dict[str, Any]:
    """An arm in numbers."""
    score, wall, p95 = _NUMBERS[name]
    relative = wall / 10.02 - 1
    return {
        "name": name,
        "score": score,
        "tasks": 50,
        "wall": {"mean": wall, "sd": 0.031, "n": 5, "samples": [wall] * 5},
        "change": {"relative": relative, "low": relative - 0.005, "high": relative + 0.005},
        "tpot": {"p50": p95 * 0.9e-3, "p95": p95 * 1e-3, "p99": p95 * 1.1e-3, "n": 1000},
        "not_run": None,
        "passes": [["regions", "done" if name == "split4" else "the engine left no regions.jsonl"]],
    }


def document(record: str, host: str = "loopback", plan: str = "quick", **changes: Any) -> dict[str, Any]:
    """A whole soak.json."""
    return {
        "schema": "soak-record/v1",
        "id": record,
        "host": host,
        "release": {"id": "r", "git_sha": "688a537f00", "dirty": False},
        "plan": {"schema": "soak/v1", "id": plan, "about": "made", "baseline": "whole", "arms": list(ARMS)},
        "pack_lock": "10376957" * 8,
        "started_utc": "2026-11-21T10:00:00.000+00:00",
        "finished_utc": "2026-11-21T10:20:00.000+00:00",
        "complete": True,
        "why_not": [],
        "summaries": [summary(arm["name"]) for arm in ARMS],
        "verdicts": list(VERDICTS),
        "incomplete": [],
    } | changes


def record_name(second: int, plan: str = "quick") -> str:
    """The name of a record; a later second is a newer one."""
    return f"20261121T10{second // 60:02}{second % 60:02}Z-{plan}-688a537"


def keep(results: Path, found: dict[str, Any] | bytes, record: str, host: str = "loopback") -> Path:
    """Write a record's folder; `found` is its document, or the very bytes of its soak.json."""
    folder = results / "v1" / host / "soak" / record
    folder.mkdir(parents=True)
    data = found if isinstance(found, bytes) else json.dumps(found).encode()
    (folder / "soak.json").write_bytes(data)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(data).hexdigest()}  soak.json\n")
    (folder / "report.md").write_text("# Soak quick\n\n<script>alert(1)</script>\n")
    (folder / "soak.png").write_bytes(PNG)
    return folder


def standing() -> dict[str, Any]:
    """What `remote.soak --show` answers of a soak that is under way."""
    phases = {
        arm["name"]: {"quality": {"replays": 1, "of": 1}, "conversations": {"replays": done, "of": 5}}
        for arm, done in zip(ARMS, (5, 5, 2, 0), strict=True)
    }
    made = document("x")
    return {
        "soak": "20261121T100000.000Z-quick",
        "plan": made["plan"],
        "finished": False,
        "phases": phases | {"damaged": {"quality": {"replays": 0, "of": 1}}},
        "not_run": {
            "whole": None,
            "twin": None,
            "split4": "HTTP 500: the engine is gone",
            "damaged": "quality is not done",
        },
        "incomplete": ["arms/split4/conversations/incomplete/replay-3.jsonl"],
        "summaries": made["summaries"],
        "verdicts": made["verdicts"],
        "last": [
            {
                "at_utc": "2026-11-21T10:01:02.003",
                "event": "phase done",
                "arm": "twin",
                "phase": "conversations",
            }
        ],
    }
