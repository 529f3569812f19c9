"""The laptop's end: offers a listing, hears what the host lacks, and streams it chunk by chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lean.errors import TransferError
from lean.models.source import Listing
from lean.relay.origin import Changed, Origin, Version, shown
from lean.relay.spool import CHUNK, Spool, Wanted, chunks_of, version_id
from lean.transfer.channel import Channel

RESTARTS = 3  # of one file whose bytes change while they are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes of all wanted files that the host has, and what there is in all."""

    done: int
    total: int


class Sender:
    """One conversation. `urls` holds the address of every file of the listing, in its order."""

    def __init__(
        self,
        channel: Channel,
        origin: Origin,
        spool: Spool,
        urls: list[str],
        on_progress: Callable[[Progress], None],
        *,
        total: int,
    ) -> None:
        self._channel, self._origin, self._spool, self._urls = channel, origin, spool, urls
        self._on_progress = on_progress
        self._done, self._total = 0, total

    def run(self, listing: Mapping[str, Any], sizes: list[int]) -> dict[str, Any]:
        """Hold it to the end and return the host's report.

        Errors: `Refused` and `ChannelError` of the channel, `TransferError` for a file that never holds
        still, `UnreachableError` and `AuthError` of the origin.
        """
        self._channel.send({"listing": listing})
        wanted = self._asked_for(self._channel.receive()["missing"], sizes)
        versions = self._versions(wanted)
        for item in wanted:
            if versions[item.index].size != sizes[item.index]:
                raise TransferError(
                    f"{shown(item.url)}: {versions[item.index].size} bytes there, "
                    f"{sizes[item.index]} by its listing"
                )
        self._done = self._total - sum(version.size for version in versions.values())
        self._plan(wanted, versions)
        for at, item in enumerate(wanted):
            self._send_file(item, versions, wanted[at + 1 :])
        return dict(self._channel.receive()["report"])

    def _asked_for(self, missing: Any, sizes: list[int]) -> list[Wanted]:
        """What the host lacks. Errors: `TransferError` for anything that is no such list."""
        try:
            wanted = [
                Wanted(index=int(i), url=self._urls[int(i)], start=int(n), version=str(v))
                for i, n, v in missing
            ]
            good = all(item.index >= 0 and 0 <= item.start <= sizes[item.index] for item in wanted)
        except (TypeError, ValueError, IndexError):
            good, wanted = False, []
        if not good or len({item.index for item in wanted}) != len(wanted):
            raise TransferError("the host asks for files that were not offered")
        return wanted

    def _versions(self, wanted: list[Wanted]) -> dict[int, Version]:
        pool = ThreadPoolExecutor(8)
        asked = [pool.submit(self._origin.version, item.url) for item in wanted]
        try:
            return {
                item.index: self._channel.wait(future) for item, future in zip(wanted, asked, strict=True)
            }
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _plan(self, wanted: list[Wanted], versions: Mapping[int, Version]) -> None:
        ranged = [item for item in wanted if versions[item.index].ranges]
        self._spool.want(
            chain.from_iterable(
                chunks_of(item, versions[item.index], self._start(item, versions[item.index]))
                for item in ranged
            )
        )

    @staticmethod
    def _start(wanted: Wanted, version: Version) -> int:
        """Where to go on: what the host staged counts only if it is of this very version."""
        same = version_id(wanted.url, version) == wanted.version
        return wanted.start if version.ranges and same else 0

    def _send_file(self, wanted: Wanted, versions: dict[int, Version], after: list[Wanted]) -> None:
        done = self._done
        for _ in range(RESTARTS):
            version = versions[wanted.index]
            start = self._start(wanted, version)
            self._done = done
            self._count(start)
            name = version_id(wanted.url, version)
            self._channel.send({"file": wanted.index, "from": start, "size": version.size, "version": name})
            try:
                for data, sha256 in self._pieces(wanted, version, start):
                    self._channel.send({"bytes": len(data), "sha256": sha256})
                    self._channel.write(data)
                    self._count(len(data))
            except Changed:
                self._channel.send({"restart": True})
            else:
                self._channel.send({"end": True})
                if self._channel.receive().get("good"):
                    return
            # From the first byte, of whatever is there now; what was downloaded ahead may be of the past too.
            self._channel.beating(self._spool.abandon)
            wanted = Wanted(index=wanted.index, url=wanted.url)
            versions[wanted.index] = self._channel.beating(self._origin.version, wanted.url)
            self._plan([wanted, *after], versions)
        raise TransferError(f"{shown(wanted.url)}: changes while it is read, {RESTARTS} times now")

    def _count(self, size: int) -> None:
        self._done += size
        self._on_progress(Progress(done=self._done, total=self._total))

    def _pieces(self, wanted: Wanted, version: Version, start: int) -> Iterator[tuple[bytes, str]]:
        if not version.ranges:
            yield from _cut(self._beaten(self._origin.read_all(wanted.url, version)))
            return
        while start < version.size:
            found = self._spool.next()
            assert found is not None and found[0].wanted == wanted, "chunks come in the order of the files"
            chunk, future = found
            sha256 = self._channel.wait(future)
            yield self._channel.beating(self._spool.take, chunk, sha256), sha256
            start = chunk.end

    def _beaten(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._channel.beat()
            yield piece


def _cut(pieces: Iterator[bytes]) -> Iterator[tuple[bytes, str]]:
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= CHUNK:
            data = bytes(held[:CHUNK])
            del held[:CHUNK]
            yield data, hashlib.sha256(data).hexdigest()
    if held:
        yield bytes(held), hashlib.sha256(held).hexdigest()


def listing_document(listing: Listing, kind: str) -> dict[str, Any]:
    """A listing as it travels."""
    return {
        "kind": kind,
        "revision": listing.revision,
        "endpoint": listing.endpoint,
        "client": listing.client,
        "files": [[file.path, file.size, file.sha256, file.git_sha1] for file in listing.files],
    }
