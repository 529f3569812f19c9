"""The damaged arms over the real service with the demo's pack, and OpenAI's own client as whoever asks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import REPO, until

from lean.bearer import read_token
from lean.contracts import load_contract
from lean.costs.service import Running, running_service
from lean.leanpack.build import BuildRequest, build_pack
from lean.soak.controlled import controlled

ORACLE = Path(os.environ.get("LEAN_ORACLE_PYTHON", REPO / ".venvs" / "oracle" / "bin" / "python"))
ASKING = {"prompt": "The water in the lake", "temperature": 0, "max_tokens": 40, "min_tokens": 40}
SESSION = """
import json, sys
import openai
url, token = sys.argv[1:3]
client = openai.OpenAI(base_url=url + "/v1", api_key=token, max_retries=0)
model = client.models.list().data[0].id
asking = json.loads(sys.argv[3])
extra = {"min_tokens": asking.pop("min_tokens"), "ignore_eos": True}
streams = [
    [chunk.model_dump() for chunk in client.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, extra_body=extra, **asking)]
    for _ in range(2)
]
whole = [client.completions.create(model=model, extra_body=extra, **asking).model_dump() for _ in range(2)]
print(json.dumps({"streams": streams, "whole": whole}))
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    request = BuildRequest(
        model=REPO / "lean/demo/checkpoint",
        contract=load_contract("tiny-cpu"),
        packs=tmp_path_factory.mktemp("packs"),
        encoding="bf16",
        target="cpu",
    )
    with running_service(Path(build_pack(request).path), 1) as running:
        yield running


def token_of(service: Running) -> str:
    return read_token(service.token_file).decode()


def session(url: str, token: str) -> dict[str, Any]:
    """What OpenAI's client saw."""
    if not ORACLE.exists():
        pytest.skip(f"no oracle environment at {ORACLE}; set LEAN_ORACLE_PYTHON")
    done = subprocess.run(
        [str(ORACLE), "-c", SESSION, url, token, json.dumps(ASKING)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def test_openais_client_reads_a_cut_answer_as_a_short_one(service: Running, tmp_path: Path) -> None:
    with controlled(service.ready["url"], "cut", folder=tmp_path, every=2) as url:
        seen = session(url, token_of(service))
    for whole, cut in (seen["streams"], seen["whole"]):
        documents = [whole, cut] if isinstance(whole, list) else [[whole], [cut]]
        assert [chunks[-1]["usage"]["completion_tokens"] for chunks in documents] == [40, 20]
        endings = [[choice["finish_reason"] for chunk in c for choice in chunk["choices"]] for c in documents]
        assert [found[-1] for found in endings] == ["length", "length"]
        long, short = map(text_of, documents)
        assert short and long.startswith(short.rstrip("\ufffd")) and len(short) < len(long)


def test_openais_client_reads_a_slower_answer_as_it_is(service: Running, tmp_path: Path) -> None:
    with controlled(service.ready["url"], "slower", folder=tmp_path) as url:
        slower = session(url, token_of(service))
    sound = session(service.ready["url"], token_of(service))
    for streams in (slower["streams"], sound["streams"]):
        assert text_of(streams[0]) == text_of(streams[1]) == text_of(sound["whole"][:1])
    assert slower["streams"][0][-1]["usage"] == sound["streams"][0][-1]["usage"]


def test_a_client_that_leaves_frees_the_engines_slot(service: Running, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {token_of(service)}"}
    with (
        controlled(service.ready["url"], "slower", folder=tmp_path) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        health = client.get("/health").json()
        document = {**ASKING, "model": health["model"], "stream": True, "ignore_eos": True}
        document |= {"max_tokens": 900, "min_tokens": 900}
        cut = 'outcome="cancelled"} 1'
        for _ in range(5):  # on a busy machine an answer may be over before its client has left
            with client.stream("POST", "/v1/completions", json=document) as answer:
                next(answer.iter_raw())
            until(lambda: client.get("/health").json()["running"] == 0)
            if cut in client.get("/metrics").text:
                break
        assert cut in client.get("/metrics").text


def test_without_the_token_the_engine_itself_says_no(service: Running, tmp_path: Path) -> None:
    with controlled(service.ready["url"], "slower", folder=tmp_path) as url:
        answer = httpx.get(f"{url}/health", trust_env=False)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["error"]["code"] == "invalid_api_key"
