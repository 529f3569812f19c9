"""The page's parts by themselves: names become verbs, hosts are looked at, results are read once."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from helpers import REPO
from ui_fakes import VERBS

from lean.bench.results import RunList, list_runs
from lean.errors import NotReadyError, PreflightError, UsageError
from remote.ui.child import Child, Patience
from remote.ui.choices import Choices, Commands, HostChoice, order_from, read_choices
from remote.ui.desk import Desk
from remote.ui.guard import Keys
from remote.ui.history import PAGE, History, Wanted, series
from remote.ui.hosts import HostState, HostStates
from remote.ui.server import open_browser, serve_page

QUICK = Patience(interrupt=1.0, terminate=1.0, pipes=0.3)


def choice(name: str, *, embedded: bool = False) -> HostChoice:
    return HostChoice(name=name, contract="tiny-cpu", runner="torch", default=True, embedded=embedded)


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    (tmp_path / "verbs.py").write_text(VERBS)
    return Commands(prefix=(sys.executable, str(tmp_path / "verbs.py")), folder=tmp_path)


def state_of(commands: Commands, host: HostChoice, *, up: bool = True) -> HostState:
    async def look() -> HostState:
        states = HostStates(commands, Desk(commands, QUICK), lambda: up, QUICK)
        return await states.state(host)

    return asyncio.run(look())


# Names


def test_the_choices_are_the_checkouts_own() -> None:
    choices = read_choices()
    loopback = choices.host("loopback")
    assert loopback.embedded and loopback.runner == "torch" and loopback.contract == "tiny-cpu"
    assert "decode_64_256" in choices.profiles and "llama.cpp" in choices.systems


@pytest.mark.parametrize(
    ("order", "command"),
    [
        ({"kind": "up"}, "invoke remote.up"),
        ({"kind": "serve", "host": "h", "slots": 4}, "invoke remote.serve --host h --runner torch --slots 4"),
        ({"kind": "stop", "host": "h"}, "invoke remote.stop --host h"),
        ({"kind": "baseline-up", "host": "h", "system": "llama.cpp"},
         "invoke remote.baseline-up --host h --system llama.cpp"),
        ({"kind": "baseline-down", "host": "h"}, "invoke remote.baseline-down --host h"),
        ({"kind": "bench", "host": "h", "profile": "p"}, "invoke remote.bench --host h --profile p"),
        ({"kind": "compare", "host": "h", "profile": "p", "system": "vllm"},
         "invoke remote.compare --host h --system vllm --profile p"),
    ],
)  # fmt: skip
def test_an_order_becomes_the_verb_that_a_person_would_type(order: dict[str, object], command: str) -> None:
    choices = Choices(hosts=(choice("h"),), profiles=("p",))
    found = order_from(order, choices)
    assert found.command == command
    assert Commands(prefix=("x",)).argv(found.words)[:3] == ["x", found.words[0], "--json"]


def test_the_verb_runs_as_a_module_of_this_checkout_without_a_shell() -> None:
    assert Commands().prefix == (sys.executable, "-m", "remote.program") and Commands().folder == REPO


# Hosts


def test_a_host_that_serves_is_shown_with_what_it_serves(commands: Commands) -> None:
    found = state_of(commands, choice("any"))
    assert found.state == "serving" and found.jobs == ("serve",)
    assert found.served is not None and (found.served.lock, found.served.slots) == ("01234567", 2)


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [("away", "unreachable", "away: no route; is it on?"), ("idle", "loading", "")],
)
def test_a_host_that_does_not_serve_says_why(commands: Commands, name: str, state: str, words: str) -> None:
    found = state_of(commands, choice(name))
    assert (found.state, found.message) == (state, words)


def test_the_embedded_host_is_not_started_by_looking(commands: Commands, tmp_path: Path) -> None:
    assert state_of(commands, choice("loopback", embedded=True), up=False).state == "down"
    assert not (tmp_path / "pids").exists()


def test_nothing_is_asked_of_a_host_while_an_operation_runs(commands: Commands, tmp_path: Path) -> None:
    async def look() -> HostState:
        desk = Desk(commands, QUICK)
        choices = Choices(hosts=(choice("h"),), profiles=("decode_64_512",))
        await desk.begin(order_from({"kind": "bench", "host": "h", "profile": "decode_64_512"}, choices))
        try:
            return await HostStates(commands, desk, lambda: True, QUICK).state(choice("h"))
        finally:
            await desk.close()

    assert asyncio.run(look()).state == "unknown"
    asked = (tmp_path / "argv.jsonl").read_text() if (tmp_path / "argv.jsonl").exists() else ""
    assert "remote.status" not in asked


# Children


def run_child(code: str, tmp_path: Path) -> tuple[int, str, list[str]]:
    lines: list[str] = []

    async def run() -> tuple[int, str]:
        child = await Child.start(
            [sys.executable, "-c", code], tmp_path, on_line=lines.append, patience=QUICK
        )
        ended = await child.ended()
        return ended.exit_code, ended.message

    return *asyncio.run(run()), lines


def test_a_verb_that_says_nothing_and_fails_still_has_a_message(tmp_path: Path) -> None:
    assert run_child("raise SystemExit(9)", tmp_path)[:2] == (9, "it ended with exit code 9 and no word")


def test_a_verb_that_crashes_is_told_by_its_last_line(tmp_path: Path) -> None:
    code, message, _ = run_child("raise ValueError('a bug')", tmp_path)
    assert (code, message) == (1, "ValueError: a bug")


def test_a_verb_that_a_signal_ended_counts_as_in_a_shell(tmp_path: Path) -> None:
    assert run_child("import os; os.kill(os.getpid(), 9)", tmp_path)[0] == 137


def test_lines_without_end_control_characters_and_bad_bytes_do_no_harm(tmp_path: Path) -> None:
    code = "import sys; w = sys.stderr.buffer.write; w(b'x' * 400000); w(b'\\n\\x1b[31mred\\xff\\n\\nlast')"
    _, _, lines = run_child(code, tmp_path)
    assert all(len(line) <= 2000 for line in lines) and "\x1b" not in "".join(lines)
    assert lines[-1] == "last" and "red" in lines[-2]


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_the_end(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '5']).pid, flush=True)"

    async def run() -> int:
        child = await Child.start([sys.executable, "-c", code], tmp_path, patience=QUICK)
        return (await asyncio.wait_for(child.ended(), 4)).exit_code

    assert asyncio.run(run()) == 0


# History


def test_many_who_ask_at_once_share_a_read_that_began_after_they_asked(tmp_path: Path) -> None:
    reads: list[Path] = []

    def read(root: Path) -> RunList:
        reads.append(root)
        return RunList(rows=(), broken=())

    async def ask() -> None:
        history = History(tmp_path, read)
        found = await asyncio.gather(*(history.page(Wanted(), anew=True) for _ in range(5)))
        assert all(page["total"] == 0 and page["series"] == [] for page in found)
        assert len(reads) == 2, "the first one's, and one for all who came while it ran"
        await history.page(Wanted())
        assert len(reads) == 2
        await history.page(Wanted(), anew=True)
        assert len(reads) == 3

    asyncio.run(ask())


def test_the_end_does_not_wait_for_a_long_read(tmp_path: Path) -> None:
    go = threading.Event()

    def read(root: Path) -> RunList:
        go.wait(60)
        return RunList(rows=(), broken=())

    async def ask() -> None:
        asking = asyncio.create_task(History(tmp_path, read).page(Wanted()))
        await asyncio.sleep(0.05)
        asking.cancel()

    asyncio.run(ask())
    assert any(thread.name == "history" for thread in threading.enumerate())
    go.set()


def test_who_waits_for_a_read_hears_that_the_page_ends(tmp_path: Path) -> None:
    go = threading.Event()

    async def ask() -> None:
        history = History(
            tmp_path, lambda root: RunList(rows=(), broken=()) if go.wait(60) else list_runs(root)
        )
        asking = asyncio.create_task(history.page(Wanted()))
        await asyncio.sleep(0.05)
        history.close()
        with pytest.raises(NotReadyError, match="invoke ui"):
            await asking

    asyncio.run(ask())
    go.set()


def test_who_waits_for_a_host_hears_that_the_page_ends(commands: Commands) -> None:
    async def ask() -> None:
        states = HostStates(commands, Desk(commands, QUICK), lambda: True, QUICK)
        asking = asyncio.create_task(states.state(choice("any")))
        await asyncio.sleep(0.05)
        await states.close()
        with pytest.raises(NotReadyError, match="invoke ui"):
            await asking

    asyncio.run(ask())


def test_a_read_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    reads: list[Path] = []

    def read(root: Path) -> RunList:
        reads.append(root)
        if len(reads) == 1:
            raise PreflightError("no right to read it")
        return RunList(rows=(), broken=())

    async def ask() -> None:
        history = History(tmp_path, read)
        with pytest.raises(PreflightError, match="no right"):
            await history.page(Wanted())
        assert (await history.page(Wanted()))["total"] == 0

    asyncio.run(ask())


def test_the_newest_runs_come_first_in_pages(tmp_path: Path) -> None:
    known = list_runs(REPO / "results")
    rows = known.rows * (2 * PAGE // len(known.rows) + 1)

    async def ask() -> None:
        history = History(tmp_path, lambda root: RunList(rows=rows, broken=()))
        first, last = await history.page(Wanted()), await history.page(Wanted(page=999))
        ids = [row["id"] for row in first["rows"]]
        assert len(ids) == PAGE and ids == sorted(ids, reverse=True)
        assert last["page"] == last["pages"] == -(-len(rows) // PAGE)
        only = await history.page(Wanted(host="h100", profile="decode_64_512"))
        assert {(row["host"], row["profile"]) for row in only["rows"]} == {("h100", "decode_64_512")}
        with pytest.raises(UsageError, match="host: no runs of 'spark'"):
            await history.page(Wanted(host="spark"))

    asyncio.run(ask())


def test_each_encoding_is_a_line_of_its_own() -> None:
    rows = sorted(list_runs(REPO / "results").rows, key=lambda row: row.id, reverse=True)
    found = [one for one in series(rows) if (one["host"], one["profile"]) == ("h100", "decode_64_256")]
    assert len({one["contract"] for one in found}) == len(found) >= 4
    assert all(one["points"] == sorted(one["points"]) for one in found)


# The process


def test_a_taken_port_is_a_preflight_error_that_names_it(free_local_port: int) -> None:
    import socket

    with (
        socket.create_server(("127.0.0.1", free_local_port)),
        pytest.raises(PreflightError, match=f"port {free_local_port} of this machine"),
    ):
        serve_page(lambda keys: None, port=free_local_port)


def test_the_secrets_of_a_start_are_shown_by_nothing_but_its_address() -> None:
    keys = Keys(port=1)
    assert keys.token in keys.url and keys.token not in repr(keys) and keys.cookie not in repr(keys)
    assert Keys(port=1).token != keys.token


def test_a_browser_gets_the_address_through_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("remote.ui.server.STATE", tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    keys = Keys(port=1)
    assert open_browser(keys)
    (file,) = tmp_path.iterdir()
    assert opened == [file.as_uri()] and keys.token not in opened[0]
    assert os.stat(file).st_mode & 0o777 == 0o600 and keys.url in file.read_text()


def test_no_browser_is_opened_where_there_is_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("webbrowser.open", lambda url: pytest.fail("a browser was opened"))
    assert not open_browser(Keys(port=1))


def test_every_file_of_the_page_travels_with_the_package() -> None:
    import tomllib

    data = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["remote"] == ["ui/static/*"]
    names = {path.name for path in (REPO / "remote" / "ui" / "static").iterdir()}
    text = "".join((REPO / "remote" / "ui" / "static" / name).read_text() for name in names)
    asked = {name for name in names if f"/static/{name}" in text or f'"./{name}"' in text}
    assert asked | {"index.html", "run.html"} == names, json.dumps(sorted(names - asked))
