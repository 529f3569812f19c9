"""Bytes one decode step has to read at least, from the contract's geometry and encoding."""

from __future__ import annotations

from dataclasses import dataclass

from lean.contracts import BenchProfile, Contract

_KV_BYTES = 2  # the key-value cache is BF16 in every contract


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTraffic:
    """Bytes one decode step reads: every weight once per batch, the key-value cache once per stream."""

    weight_bytes: float
    kv_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes


def step_traffic(contract: Contract, profile: BenchProfile) -> StepTraffic:
    """Bytes of the mean decode step of a profile.

    The step that makes token t of N (t = 2..N) attends to P + t − 1 positions, P + N / 2 on average. The one
    position it writes is left out. Source: the roofline argument, bytes that must cross the memory bus once.
    """
    from lean.weight_bytes import decode_bytes  # the laptop reads results without `kernels`

    streams = min(profile.batch, profile.clients)
    positions = profile.prompt_tokens + profile.decode_tokens / 2
    return StepTraffic(
        weight_bytes=float(decode_bytes(contract.model, contract.encoding)),
        kv_bytes=streams * positions * contract.model.geometry.kv_values_per_token * _KV_BYTES,
    )
