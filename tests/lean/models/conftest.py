"""Hub-shaped servers on loopback, for the hubs' real client libraries to talk to."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "acme/tiny"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass
class Hub:
    """What a hub serves, and what it was asked.

    `stated` overrides the hash it claims for a file. `cut` is how many bytes of a body it sends before it
    drops the connection, once per file named; with `stall` it keeps the connection and says no more.
    """

    files: dict[str, bytes]
    url: str = ""
    token: str | None = None
    stated: dict[str, str] = field(default_factory=dict)
    listed: list[dict[str, Any]] | None = None
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: dict[str, list[int]] = field(default_factory=dict)
    broken_answer: bytes | None = None
    storage: str | None = None
    authorised: set[str] = field(default_factory=set)
    stall: threading.Event | None = None
    stalled: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Shared by both hubs: authorisation, JSON answers, bodies with Range, and connections that break."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.hub.asked.append((self.command, self.path))
        if self.headers.get("Authorization") or self.headers.get("Cookie"):
            self.hub.authorised.add(self.path)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer(401, {"error": "who are you"})
        elif self.hub.broken_answer is not None:
            self.plain(200, self.hub.broken_answer, {"Content-Type": "application/json"})
        else:
            self.route(unquote(address.path), {k: v[0] for k, v in parse_qs(address.query).items()})

    def route(self, path: str, query: dict[str, str]) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: Any) -> None:
        self.plain(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def plain(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self, name: str, headers: dict[str, str]) -> None:
        """Send a file, from the start of the requested range, or a part of it and then nothing more.

        With `storage` only say where it lies, as hubs do whose large files are in a cloud's storage.
        """
        if self.hub.storage is not None:
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(self.hub.files[name]))}
            self.plain(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/{name}"})
            return
        data = self.hub.files[name]
        start, status = 0, 200
        if requested := self.headers.get("Range"):
            first, _, last = requested.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            end = int(last) if last else len(data) - 1
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
            data = data[: end + 1]
        if self.command == "HEAD" or name not in self.hub.cut:
            if self.command != "HEAD":
                self.hub.sent.setdefault(name, []).append(start)
            self.plain(status, data[start:], headers)
            return
        self.hub.sent.setdefault(name, []).append(start)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[start : start + self.hub.cut.pop(name)])
        if self.hub.stall is not None:
            self.hub.stalled.set()
            self.hub.stall.wait(30)
        self.close_connection = True


class HuggingFaceHandler(Handler):
    """The routes of huggingface.co that its client uses: model info, tree, resolve."""

    def route(self, path: str, query: dict[str, str]) -> None:
        api = f"/api/models/{MODEL}"
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self.answer(200, {"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": [], "tags": []})
        elif path == f"{api}/tree/{COMMIT}":
            listed = [self.entry(name, data) for name, data in self.hub.files.items()]
            self.answer(200, self.hub.listed or listed)
        elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
            self.resolve(path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/"))
        else:
            self.plain(404, b"{}", {"X-Error-Code": "RepoNotFound", "Content-Type": "application/json"})

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        if not name.endswith(".safetensors"):
            return {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": self.hub.stated.get(name, git_sha1(data)),
            }
        stated = self.hub.stated.get(name, sha256(data))
        lfs = {"oid": stated, "size": len(data), "pointerSize": 134}
        return {"type": "file", "path": name, "size": len(data), "oid": "f" * 40, "lfs": lfs}

    def resolve(self, name: str) -> None:
        if name not in self.hub.files:
            self.plain(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = self.hub.files[name]
        etag = sha256(data) if name.endswith(".safetensors") else git_sha1(data)
        self.body(name, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"})


class ModelScopeHandler(Handler):
    """The routes of modelscope.cn that its client uses: the file listing and the download."""

    def route(self, path: str, query: dict[str, str]) -> None:
        api = f"/api/v1/models/{MODEL}/repo"
        if path == f"{api}/files" and query.get("Revision") in ("master", COMMIT):
            listed = [self.entry(name, data) for name, data in self.hub.files.items()]
            self.answer(200, {"Code": 200, "Success": True, "Data": {"Files": self.hub.listed or listed}})
        elif path == api and query.get("FilePath") in self.hub.files:
            name = query["FilePath"]
            self.body(name, {"ETag": f'"{sha256(self.hub.files[name])}"', "Accept-Ranges": "bytes"})
        else:
            self.answer(404, {"Code": 10010205001, "Success": False, "Message": "not found"})

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        stated = self.hub.stated.get(name, sha256(data))
        return {"Path": name, "Name": name, "Size": len(data), "Sha256": stated, "Type": "blob"}


class StorageHandler(Handler):
    """The cloud storage behind a hub: names are paths."""

    def route(self, path: str, query: dict[str, str]) -> None:
        self.body(path[1:], {"Accept-Ranges": "bytes"})


FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 400,
    "model-00002-of-00002.safetensors": bytes(reversed(range(256))) * 300,
    "README.md": b"# tiny",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"\x80\x04cos\nsystem\n",
    "modeling_tiny.py": b"import os",
    "onnx/model.onnx": b"onnx",
}


def serve(handler: type[Handler], hub: Hub) -> Iterator[Hub]:
    bound = type("Bound", (handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def huggingface_hub_server(isolated: None) -> Iterator[Hub]:
    yield from serve(HuggingFaceHandler, Hub(files=dict(FILES)))


@pytest.fixture
def modelscope_server(isolated: None) -> Iterator[Hub]:
    yield from serve(ModelScopeHandler, Hub(files=dict(FILES)))


@pytest.fixture
def storage_server() -> Iterator[Hub]:
    """Answers as `localhost`, another name and so another party than the hubs' 127.0.0.1."""
    for hub in serve(StorageHandler, Hub(files=dict(FILES))):
        hub.url = hub.url.replace("127.0.0.1", "localhost")
        yield hub


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caches, logins or proxies of the machine that runs the tests, and no waiting between tries."""
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    really_sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: really_sleep(min(seconds, 0.01)))
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0.01)


@pytest.fixture(params=["huggingface", "modelscope"])
def any_hub(request: pytest.FixtureRequest) -> tuple[Hub, Callable[..., Any]]:
    """Either hub, and a function that makes our source for it."""
    from lean.models.huggingface import HuggingFaceSource
    from lean.models.modelscope import ModelScopeSource

    if request.param == "huggingface":
        hub = request.getfixturevalue("huggingface_hub_server")
        return hub, lambda revision=None: HuggingFaceSource(id=MODEL, revision=revision, endpoint=hub.url)
    hub = request.getfixturevalue("modelscope_server")
    private = request.getfixturevalue("tmp_path") / "private"
    return hub, lambda revision=None: ModelScopeSource(
        id=MODEL, revision=revision, endpoint=hub.url, private=private
    )
