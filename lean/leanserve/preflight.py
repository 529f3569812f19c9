"""What `serve` checks before it imports or loads anything heavy: settings, token, ready file, port."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from lean.bearer import read_token
from lean.errors import UsageError
from lean.leanserve.listener import ReadyFile, bind
from lean.leanserve.plan import ComputeDtype

BYTES_PER_THREAD = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The command line of `serve`. `send_seconds`: how long a client may take nothing of its answer.

    `gate`: where the host's gate records lie; `allow_uncleared`: serve an encoding that none of them clears.
    `split_k`: parts of each head's share of the output projection, None for whole. `regions`: where the times
    of each step's regions go, None to measure none.
    """

    pack: Path
    runner: str
    slots: int
    port: int
    token_file: Path
    ready_file: Path
    threads: int | None
    dtype: ComputeDtype | None
    bucket: int | None
    queue: int
    drain_seconds: float
    send_seconds: float
    gate: tuple[Path, ...] = ()
    allow_uncleared: bool = False
    split_k: int | None = None
    regions: Path | None = None

    def __post_init__(self) -> None:
        if self.bucket is not None and self.bucket > self.slots:
            raise UsageError(f"--bucket {self.bucket} is more than --slots {self.slots}")


def default_threads(weight_bytes: int) -> int:
    """Threads that pay for a step which reads `weight_bytes`.

    Between threads stands a barrier per operation. On two cores of an EPYC the 10 MB demo decodes 250
    tokens/s with one thread and 40 with two.
    """
    return max(1, min(len(os.sched_getaffinity(0)), weight_bytes // BYTES_PER_THREAD))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A service that may start: its settings, its secret, and the socket it will listen on."""

    options: ServeOptions
    token: bytes
    ready_file: ReadyFile
    listener: socket.socket


def preflight(options: ServeOptions) -> Prepared:
    """Check and take what can be had at once. Errors: `PreflightError` naming the thing and the fix.

    An old ready file goes once the port is ours, so that whoever waits for it cannot meet the one of an
    earlier process, and a service that runs keeps its own when a second one fails to start.
    """
    ready_file = ReadyFile(options.ready_file)
    ready_file.check()
    token = read_token(options.token_file)
    listener = bind(options.port, send_seconds=options.send_seconds)
    ready_file.clear()
    return Prepared(options=options, token=token, ready_file=ready_file, listener=listener)
