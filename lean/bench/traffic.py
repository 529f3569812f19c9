"""Bytes one decode step has to read at least, from the contract's geometry."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from lean.contracts import BenchProfile, Contract

# nvfp4: a 4-bit value and one e4m3 scale per 16 values. int4-codebook has no fixed width until its groups are
# fixed.
_WEIGHT_BYTES = {"bf16": Fraction(2), "fp8-e4m3": Fraction(1), "nvfp4": Fraction(9, 16)}
_KV_BYTES = 2  # the key-value cache is BF16 in every contract


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTraffic:
    """Bytes one decode step reads: every weight once per batch, the key-value cache once per stream."""

    weight_bytes: float
    kv_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes


def step_traffic(contract: Contract, profile: BenchProfile) -> StepTraffic | None:
    """Bytes of the mean decode step of a profile, or None where the encoding has no fixed width.

    The step that makes token t of N (t = 2..N) attends to P + t − 1 positions, P + N / 2 on average. The one
    position it writes is left out. Source: the roofline argument, bytes that must cross the memory bus once.
    """
    width = _WEIGHT_BYTES.get(contract.encoding)
    if width is None:
        return None
    positions = profile.prompt_tokens + profile.decode_tokens / 2
    return StepTraffic(
        weight_bytes=float(contract.model.decode_parameters * width),
        kv_bytes=profile.batch * positions * contract.model.geometry.kv_values_per_token * _KV_BYTES,
    )
