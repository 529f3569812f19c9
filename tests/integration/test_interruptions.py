"""Verbs that are stopped, interrupted, or find somebody else at work: nothing is lost, nobody is harmed."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from helpers import until

from lean.contracts import Host
from remote.host.jobs import HostJobs
from remote.host.python import HostPython
from remote.ssh.connection import HostConnection
from remote.ssh.settings import SshSettings

pytestmark = [
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
]

ROOT = Path(__file__).resolve().parents[2]


def home(checkout) -> Path:
    return checkout.path / ".lean" / "loopback" / "home" / "lean"


@contextmanager
def started(checkout, *words: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "invoke", *words],
        cwd=checkout.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


@contextmanager
def jobs_of(checkout) -> Iterator[HostJobs]:
    settings = SshSettings(loopback=checkout.path / ".lean" / "loopback")
    with HostConnection("loopback", Host(contract="tiny-cpu"), settings) as connection:
        yield HostJobs(connection, HostPython(release=str(ROOT), python=sys.executable))


@contextmanager
def service(checkout, *words: str) -> Iterator[dict]:
    outcome = checkout.invoke("remote.serve", "--json", *words)
    assert outcome.code == 0, outcome.stderr
    try:
        yield outcome.document
    finally:
        checkout.invoke("remote.stop")


def state(checkout, job: str) -> str:
    file = home(checkout) / "jobs" / job / "status.json"
    return json.loads(file.read_text())["state"] if file.exists() else ""


def measuring(checkout) -> bool:
    """A measurement runs and has read its first answers."""
    log = home(checkout) / "jobs" / "bench" / "log"
    return state(checkout, "bench") == "running" and "measured round" in log.read_text()


def runs(checkout) -> set[Path]:
    return set((checkout.path / "results" / "v1" / "loopback").glob("*/*/run.json"))


def test_a_measurement_that_is_stopped_leaves_its_record_and_it_comes_home(checkout, demo) -> None:
    before = runs(checkout)
    with service(checkout), started(checkout, "remote.bench", "--requests", "90", "--json") as bench:
        until(lambda: measuring(checkout))
        assert checkout.invoke("remote.jobs", "--stop", "bench").code == 0
        out, err = bench.communicate(timeout=60)
    document = json.loads(out)
    (record,) = runs(checkout) - before
    assert bench.returncode == 130, err
    assert checkout.path / document["path"] == record.parent and document["error"]["exit_code"] == 130
    assert json.loads(record.read_text())["failure"]["kind"] == "Interrupted"


@pytest.mark.fault("Ctrl-C", "bench")
def test_ctrl_c_stops_the_measurement_and_the_service_that_was_started_for_it(checkout, demo) -> None:
    with started(checkout, "remote.bench", "--requests", "90") as bench:
        until(lambda: measuring(checkout))
        bench.send_signal(signal.SIGINT)
        _, err = bench.communicate(timeout=60)
    assert bench.returncode == 130 and "the measurement and its service were stopped" in err
    assert "Traceback" not in err
    assert {state(checkout, job) for job in ("bench", "serve")} <= {"stopped", "exited", "failed"}


@pytest.mark.fault("kill -9 of the client", "bench")
def test_a_measurement_that_nobody_waited_for_is_found_and_brought_home_as_it_is_said(checkout, demo) -> None:
    before = runs(checkout)
    with service(checkout):
        with started(checkout, "remote.bench", "--requests", "20") as bench:
            until(lambda: measuring(checkout))
            bench.kill()
            bench.wait()
        followed = checkout.invoke("remote.jobs", "--follow", "bench", "--json")
    assert followed.code == 0, followed.stderr
    assert runs(checkout) == before
    assert "its record is not here yet; run: invoke remote.pull --host loopback" in followed.stderr
    pulled = checkout.invoke(*shlex.split(followed.document["pull"])[1:])
    assert pulled.code == 0, pulled.stderr
    (record,) = runs(checkout) - before
    assert record.parent == checkout.path / "results" / followed.document["result"]["place"]
    assert json.loads(record.read_text())["status"] == "ok"
    assert checkout.invoke("results.list", "--json").document["broken"] == []
    assert checkout.invoke("remote.jobs", "--follow", "bench", "--json").document["pull"] is None


@pytest.mark.fault("Ctrl-C", "serve")
def test_ctrl_c_before_the_service_is_ready_says_how_to_come_back(checkout, demo) -> None:
    (home(checkout) / "jobs" / "serve" / "status.json").unlink(missing_ok=True)
    with started(checkout, "remote.serve") as serve:
        until(lambda: state(checkout, "serve") == "running")
        serve.send_signal(signal.SIGINT)
        _, err = serve.communicate(timeout=60)
    try:
        assert serve.returncode == 130
        assert "Re-attach: invoke remote.jobs --host loopback --follow serve" in err
        assert state(checkout, "serve") == "running"
    finally:
        checkout.invoke("remote.stop")


@pytest.mark.fault("Ctrl-C", "jobs")
def test_ctrl_c_while_following_detaches_within_five_seconds_and_the_job_goes_on(checkout, demo) -> None:
    with jobs_of(checkout) as jobs:
        jobs.start("long", ["sh", "-c", "echo begun >&2; exec sleep 60"])
        try:
            with started(checkout, "remote.jobs", "--follow", "long") as follow:
                assert follow.stdout is not None
                while "begun" not in follow.stdout.readline():
                    pass
                pressed = time.monotonic()
                follow.send_signal(signal.SIGINT)
                _, err = follow.communicate(timeout=20)
            assert time.monotonic() - pressed < 5
            assert follow.returncode == 130 and "job 'long' goes on. Re-attach:" in err
            assert jobs.status("long").state == "running"
        finally:
            jobs.stop("long", grace_s=0.0)


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C twice", "bench")
def test_ctrl_c_twice_ends_at_once_and_a_rerun_finds_its_way(checkout, demo) -> None:
    with started(checkout, "remote.bench", "--requests", "90") as bench:
        until(lambda: measuring(checkout))
        bench.send_signal(signal.SIGINT)
        time.sleep(0.3)
        pressed = time.monotonic()
        bench.send_signal(signal.SIGINT)
        _, err = bench.communicate(timeout=60)
    assert bench.returncode == 130 and "Traceback" not in err
    assert time.monotonic() - pressed < 20
    assert "may still run, see: invoke remote.jobs" in err or "were stopped" in err
    for job in ("bench", "serve"):
        checkout.invoke("remote.jobs", "--stop", job)
    assert checkout.invoke("remote.bench").code == 0


def test_following_a_job_that_failed_ends_with_its_exit_code(checkout, demo) -> None:
    failed = checkout.invoke("remote.pack", "--model", "/nowhere")
    followed = checkout.invoke("remote.jobs", "--follow", "pack")
    assert failed.code == followed.code != 0
    assert "/nowhere" in failed.stderr and "/nowhere" in followed.stderr


@pytest.mark.slow
def test_a_service_of_another_release_is_not_measured(checkout, demo) -> None:
    readme = checkout.path / "README.md"
    text = readme.read_text()
    with service(checkout):
        readme.write_text(text + "\nchanged\n")
        try:
            outcome = checkout.invoke("remote.bench", "--json")
        finally:
            readme.write_text(text)
        assert outcome.code == 4
        assert "a record names only one" in outcome.document["error"]["message"]
        assert "remote.stop" in outcome.document["error"]["message"]
        assert state(checkout, "serve") == "running"


def test_a_service_that_somebody_is_starting_is_left_alone(checkout, demo) -> None:
    with jobs_of(checkout) as jobs:
        jobs.start("serve", ["sleep", "60"])
        try:
            outcome = checkout.invoke("remote.bench")
            assert outcome.code == 4 and "serve" in outcome.stderr
            assert jobs.status("serve").state == "running"
        finally:
            jobs.stop("serve", grace_s=0.0)


def test_stop_lets_a_running_stream_end(checkout, demo) -> None:
    answers: list[httpx.Response] = []
    with service(checkout) as ready:
        token = (home(checkout) / "tmp" / "serve.token").read_text().strip()

        def ask() -> None:
            body = {"model": "tiny-cpu", "prompt": "The file", "max_tokens": 900, "ignore_eos": True}
            with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
                answers.append(client.post(f"{ready['url']}/v1/completions", json=body))

        asking = threading.Thread(target=ask)
        asking.start()
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}) as client:
            until(
                lambda: (
                    "lean_running 1" in client.get(f"{ready['url']}/metrics").text or not asking.is_alive()
                )
            )
        assert checkout.invoke("remote.stop").code == 0
        asking.join(60)
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 900


@pytest.mark.slow
def test_the_whole_loop_runs_with_two_streams(checkout, demo) -> None:
    outcome = checkout.invoke("demo", "--profile", "decode_64_256_b2", "--json")
    assert outcome.code == 0, outcome.stderr
    record = json.loads((Path(outcome.document["path"]) / "run.json").read_text())
    assert record["profile"]["batch"] == 2
