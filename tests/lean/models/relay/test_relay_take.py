"""The host's end against a laptop that says what it must not: the test, over a pair of pipes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lean.models.fetch import fetch
from lean.relay.take import offered_by
from lean.transfer.channel import Channel, Refused

MODEL, REVISION, BODY = "acme/tiny", "0123456789abcdef0123456789abcdef01234567", b"a body"


class Laptop:
    """The laptop's end of the channel, and what becomes of the host's."""

    def __init__(
        self, models: Path, down: tuple[int, int], up: tuple[int, int], pool: ThreadPoolExecutor
    ) -> None:
        self.channel = Channel(up[0], down[1], idle_s=5)
        theirs = Channel(down[0], up[1], idle_s=5)
        self.host: Future[Any] = pool.submit(self._take, theirs, models)

    @staticmethod
    def _take(channel: Channel, models: Path) -> Any:
        source = offered_by(channel)
        return fetch(source, MODEL, models, on_missing=source.expect)

    def offer(self) -> list[Any]:
        """Offer one file; what the host lacks of it."""
        files = [["config.json", len(BODY), hashlib.sha256(BODY).hexdigest(), None]]
        listing = {"kind": "hf", "revision": REVISION, "endpoint": None, "client": "test", "files": files}
        self.channel.send({"listing": listing})
        missing: list[Any] = self.channel.receive()["missing"]
        return missing

    def begin(self, start: int) -> None:
        self.channel.send({"file": 0, "from": start, "size": len(BODY), "version": "v"})

    def chunk(self, data: bytes) -> None:
        self.channel.send({"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        self.channel.write(data)

    def refusal(self) -> str:
        self.channel.flush()
        with pytest.raises(Refused) as refused:
            self.host.result(20)
        return str(refused.value)


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    down, up = os.pipe(), os.pipe()
    with ThreadPoolExecutor(1) as pool:
        yield Laptop(tmp_path, down, up, pool)
        os.close(down[1])  # a host that still listens hears the end
    for end in (down[0], *up):
        os.close(end)


def staged(tmp_path: Path) -> Path:
    return tmp_path / "acme__tiny" / f".{REVISION}.partial" / "config.json"


def test_more_bytes_than_were_announced_end_the_relay(laptop: Laptop) -> None:
    laptop.offer()
    laptop.begin(0)
    laptop.chunk(BODY + b" and more")
    assert "more bytes arrive than were announced" in laptop.refusal()


def test_going_on_where_nobody_said_ends_the_relay(laptop: Laptop) -> None:
    assert laptop.offer() == [[0, 0, ""]]
    laptop.begin(3)
    assert "nobody has said that 3 bytes of it are here" in laptop.refusal()


def test_staged_bytes_that_went_away_meanwhile_end_the_relay(laptop: Laptop, tmp_path: Path) -> None:
    path = staged(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[:3])
    notes = [{"version": "v"}, [3, hashlib.sha256(BODY[:3]).hexdigest()]]
    path.with_name("config.json.relay").write_text("\n".join(map(json.dumps, notes)) + "\n")
    assert laptop.offer() == [[0, 3, "v"]]
    os.truncate(path, 1)
    laptop.begin(3)
    assert "what was staged is gone" in laptop.refusal()


def test_a_file_that_came_short_is_asked_for_once_more(laptop: Laptop, tmp_path: Path) -> None:
    laptop.offer()
    laptop.begin(0)
    laptop.chunk(BODY[:3])
    laptop.channel.send({"end": True})
    assert laptop.channel.receive() == {"good": False}
    laptop.begin(0)
    laptop.chunk(BODY)
    laptop.channel.send({"end": True})
    laptop.channel.flush()
    assert Path(laptop.host.result(20).path, "config.json").read_bytes() == BODY
