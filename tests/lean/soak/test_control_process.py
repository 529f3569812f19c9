"""The proxy's process: found by its ready file, told to end, never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import REPO, until
from proxy_fakes import ScriptedEngine, events_of, scripted_engine

from lean.errors import NotReadyError
from lean.soak import controlled as keeper
from lean.soak.controlled import controlled

ASKING = {"model": "m", "prompt": "a b c", "max_tokens": 4, "stream": True}


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with scripted_engine() as engine:
        yield engine


def ready_document(folder: Path) -> dict[str, Any]:
    file = folder / "control.json"
    until(file.exists)
    return dict(json.loads(file.read_text()))


def gone(pid: int) -> bool:
    """Whether no such process runs; one that nobody has waited for yet is gone too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@contextmanager
def program(engine: ScriptedEngine, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m lean.soak.control` and its URL."""
    argv = [sys.executable, "-m", "lean.soak.control", "--upstream", engine.url, "--kind", "slower"]
    argv += ["--ready-file", str(folder / "control.json")]
    process = subprocess.Popen(
        argv, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process, ready_document(folder)["url"]
    finally:
        process.kill()
        process.communicate()


def start_answer(url: str, engine: ScriptedEngine) -> Callable[[], bytes]:
    """An answer that has begun; what came of it, once it is called."""
    client = httpx.Client(base_url=url, timeout=60, trust_env=False)
    answer = client.send(client.build_request("POST", "/v1/completions", json=ASKING), stream=True)
    chunks = answer.iter_raw()
    first = next(chunks)

    def rest() -> bytes:
        try:
            return first + b"".join(chunks)
        finally:
            answer.close()
            client.close()

    return rest


def test_the_ready_file_says_what_is_done_to_whom(engine: ScriptedEngine, tmp_path: Path) -> None:
    with controlled(engine.url, "slower", folder=tmp_path / "new", share=0.25) as url:
        document = ready_document(tmp_path / "new")
        assert not gone(document["pid"])
        assert document == {
            "schema": "soak-control/v1",
            "pid": document["pid"],
            "url": url,
            "port": int(url.rpartition(":")[2]),
            "upstream": engine.url,
            "kind": "slower",
            "share": 0.25,
        }
    assert gone(document["pid"]) and not (tmp_path / "new" / "control.json").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", document["port"]), timeout=10)


def test_a_block_that_fails_leaves_no_process(engine: ScriptedEngine, tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        controlled(engine.url, "cut", folder=tmp_path),
    ):
        document = ready_document(tmp_path)
        raise ZeroDivisionError
    assert document["every"] == 10 and gone(document["pid"])


def test_it_does_not_outlive_whoever_started_it(engine: ScriptedEngine, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lean.soak.controlled import controlled\n"
        "with controlled(sys.argv[1], 'slower', folder=Path(sys.argv[2])): time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, engine.url, str(tmp_path)], cwd=REPO)
    try:
        pid = ready_document(tmp_path)["pid"]
    finally:
        starter.kill()
        starter.wait()
    until(lambda: gone(pid))


def test_one_that_hears_nothing_is_killed(
    engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "STOP_S", 0.1)
    with controlled(engine.url, "slower", folder=tmp_path):
        pid = ready_document(tmp_path)["pid"]
        os.kill(pid, signal.SIGSTOP)
    assert gone(pid)


def test_one_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(NotReadyError, match=r"ended with 1.*expected http://127\.0\.0\.1:PORT"),
        controlled("http://10.1.2.3:80", "slower", folder=tmp_path),
    ):
        pytest.fail("nothing listens")


def test_one_that_ended_meanwhile_is_told(engine: ScriptedEngine, tmp_path: Path) -> None:
    with (
        pytest.raises(NotReadyError, match="ended with -9"),
        controlled(engine.url, "slower", folder=tmp_path),
    ):
        pid = ready_document(tmp_path)["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))


def test_running_answers_are_ended_before_it_ends(engine: ScriptedEngine, tmp_path: Path) -> None:
    engine.hold_after = 2
    with program(engine, tmp_path) as (process, url):
        rest = start_answer(url, engine)
        process.terminate()
        until(lambda: not (tmp_path / "control.json").exists())
        engine.go.set()
        assert len(events_of(rest())) == 5
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and json.loads(out)["stopped_by"] == "SIGTERM"


def test_an_answer_that_is_cut_at_the_end_is_broken_and_counted(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.hold_after = 2
    with program(engine, tmp_path) as (process, url):
        rest = start_answer(url, engine)
        process.terminate()
        until(lambda: not (tmp_path / "control.json").exists())
        process.terminate()  # a second one does not wait for it
        with pytest.raises(httpx.RemoteProtocolError):
            rest()
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert json.loads(out)["error"]["message"] == "1 answer(s) were broken off before their end"
        assert "POST /v1/completions: broken off" in err and "Traceback" not in err
    until(lambda: engine.asked[0].left)


def test_one_that_had_no_answer_yet_hears_why(engine: ScriptedEngine, tmp_path: Path) -> None:
    engine.hold_head = True
    with program(engine, tmp_path) as (process, url), ThreadPoolExecutor(1) as threads:
        asking = threads.submit(httpx.post, f"{url}/v1/completions", json=ASKING, timeout=60, trust_env=False)
        until(lambda: engine.asked and engine.asked[0].body)
        process.terminate()
        until(lambda: not (tmp_path / "control.json").exists())
        process.terminate()
        answer = asking.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert process.wait(30) == 130
    until(lambda: engine.asked[0].left)


@pytest.mark.slow
def test_an_answer_without_end_holds_it_up_for_seconds_only(engine: ScriptedEngine, tmp_path: Path) -> None:
    engine.hold_after = 2
    with program(engine, tmp_path) as (process, url):
        rest = start_answer(url, engine)
        process.terminate()
        with pytest.raises(httpx.RemoteProtocolError):
            rest()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and "Traceback" not in err
