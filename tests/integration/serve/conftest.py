"""The demo checkpoint packed once, and the real `serve` process over it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lean.contracts import load_contract
from lean.leanpack.build import BuildRequest, build_pack

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-for-the-integration-tests"
START_SECONDS = 90.0


@pytest.fixture(scope="session")
def demo_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as a pack."""
    contract = load_contract("tiny-cpu")
    request = BuildRequest(
        model=ROOT / "lean" / "demo" / "checkpoint",
        contract=contract,
        packs=tmp_path_factory.mktemp("packs"),
        encoding=contract.encoding,
        target=contract.target,
        overwrite=False,
    )
    return Path(build_pack(request).path)


@dataclass
class Served:
    """A `serve` process. `ready` is its ready file's document."""

    process: subprocess.Popen[bytes]
    folder: Path
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def client(self) -> httpx.Client:
        """A client with the token."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60.0)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, the one JSON document, and the lines on standard error."""
        code = self.process.wait(60.0)
        return code, json.loads((self.folder / "out").read_text()), (self.folder / "err").read_text()


def launch(folder: Path, pack: Path, *options: str, environment: dict[str, str] | None = None) -> Served:
    """Start `serve`; its ready file may not be there yet."""
    token = folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    command = [sys.executable, "-m", "lean.leanserve", "serve", "--pack", str(pack), "--threads", "1"]
    command += ["--token-file", str(token), "--ready-file", str(folder / "ready.json"), *options]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=err,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            start_new_session=True,
        )
    return Served(process=process, folder=folder, ready={})


def await_ready(served: Served) -> Served:
    """Wait for the ready file. Fails with the process's own words when it ends before."""
    deadline = time.monotonic() + START_SECONDS
    path = served.folder / "ready.json"
    while not path.exists():
        assert served.process.poll() is None, (served.folder / "err").read_text()
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.02)
    served.ready = json.loads(path.read_text())
    return served


@pytest.fixture
def start_service(tmp_path: Path, demo_pack: Path) -> Iterator[Callable[..., Served]]:
    """`start_service(*options)`: a ready process over the demo pack; `wait=False` does not wait for it."""
    with ExitStack() as stack:

        def start(*options: str, pack: Path = demo_pack, wait: bool = True, **keywords: Any) -> Served:
            folder = tmp_path / f"service{len(list(tmp_path.glob('service*')))}"
            folder.mkdir()
            served = launch(folder, pack, *options, **keywords)
            stack.callback(_end, served.process)
            return await_ready(served) if wait else served

        yield start


@pytest.fixture(scope="module")
def running_service(tmp_path_factory: pytest.TempPathFactory, demo_pack: Path) -> Iterator[Served]:
    """One process for a whole module: four slots, bucket pinned, so that every stream is reproducible."""
    served = launch(tmp_path_factory.mktemp("service"), demo_pack, "--slots", "4", "--bucket", "4")
    try:
        yield await_ready(served)
    finally:
        _end(served.process)


@pytest.fixture(scope="session")
def oracle_python() -> Path:
    """The interpreter of the oracle environment (openai, llama-benchy)."""
    path = Path(os.environ.get("LEAN_ORACLE_PYTHON", ROOT / ".venvs" / "oracle" / "bin" / "python"))
    if not path.exists():
        pytest.skip(f"no oracle environment at {path}; set LEAN_ORACLE_PYTHON")
    return path


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)
