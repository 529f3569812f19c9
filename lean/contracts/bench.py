"""A bench profile: how many tokens in, how many out, how many at once, how often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lean.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchProfile:
    """`requests` measured requests per stream follow `warmup_requests` that are recorded and not counted.

    `batch` streams run at once, each a closed loop of exact `prompt_tokens` in and `decode_tokens` out.
    """

    SCHEMA: ClassVar[str] = "bench/v1"

    id: str
    prompt_tokens: int
    decode_tokens: int
    batch: int
    warmup_requests: int
    requests: int
    seed: int

    def __post_init__(self) -> None:
        least_of = {"prompt_tokens": 1, "decode_tokens": 2, "warmup_requests": 1, "requests": 3}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.batch not in (1, 2, 4, 8):
            raise ValueError(f"batch: expected 1, 2, 4 or 8, got {self.batch}")

    def with_counts(self, *, requests: int | None, warmup_requests: int | None) -> BenchProfile:
        """The profile with other counts, None leaving its own. Errors: `ContractError`."""
        try:
            return replace(
                self,
                requests=self.requests if requests is None else requests,
                warmup_requests=self.warmup_requests if warmup_requests is None else warmup_requests,
            )
        except ValueError as error:
            raise ContractError(f"profile {self.id}: {error}") from None
