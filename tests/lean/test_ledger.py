"""The ledger: lines that survive crashes and each other, totals, and what git counts between two commits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean.errors import PreflightError, UsageError
from lean.ledger import (
    Entry,
    Lines,
    LinesByLayer,
    append_entry,
    layer_of,
    lines_changed,
    new_entry,
    read_ledger,
    totals,
)

ROOT = Path(__file__).resolve().parents[2]


def entry(**changes: Any) -> Entry:
    given = {
        "contract": "tiny-cpu",
        "prompt_tokens": 100,
        "response_tokens": 20,
        "first_correct_s": 3.5,
        "parity": "passed",
    }
    return new_entry(**(given | changes))


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "results" / "ledger.jsonl"
    lines = LinesByLayer(range="a..b", kernels=Lines(added=3, deleted=1))
    added = [entry(), entry(parity="failed", first_correct_s=None), entry(lines=lines, note="zwölf\nlines")]
    for one in added:
        append_entry(file, one)
    found = read_ledger(file)
    assert (list(found.entries), found.bad) == (added, ())
    assert [json.loads(line)["schema"] for line in file.read_text().splitlines()] == ["ledger/v1"] * 3
    assert read_ledger(tmp_path / "none").entries == ()


def test_a_torn_last_line_is_named_and_hides_neither_what_came_before_nor_after(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    append_entry(file, entry(note="before"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:40])
    torn = read_ledger(file)
    assert [one.note for one in torn.entries] == ["before"]
    (bad,) = torn.bad
    assert bad.number == 2 and "its end is missing" in bad.problem
    append_entry(file, entry(note="after"))
    found = read_ledger(file)
    assert [one.note for one in found.entries] == ["before", "after"]
    assert [bad.number for bad in found.bad] == [2]
    assert file.read_bytes().startswith(whole + whole[:40] + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b'{"schema": "ledger/v2"}',
        b"\xff",
        b"{" * 5000,
        json.dumps({"schema": "ledger/v1", "contract": "x"}).encode(),
    ],
)
def test_a_line_that_is_no_entry_is_named_by_its_number(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "ledger.jsonl"
    append_entry(file, entry())
    with file.open("ab") as end:
        end.write(line + b"\n")
    append_entry(file, entry())
    found = read_ledger(file)
    assert len(found.entries) == 2
    assert [bad.number for bad in found.bad] == [2] and "line 2" in found.bad[0].problem


def test_many_writers_at_once_lose_and_mix_no_line(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    program = (
        "import sys, pathlib; from lean.ledger import append_entry, new_entry\n"
        "for i in range(25):\n"
        "    append_entry(pathlib.Path(sys.argv[1]), new_entry(contract=sys.argv[2], prompt_tokens=i,\n"
        "        response_tokens=0, first_correct_s=None, parity='failed', note='x' * 5000))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", program, file, f"writer-{n}"], env=environ) for n in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    found = read_ledger(file)
    assert found.bad == ()
    for n in range(4):
        mine = [one.prompt_tokens for one in found.entries if one.contract == f"writer-{n}"]
        assert mine == list(range(25))


def test_a_full_disk_leaves_no_half_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ledger.jsonl"
    append_entry(file, entry())
    before = file.read_bytes()
    write = os.write
    monkeypatch.setattr("lean.ledger.os.write", lambda descriptor, data: write(descriptor, data[:10]))
    with pytest.raises(PreflightError, match="the disk is full"):
        append_entry(file, entry())
    assert file.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="name another --ledger"):
        append_entry(tmp_path / "file" / "ledger.jsonl", entry())
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(PreflightError):
        append_entry(tmp_path / "link", entry())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens: expected 0 or more"),
        ({"first_correct_s": -0.5}, "first_correct_s: expected 0 or more"),
        ({"first_correct_s": float("nan")}, "first_correct_s: expected float"),
        ({"first_correct_s": None}, "say after how long"),
        ({"parity": "maybe"}, "parity: expected one of passed, failed"),
        ({"contract": "../x"}, "contract: expected a contract's name"),
        ({"response_tokens": None}, "response_tokens: expected int"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        entry(**changes)


def test_totals_are_by_contract() -> None:
    lines = LinesByLayer(range="a..b", kernels=Lines(added=3, deleted=1), runtime=Lines(added=5))
    entries = [
        entry(contract="b", lines=lines),
        entry(contract="a", prompt_tokens=1, first_correct_s=9.0),
        entry(contract="a", parity="failed", first_correct_s=None, lines=lines),
        entry(contract="a", first_correct_s=2.0, lines=lines),
    ]
    a, b = totals(entries)
    assert (a.contract, a.iterations, a.passed, a.fastest_correct_s, a.uncounted) == ("a", 3, 2, 2.0, 1)
    assert (a.prompt_tokens, a.response_tokens, a.tokens) == (201, 60, 261)
    assert (a.kernels, a.runtime, a.other) == (Lines(added=6, deleted=2), Lines(added=10), Lines())
    assert (b.contract, b.iterations) == ("b", 1)
    assert totals([]) == ()


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("kernels/attention/kernel.py", "kernels"),
        ("lean/leanserve/engine.py", "runtime"),
        ("remote/console.py", "control_plane"),
        ("tasks.py", "control_plane"),
        ("profiles/contracts/tiny-cpu.yaml", "control_plane"),
        ("tests/kernels/test_aot.py", "other"),
        ("lean.md", "other"),
    ],
)
def test_a_path_belongs_to_a_layer(path: str, layer: str) -> None:
    assert layer_of(path) == layer


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    """Git in a new repository, with an identity of its own."""

    def run(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
        argv = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    run("init", "-q")
    return run


def test_git_counts_the_lines_of_each_layer(tmp_path: Path, git: Callable[..., str]) -> None:
    def write(name: str, data: bytes) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    write("lean/a.py", b"1\n2\n3\n")
    write("remote/b.py", b"1\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    first = git("rev-parse", "HEAD")
    write("lean/a.py", b"1\n3\n4\n5\n")
    write("kernels/new\tname.py", b"1\n2\n")  # a name that a careless parser cuts
    write("kernels/table.bin", bytes(range(256)))
    git("mv", "remote/b.py", "remote/c.py")
    git("add", "-A")
    git("commit", "-qm", "two")
    found = lines_changed(tmp_path, f"{first[:8]}..HEAD")
    assert found == LinesByLayer(
        range=f"{first}..{git('rev-parse', 'HEAD')}",
        kernels=Lines(added=2),
        runtime=Lines(added=2, deleted=1),
        control_plane=Lines(added=1, deleted=1),
    )


@pytest.mark.parametrize("between", ["HEAD", "..", "a...b", "HEAD..", "--output=x..HEAD", "none..HEAD"])
def test_a_range_that_is_none_is_refused(tmp_path: Path, git: Callable[..., str], between: str) -> None:
    git("commit", "-q", "--allow-empty", "-m", "one")
    with pytest.raises(UsageError, match="--range"):
        lines_changed(tmp_path, between)
    assert list(tmp_path.glob("x*")) == []
