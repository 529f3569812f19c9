"""The real process: what it writes, when it says ready, how it ends."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]


def complete(client, prompt, **fields):
    body = {"model": "tiny-cpu", "prompt": prompt, "temperature": 0, "ignore_eos": True, **fields}
    return client.post("/v1/completions", json=body)


def test_ready_means_a_token_came_out_and_the_file_says_what_serves(running_service, demo_pack):
    ready = running_service.ready
    assert ready["lock"] == (demo_pack / "LOCK").read_text().strip()
    assert ready["runner"]["name"] == "torch"
    assert (ready["plan"]["slots"], ready["bucket"], ready["runner"]["threads"]) == (4, 4, 1)
    assert ready["pid"] == running_service.process.pid
    assert datetime.fromisoformat(ready["started_utc"]).tzinfo is not None
    assert list(ready["startup_seconds"]) == sorted(ready["startup_seconds"])
    with running_service.client() as client:
        health = client.get("/health")
    assert (health.status_code, health.json()["runner"]) == (200, ready["runner"])


@pytest.mark.security("services and forwards listen on loopback only")
def test_the_service_listens_on_loopback_only(running_service):
    port = running_service.ready["port"]
    with open("/proc/net/tcp", encoding="ascii") as table:
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_streams_are_byte_identical_whatever_runs_beside_them(running_service):
    prompts = ["The function returns", "A file is opened", "import", "If the argument is"]
    with running_service.client() as client:
        alone = [complete(client, prompt, max_tokens=60).json()["choices"][0]["text"] for prompt in prompts]
        together = [""] * len(prompts)

        def ask(index):
            text = complete(client, prompts[index], max_tokens=60).json()["choices"][0]["text"]
            together[index] = text

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    assert together == alone
    assert all(alone)


def test_a_stream_is_byte_identical_when_its_neighbours_leave(running_service):
    with running_service.client() as client:
        alone = complete(client, "The method", max_tokens=150).json()["choices"][0]["text"]
        body = {
            "model": "tiny-cpu",
            "prompt": "A long one",
            "max_tokens": 900,
            "stream": True,
            "ignore_eos": True,
        }
        answers = []
        kept = threading.Thread(
            target=lambda: answers.append(complete(client, "The method", max_tokens=150).json())
        )
        with client.stream("POST", "/v1/completions", json=body) as leaver:
            next(leaver.iter_lines())
            kept.start()
            time.sleep(0.1)  # both are decoding now; the test is right whatever the timing
        kept.join(60.0)
    assert answers[0]["choices"][0]["text"] == alone


def test_greedy_text_adds_up_from_a_stream(running_service):
    with running_service.client() as client:
        whole = complete(client, "The function returns", max_tokens=40).json()
        body = {"model": "tiny-cpu", "prompt": "The function returns", "max_tokens": 40, "temperature": 0}
        with client.stream(
            "POST", "/v1/completions", json={**body, "ignore_eos": True, "stream": True}
        ) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]


def test_sigterm_lets_running_streams_finish_and_takes_no_new_ones(start_service):
    served = start_service()
    with served.client() as client, served.client() as late:
        body = {"model": "tiny-cpu", "prompt": "The", "max_tokens": 300, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as running:
            lines = running.iter_lines()
            next(lines)
            served.signal(signal.SIGTERM)
            deadline = time.monotonic() + 10.0
            while (response := late.get("/health")).status_code == 200:
                assert time.monotonic() < deadline
            assert response.json()["status"] == "draining"
            assert complete(late, "too late").status_code == 503
            assert not (served.folder / "ready.json").exists()
            assert [line for line in lines if line][-1] == "data: [DONE]"
    code, document, errors = served.ended()
    assert (code, document["drained"], document["stopped_by"]) == (0, True, "SIGTERM")
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(start_service, number):
    served = start_service("--drain-seconds", "60")
    with served.client() as client:
        body = {"model": "tiny-cpu", "prompt": "The", "max_tokens": 300, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as running:
            lines = running.iter_lines()
            next(lines)
            served.signal(number)
            while client.get("/health").status_code == 200:
                pass
            served.signal(number)
            last = [line for line in lines if line][-1]
    code, document, errors = served.ended()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert (code, document["error"]["kind"]) == (130, "Interrupted")
    assert "Traceback" not in errors


def test_draining_is_bounded(start_service):
    served = start_service("--drain-seconds", "0.2")
    with served.client() as client:
        body = {"model": "tiny-cpu", "prompt": "The", "max_tokens": 300, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as running:
            lines = running.iter_lines()
            next(lines)
            served.signal(signal.SIGTERM)
            assert "shutting_down" in [line for line in lines if line][-1]
    assert served.ended()[0] == 130


def test_a_signal_while_the_model_loads_ends_the_process_cleanly(start_service):
    served = start_service(wait=False)
    deadline = time.monotonic() + 60.0
    while "listening" not in (served.folder / "err").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    served.signal(signal.SIGTERM)
    code, document, errors = served.ended()
    assert (code, document["stopped_by"]) == (0, "SIGTERM")
    assert "Traceback" not in errors
    assert not (served.folder / "ready.json").exists()


def test_requests_before_the_first_token_get_503(start_service):
    served = start_service(wait=False)
    deadline = time.monotonic() + 60.0
    while "listening on " not in (text := (served.folder / "err").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    headers = {"Authorization": "Bearer a-token-for-the-integration-tests"}
    url = text.split("listening on ")[1].split(",")[0]
    response = httpx.get(f"{url}/health", headers=headers, timeout=60.0)
    if not (served.folder / "ready.json").exists():
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def refused(start_service, *options, **keywords):
    served = start_service(*options, wait=False, **keywords)
    code, document, errors = served.ended()
    assert not (served.folder / "ready.json").exists()
    assert "listening" not in errors and "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("error: ")
    return code, document["error"]["kind"], document["error"]["message"]


def test_a_busy_port_is_a_preflight_error_that_names_the_port_and_the_fix(start_service):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        code, kind, message = refused(start_service, "--port", str(port))
    assert (code, kind) == (4, "PreflightError")
    assert f"127.0.0.1:{port} is in use" in message and "--port 0" in message


def test_an_altered_pack_is_refused_before_anything_listens(start_service, demo_pack, tmp_path):
    pack = tmp_path / demo_pack.name
    shutil.copytree(demo_pack, pack)
    victim = sorted((pack / "weights").iterdir())[-1]
    victim.chmod(0o600)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    code, kind, message = refused(start_service, pack=pack)
    assert (code, kind) == (8, "PackError")
    assert victim.name in message


def test_a_missing_pack_is_refused(start_service, tmp_path):
    assert refused(start_service, pack=tmp_path / "nowhere")[:2] == (8, "PackError")


@pytest.mark.parametrize("runner", ["tensorrt", "vllm"])
def test_a_runner_that_does_not_exist_yet_is_refused_with_what_exists(start_service, runner):
    code, kind, message = refused(start_service, "--runner", runner)
    assert (code, kind) == (1, "UsageError")
    assert runner in message and "torch" in message


@pytest.mark.parametrize(
    "options, words",
    [
        (("--slots", "3"), "slots"),
        (("--slots", "2", "--bucket", "4"), "--bucket 4 is more than --slots 2"),
        (("--slots", "4", "--bucket", "3"), "bucket"),
        (("--port", "70000"), "port"),
        (("--threads", "0"), "threads"),
        (("--queue", "-1"), "queue"),
        (("--drain-seconds", "nan"), "drain-seconds"),
    ],
)
def test_a_wrong_setting_is_named(start_service, options, words):
    code, kind, message = refused(start_service, *options)
    assert (code, kind) == (1, "UsageError")
    assert words in message


def test_a_token_file_that_others_can_read_is_refused(start_service, tmp_path):
    token = tmp_path / "open-token"
    token.write_text("0123456789abcdef")
    token.chmod(0o644)
    code, kind, message = refused(start_service, "--token-file", str(token))
    assert (code, kind) == (4, "PreflightError")
    assert f"chmod 600 {token}" in message


def test_a_stale_ready_file_goes_before_anything_else_and_even_when_the_start_fails(start_service, tmp_path):
    stale = tmp_path / "stale.json"
    stale.write_text("{}")
    served = start_service("--ready-file", str(stale), pack=tmp_path / "nowhere", wait=False)
    served.ended()
    assert served.process.returncode == 8


def test_plan_prints_the_layout_without_loading_anything(demo_pack):
    def plan(*options):
        command = [sys.executable, "-X", "importtime", "-m", "lean.leanserve", "plan", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
        return json.loads(done.stdout), imported

    by_contract, imported = plan("--contract", "tiny-cpu", "--slots", "2")
    by_pack, _ = plan("--pack", str(demo_pack), "--slots", "2")
    assert by_contract == by_pack
    assert by_pack["slots"] == 2
    assert imported.isdisjoint({"torch", "uvicorn", "starlette", "numpy", "tokenizers"})
