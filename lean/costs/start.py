"""What starting the service costs beside a bare `import torch`: time to the first token, and memory.

The two run in turn, and every sample is kept. Resident memory is VmRSS of /proc/<pid>/status, read when the
process stands still: after the import, and after the first token.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lean.costs.service import running_service
from lean.errors import NotReadyError

_READY = "; import sys; print('ready', flush=True); sys.stdin.read()"
_IMPORT = "import torch" + _READY
_PRODUCT = "import torch; torch.mm(torch.ones(64, 64), torch.ones(64, 64))" + _READY


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSample:
    """One process: seconds from its start until it was ready, and its resident bytes then.

    `private_bytes` are those that no other process shares and no file backs.
    """

    seconds: float
    resident_bytes: int
    private_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCost:
    """Samples in the order they were taken, round by round. `pack_bytes`: size of the pack's files.

    `torch_product` also multiplies two matrices: the least that a process which uses torch must hold.
    """

    pack_bytes: int
    torch_import: tuple[StartSample, ...]
    torch_product: tuple[StartSample, ...]
    service: tuple[StartSample, ...]


def start_cost(pack: Path, *, rounds: int, threads: int) -> StartCost:
    """Start `import torch` and the service in turn, `rounds` times after one that does not count."""
    samples = [(_python(_IMPORT), _python(_PRODUCT), _serve(pack, threads)) for _ in range(rounds + 1)]
    imported, multiplied, served = zip(*samples[1:], strict=True)
    return StartCost(
        pack_bytes=sum(file.stat().st_size for file in pack.rglob("*") if file.is_file()),
        torch_import=imported,
        torch_product=multiplied,
        service=served,
    )


def _python(code: str) -> StartSample:
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise NotReadyError("python could not import torch; bootstrap the host")
        return _sample(process.pid, time.perf_counter() - started)


def _serve(pack: Path, threads: int) -> StartSample:
    with running_service(pack, threads) as service:
        assert service.ready["startup_seconds"]["first_token"] > 0
        return _sample(service.pid, service.seconds)


def _sample(pid: int, seconds: float) -> StartSample:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident = int(fields["VmRSS"].split()[0]) << 10
    return StartSample(
        seconds=seconds, resident_bytes=resident, private_bytes=int(fields["RssAnon"].split()[0]) << 10
    )
