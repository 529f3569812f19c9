"""The page over HTTP, as a browser and as somebody else asks; the verbs behind it are a small script."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import REPO, until
from ui_fakes import TOKEN, RunningPage, fake_service, none_alive, running_page

RUN = ("loopback", "decode_64_256", "20261121T025828.495Z-688a537")
PAGES = ("/", "/static/page.js", "/api/choices", "/api/history", "/api/events", "/runs/a/b/c")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[RunningPage]:
    with running_page(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    """For tests that start nothing; its results hold one committed run, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("ui")
    results = folder / "results" / "v1" / "loopback" / "decode_64_256"
    shutil.copytree(REPO / "results" / "v1" / Path(*RUN), results / RUN[2])
    (results / "20261121T000000.000Z-0123456").mkdir()
    (results / "20261121T000000.000Z-0123456" / "run.json").write_text("{")
    with running_page(folder) as running:
        yield running


@pytest.fixture
def stranger(shared: RunningPage) -> Iterator[httpx.Client]:
    """Somebody on this machine without the token."""
    with httpx.Client(base_url=shared.base, trust_env=False) as client:
        yield client


# Who may ask


@pytest.mark.security("The page answers only the browser that was given its token")
@pytest.mark.parametrize("path", [*PAGES, "/api/nothing", "/../etc/passwd"])
def test_nothing_is_answered_without_the_cookie(stranger: httpx.Client, path: str) -> None:
    answer = stranger.get(path)
    assert answer.status_code == 401 and "invoke ui" in answer.json()["error"]["message"]


@pytest.mark.parametrize("given", ["", "?token=", "?token=wrong", "?token=%FF", "?other=1"])
def test_a_wrong_token_gets_no_cookie(stranger: httpx.Client, given: str) -> None:
    answer = stranger.get(f"/enter{given}")
    assert answer.status_code == 401 and "set-cookie" not in answer.headers


def test_the_printed_address_gives_a_strict_cookie_and_goes_on_to_a_clean_one(
    shared: RunningPage, stranger: httpx.Client
) -> None:
    answer = stranger.get(shared.url)
    cookie = answer.headers["set-cookie"]
    assert f"leanstack_ui_{shared.port}=" in cookie and "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower() and "url=/" in answer.text
    token = shared.url.partition("token=")[2]
    assert token not in answer.text and token not in cookie
    assert stranger.get("/").status_code == 200


@pytest.mark.security("A web page that rebinds its name to 127.0.0.1 is refused")
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1:{port}.evil.example", ""]
)
@pytest.mark.parametrize("path", ["/", "/api/choices", "/enter"])
def test_another_host_name_is_refused(shared: RunningPage, host: str, path: str) -> None:
    answer = shared.client.get(path, headers={"Host": host.format(port=shared.port)})
    assert answer.status_code == 403


def test_localhost_is_this_page_too(shared: RunningPage) -> None:
    headers = {"Host": f"localhost:{shared.port}", "Origin": f"http://localhost:{shared.port}"}
    assert shared.client.get("/api/choices", headers=headers).status_code == 200


@pytest.mark.security("Another site's page cannot ask for an operation")
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost:{port}", None]
)
def test_a_foreign_origin_is_refused(shared: RunningPage, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin.format(port=shared.port)}
    answer = shared.client.post("/api/operation", json={"kind": "up"}, headers=headers)
    assert answer.status_code == 403
    assert shared.client.get("/api/hosts/loopback").json()["state"] != "unknown", "nothing was started"


@pytest.mark.parametrize("path", [*PAGES[:4], "/api/nothing", "/static/nothing"])
def test_every_answer_keeps_the_browser_strict(shared: RunningPage, path: str) -> None:
    headers = shared.client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_the_page_has_no_script_style_or_address_that_its_policy_forbids() -> None:
    for file in (REPO / "remote" / "ui" / "static").iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//cdn" not in text and "https://" not in text and "http://" not in text, file
        if file.suffix == ".html":
            assert not re.search(r"\s(style|on\w+)=", text), file
            assert "<script>" not in text and "<style" not in text


def test_it_listens_on_127_0_0_1_only(shared: RunningPage) -> None:
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", shared.port), timeout=1):
        pass


# What may be named


@pytest.mark.parametrize("name", ["nowhere", "..", "%2e%2e", "-oProxyCommand=x", "loopback%00", "a%2Fb"])
def test_an_unknown_host_is_not_found(shared: RunningPage, name: str) -> None:
    assert shared.client.get(f"/api/hosts/{name}").status_code in (401, 404)


@pytest.mark.parametrize(
    ("order", "word"),
    [
        ({}, "kind"),
        ({"kind": "rm"}, "kind"),
        ({"kind": "bench", "host": "nowhere", "profile": "decode_64_256"}, "no host named 'nowhere'"),
        ({"kind": "bench", "host": "loopback", "profile": "../x"}, "profile"),
        ({"kind": "bench", "host": "loopback"}, "profile"),
        ({"kind": "bench", "host": ["loopback"], "profile": "decode_64_256"}, "host"),
        ({"kind": "serve", "host": "loopback", "slots": "1"}, "slots"),
        ({"kind": "serve", "host": "loopback", "slots": True}, "slots"),
        ({"kind": "serve", "host": "loopback", "pack": "/etc"}, "takes no pack"),
        ({"kind": "baseline-up", "host": "loopback", "system": "--help"}, "system"),
        ({"kind": "compare", "host": "loopback", "system": "vllm", "profile": 3}, "profile"),
    ],
)
def test_an_order_with_a_name_from_no_list_is_a_400_that_names_the_field(
    shared: RunningPage, order: dict[str, Any], word: str
) -> None:
    answer = shared.post("/api/operation", order)
    assert answer.status_code == 400 and word in answer.json()["error"]["message"]
    assert (
        not (shared.folder / "argv.jsonl").exists()
        or "remote.bench" not in (shared.folder / "argv.jsonl").read_text()
    )


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"[]", "application/json"), (b"{", "application/json"), (b"[" * 9000, "application/json"),
     (b"{}", "text/plain"), (b" " * 70_000, "application/json")],
)  # fmt: skip
def test_a_body_that_is_no_small_json_object_is_a_400(shared: RunningPage, body: bytes, kind: str) -> None:
    headers = {"Origin": shared.base, "Content-Type": kind}
    assert shared.client.post("/api/operation", content=body, headers=headers).status_code == 400


@pytest.mark.security("No path of a request reaches a file outside the page's own and the results")
@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2f..%2fchoices.py", "/static/../app.py", "/static/%2e%2e/app.py", "/static/page.js/..",
        "/static//etc/passwd", "/api/runs/../../x", "/api/runs/%2e%2e/%2e%2e/etc",
        "/api/runs/loopback/..%2f..%2f..%2f..%2fetc/passwd", "/api/runs/loopback/decode_64_256/%2e%2e",
        "/api/runs/loopback/decode_64_256/.hidden", "/api/runs/loopback/decode_64_256/linked",
        "/api/runs/loopback/decode_64_256/linked/plot.png", "/api/runs/a%00b/c/d",
        f"/api/runs/{'/'.join(RUN)}/run.json", f"/api/runs/{'/'.join(RUN)}/..%2frun.json",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folders(shared: RunningPage, path: str) -> None:
    linked = shared.folder / "results" / "v1" / "loopback" / "decode_64_256" / "linked"
    if not linked.is_symlink():
        linked.symlink_to(REPO / "results" / "v1" / Path(*RUN))
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as raw:  # a client would tidy it
        cookie = "; ".join(f"{name}={value}" for name, value in shared.client.cookies.items())
        lines = (f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{shared.port}", f"Cookie: {cookie}")
        raw.sendall("\r\n".join((*lines, "Connection: close", "", "")).encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"404", b"400"), answer[:200]


# What was measured


def test_the_history_has_rows_series_and_what_cannot_be_read(shared: RunningPage) -> None:
    found = shared.client.get("/api/history?anew=1").json()
    assert [(row["host"], row["profile"], row["id"]) for row in found["rows"]] == [RUN]
    (one,) = found["series"]
    assert (one["host"], one["profile"], one["contract"]) == ("loopback", "decode_64_256", "tiny-cpu")
    (point,) = one["points"]
    assert point[1] == found["rows"][0]["tokens_per_s_median"] and point[2:] == [True, RUN[2]]
    assert found["broken_total"] == 1 and "run.json" in found["broken"][0]["problem"]
    assert found["hosts"] == ["loopback"] and (found["page"], found["pages"]) == (1, 1)


@pytest.mark.parametrize("query", ["host=nowhere", "profile=../x", "page=0", "page=x", "page=-1"])
def test_a_history_of_what_is_not_there_is_a_400(shared: RunningPage, query: str) -> None:
    assert shared.client.get(f"/api/history?{query}").status_code == 400


def test_a_run_is_shown_with_its_facts_and_its_plot(shared: RunningPage) -> None:
    shown = shared.client.get(f"/api/runs/{'/'.join(RUN)}").json()
    assert shown["plot"] and dict(shown["facts"])["status"] == "ok"
    assert {one["name"] for one in shown["metrics"]} >= {"TTFT", "TPOT", "ITL"}
    plot = shared.client.get(f"/api/runs/{'/'.join(RUN)}/plot.png")
    assert plot.headers["content-type"] == "image/png" and plot.content.startswith(b"\x89PNG")


def test_a_run_that_cannot_be_read_says_why(shared: RunningPage) -> None:
    answer = shared.client.get("/api/runs/loopback/decode_64_256/20261121T000000.000Z-0123456")
    assert answer.status_code == 422 and "run.json" in answer.json()["error"]["message"]
    assert (
        shared.client.get("/api/runs/loopback/decode_64_256/20261121T000000.000Z-7654321").status_code == 404
    )


# One operation at a time


def test_an_operation_tells_its_progress_and_its_run(page: RunningPage) -> None:
    assert page.measure("decode_64_256").status_code == 202
    ended, lines = page.ended()
    assert ended["state"] == "done" and ended["exit_code"] == 0 and lines == ["remote.bench begins"]
    assert ended["command"] == "invoke remote.bench --host loopback --profile decode_64_256"
    assert ended["run"] == ["loopback", "decode_64_256", "20261121T000000.000Z-0123456"]
    assert ["label", "exploratory"] in ended["facts"] and "secret" not in str(ended)


def test_a_second_operation_gets_409_and_what_runs(page: RunningPage) -> None:
    page.measure("decode_64_512")
    prompt = {"prompt": "x", "tokens": 64, "left": {"host": "loopback", "system": "leanserve"}}
    for refused in (
        page.measure("decode_64_256"),
        page.begin("up"),
        page.post("/api/side-by-side", prompt | {"right": {"host": "loopback", "system": "vllm"}}),
    ):
        assert refused.status_code == 409
        assert refused.json()["operation"]["title"] == "Measure decode_64_512 on loopback"
        assert "one operation at a time" in refused.json()["error"]["message"]


def test_of_many_who_ask_at_once_one_gets_it(page: RunningPage) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(page.measure("decode_64_512").status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [202] + [409] * 7


def test_a_cancelled_operation_ends_with_what_the_verb_said_and_the_next_one_runs(page: RunningPage) -> None:
    page.measure("decode_64_512")
    page.says("until it is interrupted")
    assert page.post("/api/operation/cancel").json()["state"] == "cancelling"
    ended, _ = page.ended()
    assert (ended["state"], ended["exit_code"]) == ("cancelled", 130)
    assert ended["message"] == "interrupted; the measurement and its service were stopped"
    assert page.measure("decode_64_256").status_code == 202


def test_a_verb_that_is_deaf_to_ctrl_c_is_ended_with_its_children(page: RunningPage) -> None:
    page.measure("decode_64_256_b8")
    page.says("deaf")
    page.post("/api/operation/cancel")
    ended, _ = page.ended()
    assert (ended["state"], ended["exit_code"]) == ("cancelled", 128 + signal.SIGTERM)
    none_alive(page.pids())


def test_there_is_nothing_to_cancel_when_nothing_runs(page: RunningPage) -> None:
    assert page.post("/api/operation/cancel").status_code == 409


@pytest.mark.parametrize(
    ("order", "state", "code", "message"),
    [
        ({"kind": "serve", "slots": 1}, "failed", 4, "no pack on loopback; run: invoke remote.pack"),
        ({"kind": "compare", "system": "vllm", "profile": "prefill_1024_64"}, "invalid", 7,
         "throttled: the clock fell to half"),
    ],
)  # fmt: skip
def test_a_failure_is_told_as_the_command_line_tells_it(
    page: RunningPage, order: dict[str, Any], state: str, code: int, message: str
) -> None:
    page.post("/api/operation", order | {"host": "loopback"})
    ended, _ = page.ended()
    assert (ended["state"], ended["exit_code"], ended["message"]) == (state, code, message)


def test_a_page_that_comes_later_hears_the_operation_from_its_start(page: RunningPage) -> None:
    page.measure("decode_64_256")
    page.ended()
    ended, _ = page.ended()
    assert ended["state"] == "done"


@pytest.mark.fault("Ctrl-C", "ui")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("profile", ["decode_64_512", "decode_64_256_b8"])
def test_the_servers_end_leaves_no_child(page: RunningPage, number: signal.Signals, profile: str) -> None:
    page.measure(profile)
    until(lambda: len(page.pids()), lambda count: count >= (2 if profile.endswith("b8") else 1))
    page.says("until it is interrupted" if profile == "decode_64_512" else "deaf")
    assert page.stop(number) == 0
    none_alive(page.pids())


# Side by side


def ask_both(page: RunningPage, **changed: Any) -> dict[str, Any]:
    ours = {"host": "loopback", "system": "leanserve"}
    return {"prompt": "word", "tokens": 64, "left": ours, "right": ours | {"system": "vllm"}} | changed


def test_both_columns_stream_with_their_figures_and_no_token_reaches_the_page(page: RunningPage) -> None:
    with fake_service(page.folder) as service:
        answer = page.post("/api/side-by-side", ask_both(page))
        assert "error" not in answer.text, answer.text
        assert service.seen == [f"Bearer {TOKEN}"] * 2 and TOKEN not in answer.text
    documents = [httpx.Response(200, text=line).json() for line in answer.text.splitlines() if line]
    for side in ("left", "right"):
        mine = [document for document in documents if document["side"] == side]
        text = "".join(document["text"] for document in mine if document["event"] in ("text", "end"))
        assert text == "word0 word1 word2 word3 word4 "
        end = mine[-1]
        assert (end["event"], end["tokens"], end["finish"]) == ("end", 5, "length")
        assert end["ttft_ms"] > 0 and end["tpot_ms"] >= 0 and end["tokens_per_s"] > 0
    words = [line for line in (page.folder / "argv.jsonl").read_text().splitlines() if "forward" in line]
    assert len(words) == 2 and sum('"--system", "vllm"' in line for line in words) == 1


def test_one_after_the_other_means_that_the_right_column_waits(page: RunningPage) -> None:
    with fake_service(page.folder):
        answer = page.post("/api/side-by-side", ask_both(page, together=False))
    assert "error" not in answer.text, answer.text
    sides = [line for line in answer.text.splitlines() if '"text"' in line and "word" in line]
    assert "left" in sides[0] and "right" in sides[-1]
    assert [("left" in line) for line in sides] == sorted((("left" in line) for line in sides), reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [{"prompt": ""}, {"prompt": 3}, {"prompt": "x" * 9000}, {"tokens": 65}, {"left": {"host": "x"}},
     {"right": {"host": "loopback", "system": "gpt"}}, {"left": None}, {"together": "yes"}],
)  # fmt: skip
def test_a_prompt_for_what_is_not_there_is_a_400(shared: RunningPage, wrong: dict[str, Any]) -> None:
    assert shared.post("/api/side-by-side", ask_both(shared, **wrong)).status_code == 400


def test_a_page_that_leaves_ends_its_streams_and_the_desk_is_free(page: RunningPage) -> None:
    gate = threading.Event()
    with fake_service(page.folder, gate):
        headers = {"Origin": page.base}
        with page.client.stream("POST", "/api/side-by-side", json=ask_both(page), headers=headers) as stream:
            lines = stream.iter_lines()  # kept: an iterator that is let go closes the connection
            assert any("word0" in line for line in lines)
            assert page.measure("decode_64_256").status_code == 409
        until(lambda: page.measure("decode_64_256").status_code, lambda code: code == 202, within_s=10)


def test_cancelling_a_stream_cuts_both_columns(page: RunningPage) -> None:
    gate = threading.Event()
    with fake_service(page.folder, gate):
        headers = {"Origin": page.base}
        with page.client.stream("POST", "/api/side-by-side", json=ask_both(page), headers=headers) as stream:
            lines = stream.iter_lines()
            assert any("word0" in line for line in lines)
            assert page.post("/api/operation/cancel").status_code == 202
            assert sum("cancelled" in line for line in lines) == 2
        ended, _ = page.ended()
    assert ended["state"] == "cancelled"
    assert page.stop() == 0
    none_alive(page.pids())
