"""What a chip that nobody measured might do: arithmetic from a run on another one, and never a result.

A decode step is bound by what it reads. So the time of a token is its bytes over the chip's achievable read
bandwidth, over the share of that bandwidth that the same kernels reached where they were measured: each
kernel by its own share where a run measured them one by one, else the whole step by its share. What the
measured step took beside the kernels that read is carried over as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lean.contracts import Contract
from lean.kernel_sizes import sizes_of
from lean.leanserve.measured_run import newest_run
from lean.leanserve.step_reads import step_reads
from lean.weight_bytes import decode_bytes

PROFILE = "decode_64_256"
POSITION = 64 + 256 // 2  # the mean length of that profile
# GB/s of reads alone, where a run did not measure them. sm_90: a sum over 2 GiB, replayed as a graph on an
# H100 80GB HBM3, 2026-11-21; sm_121: GB10.
ACHIEVABLE_READ_GBS = {"sm_90": 3070.0, "sm_121": 231.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One stream of `decode_64_256` on a target. `label` says what it is; `basis` names the measured run.

    `share` is the whole step's. `kernel_shares` are what it is made of, where the run measured them, and
    `other_ms` what is carried over; `measured_read_gbs` is the bandwidth that the shares are of.
    """

    label: str
    target: str
    read_bytes_per_token: int
    achievable_read_gbs: float
    share: float
    token_ms: float
    tokens_per_second: float
    basis: str
    measured_read_gbs: float
    kernel_shares: dict[str, float]
    other_ms: float


def project(contract: Contract, results: Path) -> Projection | None:
    """From the newest run of the cuda runner in this encoding on another target whose bandwidth is known.

    None where there is none. Errors: `IntegrityError` naming a run that cannot be read.
    """
    measured = newest_run(results, PROFILE, contract.encoding, ACHIEVABLE_READ_GBS)
    if measured is None or contract.target not in ACHIEVABLE_READ_GBS or measured.target == contract.target:
        return None
    bandwidth = ACHIEVABLE_READ_GBS[contract.target] * 1e9
    needed = step_bytes(contract)
    token_s = needed / bandwidth / measured.share
    if measured.kernel_shares:
        reads = step_reads(sizes_of(contract), batch=1, positions=POSITION)
        shares = {own.kernel: measured.kernel_shares.get(own.kernel, measured.share) for own in reads}
        token_s = sum(own.read_bytes / shares[own.kernel] for own in reads) / bandwidth + measured.other_s
    return Projection(
        label="projection, not measured",
        target=contract.target,
        read_bytes_per_token=needed,
        achievable_read_gbs=bandwidth / 1e9,
        share=needed / bandwidth / token_s,
        token_ms=1e3 * token_s,
        tokens_per_second=1 / token_s,
        basis=measured.name,
        measured_read_gbs=measured.read_gbs,
        kernel_shares=dict(measured.kernel_shares),
        other_ms=1e3 * measured.other_s,
    )


def step_bytes(contract: Contract) -> int:
    """What a step reads at `POSITION`: every weight once, one row of the embedding aside, and the cache."""
    kv = 2 * contract.model.geometry.kv_values_per_token * POSITION
    return decode_bytes(contract.model, contract.encoding) + kv
