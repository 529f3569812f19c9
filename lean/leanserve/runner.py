"""The small protocol every backend implements: prefill into a slot, decode steps, move a cursor, state facts.

No torch here and none in the protocol: tokens are ints, and the `cuda` runner satisfies it from a pack's
cubins alone. Sampling belongs to the runner, because on a GPU the sampled token stays on the device
between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lean.leanserve.region_times import RegionLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of one stream are chosen. `temperature == 0` is greedy, the lowest index on ties.

    Draw number i of a stream depends on (`seed`, position i) only, never on neighbours or earlier draws,
    so that a restored cursor replays the same tokens. `top_k == 0` and `top_p == 1` mean no limit. The
    tokens in `suppress` are masked out while fewer than `suppress_steps` tokens were generated
    (min_tokens). `top_logprobs` asks for that many alternatives with each choice; None asks for no log
    probabilities at all. `max_tokens`: nobody will ask for more, so a runner need not work ahead of it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    suppress: tuple[int, ...] = ()
    suppress_steps: int = 0
    top_logprobs: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Prompt tokens for one slot, to be appended at its cursor.

    `sampling` comes with the prompt's last piece: choose the first token then, and arm the slot for decode.
    """

    slot: int
    tokens: Sequence[int]
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One chosen token. Log probabilities are natural, of the model before temperature and masks."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where a slot stands. Restoring it is O(1): later cache rows stay where they are and are overwritten."""

    length: int
    generated: int
    last_token: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerFacts:
    """What runs and where; written into every result.

    `max_length` is in positions per slot. `operator_coverage` is the share of a step's bytes on our own
    kernels (0..1). `prefill_tile`: prompt chunks are multiples of it, which keeps a stream the same
    however it was chunked. `prefill_grain`: a prompt takes the time of the next multiple of it, in tokens.
    `split_k`: parts that a decode step cuts each head's share of the output projection into, None for whole.
    """

    name: str
    device: str
    compute_dtype: str
    slots: int
    buckets: tuple[int, ...]
    max_length: int
    vocab: int
    prefill_tile: int
    prefill_grain: int
    threads: int
    operator_coverage: float
    load_seconds: float
    split_k: int | None = None


class Runner(Protocol):
    """A backend. One thread calls it; it never blocks on anything but its own device."""

    @property
    def facts(self) -> RunnerFacts: ...

    def prefill(self, pieces: Sequence[Piece]) -> list[Choice | None]:
        """Append pieces of prompts, no two of one slot; the first token of each that came with `sampling`.

        A stream's tokens do not depend on what went in beside it, nor on how its prompt was cut.
        """

    def decode(self, bucket: int, steps: int) -> list[dict[int, Choice]]:
        """Run `steps` steps of `bucket` rows, one {slot: choice} each; armed slots below `bucket` advance."""

    def time_regions(self, log: RegionLog | None) -> None:
        """Write the times of each further step to `log`; with None, no more, once the last are written.

        A step that is timed takes longer: its kernels no longer start before the ones they follow end.
        """

    def release(self, slot: int) -> None:
        """Empty the slot: cursor to zero, not armed. Its stale rows must not influence anybody."""

    def snapshot(self, slot: int) -> Cursor: ...

    def restore(self, slot: int, cursor: Cursor) -> None: ...
