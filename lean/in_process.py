"""The document of a measurement in the serving process, without HTTP: `in-process/v2`.

`lean.leanserve measure` makes it, `lean.bench` keeps it in a run's record, and the projection reads it there.
Standard library and `lean.contracts` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lean.contracts import BenchProfile

CACHE_BYTES = 256 << 20  # more than twice what any chip here caches (L2: GB10 24 MiB, H100 50 MiB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All streams of a profile once: prompts together, then steps together.

    `first_token_s`: seconds until the first tokens of all streams are there. `step_s`: of each decode step.
    `total_s`: from the prompts to the last token.
    """

    first_token_s: float
    step_s: tuple[float, ...]
    total_s: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBandwidth:
    """Reading and nothing else: `launches` of one kernel pass over `read_bytes` of the model's own weights.

    `seconds`: of a pass, for every sample; a sample is `replays` of one graph and a wait for the last, on the
    host's clock. `gbs`: of the median sample.
    """

    read_bytes: int
    launches: int
    replays: int
    seconds: tuple[float, ...]
    gbs: float

    def __post_init__(self) -> None:
        _positive(self, "read_bytes", "launches", "replays", "gbs")

    @property
    def beyond_caches(self) -> bool:
        """Whether a pass is so long that its end has driven its start out of every cache."""
        return self.read_bytes >= CACHE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpeed:
    """One kernel's launches of one decode step, without the kernels between them.

    `read_bytes`: of weights and cached keys and values, a step; activations come out of the chip's cache and
    are left out. `seconds`: of a step's launches, for every sample of `replays` steps, on the host's clock.
    `swept`: the caches were filled with something else before each step (see `InProcess`), and what that
    takes by itself was taken off; else it reads nothing, or at least `CACHE_BYTES`, which drive out their own
    beginning. `step_s` is the median; `gbs` and `share` of the read bandwidth are None where nothing is read.
    """

    kernel: str
    launches: int
    read_bytes: int
    replays: int
    swept: bool
    seconds: tuple[float, ...]
    step_s: float
    gbs: float | None
    share: float | None

    def __post_init__(self) -> None:
        _positive(self, "launches", "replays")


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """What was measured, every sample of it; medians over the rounds that followed the warm-up.

    `runner`: its own facts. `read_bandwidth` and `kernels` are of a runner with kernels of our own, None for
    any other. `release` is the code that measured, `host` the machine as `lean.host_facts` names it; both and
    `finished_utc` are None in the first documents of this version, which belong to no run but theirs.

    Steps are timed as a service runs them, one behind the other: of a model that fits into a cache they find
    the weights there. Single kernels never do: `sweep_bytes` of a buffer that holds nothing of the model are
    read before each step of one that is `swept`. It is None where no kernels were measured, and in the first
    documents, which swept with the weights' first `CACHE_BYTES`.
    """

    SCHEMA: ClassVar[str] = "in-process/v2"

    started_utc: str
    contract: str
    lock: str
    weights: str
    profile: BenchProfile
    runner: dict[str, Any]
    rounds: tuple[Round, ...]
    tokens_per_second: float
    first_token_ms: float
    step_ms: float
    read_bandwidth: ReadBandwidth | None = None
    kernels: tuple[KernelSpeed, ...] | None = None
    release: str | None = None
    host: str | None = None
    finished_utc: str | None = None
    sweep_bytes: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "tokens_per_second", "first_token_ms", "step_ms")


def _positive(measured: object, *names: str) -> None:
    for name in names:
        if not getattr(measured, name) > 0:
            raise ValueError(f"{name}: expected a positive number, got {getattr(measured, name)}")
