"""A piece of work of each kind behind a link that can be cut, and the oracle of whether it is whole."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import site_on

from remote.appliance.range_server import serving
from remote.appliance.relay import RelayRequest, relay
from remote.transfer import far_end
from remote.transfer.copy import pull, push
from remote.transfer.sync import sync

MIB = 1 << 20
SIZE = 40 * MIB


@dataclass(frozen=True)
class Work:
    """`run(connection)` copies `size` bytes over the link.

    `whole()`: the target is the new version. `untouched()`: it still is what it was before.
    """

    name: str
    size: int
    run: Callable[[Any], Any]
    whole: Callable[[], bool]
    untouched: Callable[[], bool]


def random_file(path: Path, size: int, seed: int = 1) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def copied(kind: str, method: Any, place: Path, tmp_path: Path) -> Work:
    here, there = tmp_path / "here" / "f", place / "f"
    source, target = (here, there) if kind == "push" else (there, here)
    new = random_file(source, SIZE)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("the old one")

    def run(connection: Any) -> Any:
        if kind == "push":
            return push(connection, source, str(target), method=method)
        return pull(connection, str(source), target, method=method)

    return Work(
        f"{kind} ({'rsync' if method == 'auto' else 'chunks'})",
        SIZE,
        run,
        lambda: sha256(target) == new,
        lambda: target.read_bytes() == b"the old one",
    )


def synced(tmp_path: Path) -> Work:
    repo = tmp_path / "repo"
    new = random_file(repo / "data.bin", SIZE)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *words], cwd=repo, check=True
        )
    done: list[Any] = []

    def run(connection: Any) -> Any:
        done.append(sync(connection, repo))
        return done[-1]

    return Work(
        "sync",
        SIZE,
        run,
        lambda: bool(done) and sha256(Path(done[-1].path, "data.bin")) == new,
        lambda: not done,
    )


def relayed(place: Path, url: str, new: str, state: Path) -> Work:
    target = place / "relayed"

    def run(connection: Any) -> Any:
        return relay(site_on(connection), RelayRequest(url=url, target=str(target)), state=state)

    return Work("relay", SIZE, run, lambda: sha256(target) == new, lambda: not target.exists())


@pytest.fixture(params=["push rsync", "push chunks", "pull rsync", "pull chunks", "sync", "relay"])
def work(request: pytest.FixtureRequest, place: Path, tmp_path: Path) -> Iterator[Work]:
    """Each kind of copy in turn, nothing of it done yet."""
    kind, _, method = str(request.param).partition(" ")
    if kind == "sync":
        yield synced(tmp_path)
    elif kind == "relay":
        new = random_file(tmp_path / "served" / "f", SIZE)
        with serving(tmp_path / "served" / "f") as url:
            yield relayed(place, url, new, tmp_path / "state")
    else:
        yield copied(kind, "auto" if method == "rsync" else "chunks", place, tmp_path)


@pytest.fixture
def carried_behind(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts lines before the program that is carried to the host and run there."""
    program = far_end.carried_source()
    return lambda lines: monkeypatch.setattr(far_end, "carried_source", lambda: f"{lines}\n{program}")


@pytest.fixture
def no_strays(place: Path) -> Iterator[None]:
    """Afterwards no child of this process is left, and no thread that it did not have before."""
    before = {thread.ident for thread in threading.enumerate()}
    yield
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    commands = [Path("/proc", pid, "cmdline") for pid in children]
    left = [path.read_bytes() for path in commands if path.exists()]
    assert [c for c in left if b"lean.relay" in c or c.startswith(b"rsync")] == []
    late = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert [name for name in late if name.startswith(("ssh-stdin", "ssh-probe", "relay"))] == []
