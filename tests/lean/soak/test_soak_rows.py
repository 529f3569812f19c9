"""A row is read as it was written, and a line that is none is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.costs.soak import soak_cost
from lean.errors import IntegrityError, UsageError
from lean.soak.rows import Row, read_rows

MakeRow = Callable[..., Row]


@pytest.mark.parametrize(
    "text", ["", "a\nb\r\nc", "\u2028 \u2029 \x85 \x0b \x1c", "湖 \U0001f30a", "\ud83c", "\x00\ufffd"]
)
def test_any_text_comes_back_as_it_was(make_row: MakeRow, tmp_path: Path, text: str) -> None:
    rows = (make_row("c0", (20_000, 1), text=text), make_row("c1", (), ttft_s=None, error="refused"))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(row.line() for row in rows), encoding="utf-8")
    assert read_rows(file) == rows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"wall_s": float("nan")}, "wall_s: expected seconds"),
        ({"wall_s": -1.0}, "wall_s: expected seconds"),
        ({"wall_s": True}, "wall_s: expected seconds"),
        ({"ttft_s": "soon"}, "ttft_s: expected seconds"),
        ({"text": None}, "text: expected str"),
        ({"turn": "1"}, "turn: expected int"),
        ({"token_deltas_us": [1.5]}, "token_deltas_us: expected whole numbers"),
        ({"extra": 1}, "unknown 'extra'"),
    ],
)
def test_a_line_that_is_no_row_is_named(
    make_row: MakeRow, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    good = make_row("c0", (20_000,)).line()
    file = tmp_path / "rows.jsonl"
    file.write_text(good + json.dumps(json.loads(good) | change) + "\n", encoding="utf-8")
    with pytest.raises(IntegrityError, match=f"line 2: no row of a soak .*{says}"):
        read_rows(file)


def test_bytes_that_are_no_text_are_named_too(make_row: MakeRow, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(make_row("c0", ()).line().encode() + b'{"text": "\xff"}\n')
    with pytest.raises(IntegrityError, match="line 2"):
        read_rows(file)


def test_what_judging_costs_is_measured_on_files_like_a_soaks() -> None:
    found = soak_cost(turns=8, gaps=4, rounds=2)
    assert (found.arms, found.replays, found.turns, found.gaps) == (4, 5, 8, 4)
    assert len(found.reading_s) == len(found.summarising_s) == 2
    assert found.bytes > 4 * 5 * 8 * 300 and found.append_us > 0 and found.peak_rss_mib > 10
    with pytest.raises(UsageError, match="at least 1"):
        soak_cost(turns=0, gaps=4, rounds=1)
