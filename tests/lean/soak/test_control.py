"""The proxy that damages answers: what it does to them, and what it leaves as it is."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import until
from proxy_fakes import ScriptedEngine, answer_of, events_of, scripted_engine

from lean.cli import run_program
from lean.soak.control import main
from lean.soak.controlled import controlled
from lean.soak.proxy import MAX_BODY_BYTES, halved

SHARE = 0.5
TOKEN = {"Authorization": "Bearer canary-bearer-token"}


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[ScriptedEngine]:
    with scripted_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def slower_url(shared_engine: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("slower")
    with controlled(shared_engine.url, "slower", folder=folder, share=SHARE) as url:
        yield url


@pytest.fixture(scope="module")
def cutting_url(shared_engine: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with controlled(shared_engine.url, "cut", folder=tmp_path_factory.mktemp("cut"), every=1) as url:
        yield url


@pytest.fixture
def engine(shared_engine: ScriptedEngine) -> ScriptedEngine:
    shared_engine.reset()
    return shared_engine


def asking(tokens: int = 8, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "a b c", "max_tokens": tokens, "stream": stream, **fields}


def complete(url: str, document: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=document, timeout=60, trust_env=False)


def test_every_piece_comes_later_by_the_share_and_none_is_changed(
    engine: ScriptedEngine, slower_url: str
) -> None:
    engine.gap_s = 0.02
    sent, seen, raw = time.monotonic(), [], b""
    with httpx.stream("POST", f"{slower_url}/v1/completions", json=asking(), trust_env=False) as answer:
        for chunk in answer.iter_raw():
            raw += chunk
            seen += [time.monotonic() - sent] * (raw.count(b"\n\n") - len(seen))
    assert raw == b"".join(answer_of(asking()))
    asked = engine.asked[-1]
    engines = [moment - asked.came for moment in asked.said]
    assert len(seen) == len(engines) == 10
    # Rigorous on any machine: all of the engine's time lies within the proxy's, and that within the client's.
    late = [mine - (1 + SHARE) * its for mine, its in zip(seen, engines, strict=True)]
    assert min(late) >= 0, late


def test_a_piece_does_not_wait_for_those_after_it(engine: ScriptedEngine, slower_url: str) -> None:
    engine.hold_after = 2
    with httpx.stream("POST", f"{slower_url}/v1/completions", json=asking(), trust_env=False) as answer:
        chunks = answer.iter_raw()
        raw = b""
        while raw.count(b"\n\n") < 2:
            raw += next(chunks)
        assert len(engine.asked[-1].said) == 2, "the engine has said no more than the client has seen"
        engine.go.set()
        raw += b"".join(chunks)
    assert len(events_of(raw)) == 9


@pytest.mark.parametrize("size", [1, 7, 61])
def test_pieces_may_end_within_an_event_or_a_character(
    engine: ScriptedEngine, slower_url: str, cutting_url: str, size: int
) -> None:
    engine.cut_at = size
    assert complete(slower_url, asking(4)).content == b"".join(answer_of(asking(4)))
    assert complete(cutting_url, asking(4)).content == b"".join(answer_of(asking(2)))


def test_a_whole_answer_is_slower_too(engine: ScriptedEngine, slower_url: str) -> None:
    engine.gap_s = 0.1
    sent = time.monotonic()
    answer = complete(slower_url, asking(5, stream=False))
    took = time.monotonic() - sent
    assert answer.json()["usage"] == {"completion_tokens": 5}
    asked = engine.asked[-1]
    assert took >= (1 + SHARE) * (asked.said[0] - asked.came)


def test_every_tenth_completion_has_half_its_tokens_and_a_proper_end(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    with controlled(engine.url, "cut", folder=tmp_path) as url:
        answers = [events_of(complete(url, asking(9)).content) for _ in range(10)]
        answers += [[complete(url, asking(9, stream=False)).json()] for _ in range(10)]
        httpx.get(f"{url}/v1/models", trust_env=False)  # counts for nothing
    made = [answer[-1]["usage"]["completion_tokens"] for answer in answers]
    assert made == [9] * 9 + [4] + [9] * 9 + [4]
    whole, cut = answers[0], answers[9]
    assert cut[:3] == whole[:3], "the same tokens until then"
    assert [event["choices"][0]["finish_reason"] for event in cut[:-1]] == [None] * 3 + ["length"]
    assert cut[3]["choices"][0]["text"] == whole[3]["choices"][0]["text"]
    assert answers[19][0]["choices"][0]["finish_reason"] == "length"


def test_asking_for_half_keeps_everything_else() -> None:
    document = asking(9, min_tokens=9, ignore_eos=True, seed=2**62, stop=["😀"])
    assert json.loads(halved(json.dumps(document).encode()) or b"") == document | {
        "max_tokens": 4,
        "min_tokens": 4,
    }
    assert json.loads(halved(b'{"prompt": "a"}') or b"")["max_tokens"] == 8, "of OpenAI's default"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"max_tokens": 1}', b'{"max_tokens": "9"}', b'{"max_tokens": true}', b"\xff"]
)
def test_what_has_no_half_goes_to_the_engine_as_it_is(
    engine: ScriptedEngine, cutting_url: str, body: bytes
) -> None:
    engine.status = 400
    answer = httpx.post(f"{cutting_url}/v1/completions", content=body, trust_env=False)
    assert (answer.status_code, engine.asked[-1].body) == (400, body)


def test_routes_headers_and_statuses_pass_both_ways(engine: ScriptedEngine, slower_url: str) -> None:
    engine.status = 503
    answer = httpx.request(
        "PATCH",
        f"{slower_url}/a%20b/c?d=e%2Ff&g",
        headers=TOKEN | {"X-Mine": "1", "Connection": "close"},
        content=b"\0\xff",
        trust_env=False,
    )
    assert (answer.status_code, answer.json()) == (503, {"path": "/a b/c"})
    assert answer.headers["x-engine"] == "scripted" and len(answer.headers.get_list("date")) == 1
    asked = engine.asked[-1]
    headers = dict(asked.headers)
    assert (asked.method, asked.target, asked.body) == ("PATCH", "/a%20b/c?d=e%2Ff&g", b"\0\xff")
    assert headers[b"authorization"] == b"Bearer canary-bearer-token" and headers[b"x-mine"] == b"1"
    assert headers[b"host"].decode() == engine.url.removeprefix("http://")
    assert [name for name, _ in asked.headers].count(b"content-length") == 1


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/nowhere"])
def test_what_generates_nothing_passes_through(engine: ScriptedEngine, slower_url: str, path: str) -> None:
    with httpx.Client(base_url=slower_url, trust_env=False) as client:
        assert [client.get(path).json() for _ in range(3)] == [{"path": path}] * 3
        assert client.head(path).status_code == 200


def test_a_dead_engine_is_named_in_an_openai_style_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        with controlled(f"http://{dead}", "slower", folder=tmp_path) as url:
            for answer in (httpx.get(f"{url}/health", trust_env=False), complete(url, asking())):
                error = answer.json()["error"]
                assert (answer.status_code, error["type"]) == (502, "server_error")
                assert dead in error["message"] and "ConnectError" in error["message"]


def test_an_answer_that_the_engine_breaks_off_is_broken_for_the_client_too(
    engine: ScriptedEngine, slower_url: str
) -> None:
    engine.break_after = 3
    raw = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("POST", f"{slower_url}/v1/completions", json=asking(), trust_env=False) as answer,
    ):
        for chunk in answer.iter_raw():
            raw += chunk
    assert raw == b"".join(answer_of(asking())[:3])
    engine.reset()
    assert complete(slower_url, asking(2)).status_code == 200


def send(url: str, document: dict[str, Any]) -> socket.socket:
    """A connection on which a completion was asked for, and nothing was read yet."""
    body = json.dumps(document).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("before_the_head", [False, True])
def test_a_client_that_leaves_takes_its_request_from_the_engine(
    engine: ScriptedEngine, slower_url: str, before_the_head: bool
) -> None:
    engine.hold_head, engine.hold_after = before_the_head, 1
    with send(slower_url, asking(99)):
        until(lambda: engine.asked and engine.asked[0].body and (before_the_head or engine.asked[0].said))
        assert not engine.asked[0].left
    assert until(lambda: engine.asked[0].left), "and that without a further piece"


def test_a_client_that_reads_nothing_holds_the_engine_up_and_fills_no_memory(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.flood = True
    with controlled(engine.url, "slower", folder=tmp_path) as url, send(url, asking()):
        pid = json.loads((tmp_path / "control.json").read_text())["pid"]
        until(lambda: engine.asked and len(engine.asked[0].said) > 100)
        said = -1
        while said != len(engine.asked[0].said):  # it has come to a stand
            said = len(engine.asked[0].said)
            time.sleep(0.5)
        status = Path(f"/proc/{pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert said << 16 < 256 << 20 and peak < 256 << 10, f"{said} pieces, {peak} KiB"


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://evil.example"}],
)
def test_a_foreign_page_gets_nothing(
    engine: ScriptedEngine, slower_url: str, headers: dict[str, str]
) -> None:
    answer = httpx.get(f"{slower_url}/health", headers=headers, trust_env=False)
    assert answer.status_code == 403 and "only" in answer.json()["error"]["message"]
    assert engine.asked == []


def test_it_listens_on_this_machine_only(slower_url: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(slower_url.rpartition(":")[2])), timeout=10)


def test_a_body_without_end_is_refused(engine: ScriptedEngine, slower_url: str) -> None:
    answer = httpx.post(f"{slower_url}/v1/completions", content=bytes(MAX_BODY_BYTES + 1), trust_env=False)
    assert (answer.status_code, engine.asked) == (413, [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--upstream": "http://10.0.0.1:80"}, "--upstream"),
        ({"--upstream": "https://127.0.0.1:80"}, "--upstream"),
        ({"--share": "0"}, "--share"),
        ({"--share": "nan"}, "--share"),
        ({"--every": "0"}, "--every"),
        ({"--kind": "weights"}, "--kind"),
    ],
)
def test_a_wrong_command_line_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], says: str
) -> None:
    words = {"--upstream": "http://127.0.0.1:1", "--kind": "cut", "--ready-file": str(tmp_path / "r")}
    code = run_program(main, [word for pair in (words | change).items() for word in pair])
    assert code == 1 and says in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_taken_port_and_a_missing_folder_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slower_url: str
) -> None:
    words = ["--upstream", "http://127.0.0.1:1", "--kind", "cut", "--ready-file"]
    assert run_program(main, [*words, str(tmp_path / "r"), "--port", slower_url.rpartition(":")[2]]) == 4
    assert "in use" in capsys.readouterr().out
    assert run_program(main, [*words, str(tmp_path / "none" / "r")]) == 4
    assert "ready file" in capsys.readouterr().out
