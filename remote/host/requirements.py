"""What a host needs to serve its contract, held against the facts it reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lean.contracts import Contract, Host
from lean.errors import PreflightError
from lean.host_facts import COMPILER_RELEASE

GIB = 1 << 30
LEAST_DRIVER = 580  # the first driver branch that loads cubins of CUDA 13
ENVIRONMENT_BYTES = 8 * GIB  # a venv with torch, the compiler and the pip cache it was installed from


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorRow:
    """`fix` says what to do when not `ok`. A row that is not `required` never fails the report."""

    what: str
    need: str
    have: str
    ok: bool
    fix: str = ""
    required: bool = True
    exit_code: int = PreflightError.exit_code


def fact_rows(facts: dict[str, Any], host: Host, contract: Contract | None) -> list[DoctorRow]:
    """The rows a `lean.host_facts` document answers."""
    return [
        _rsync(facts),
        _disk(facts, contract),
        _memory(facts, contract),
        *_gpu(facts, host, contract),
        _toolkit(facts),
        _linger(facts),
        _foreign_kernels(facts),
    ]


def _rsync(facts: dict[str, Any]) -> DoctorRow:
    found = facts["tools"]["rsync"]
    return DoctorRow(
        what="rsync",
        need="rsync (else: slower 64 MiB chunks)",
        have=f"{found['flavour']} {found['version']}" if found else "missing",
        ok=found is not None,
        fix="install rsync there: `sudo apt install rsync`",
        required=False,
    )


def _disk(facts: dict[str, Any], contract: Contract | None) -> DoctorRow:
    need = ENVIRONMENT_BYTES + (2 * _weights(contract) if contract else 0)  # checkpoint and pack
    free = facts["disk"]["free"]
    return DoctorRow(
        what="disk",
        need=f"{_gib(need)} free",
        have=f"{_gib(free)} free of {_gib(facts['disk']['total'])}",
        ok=free >= need,
        fix="free space there, or put `root` of the host on a larger disk",
    )


def _memory(facts: dict[str, Any], contract: Contract | None) -> DoctorRow:
    need = GIB + (round(1.3 * _weights(contract)) if contract else 0)
    available = facts["memory"]["available"]
    have = facts["memory"]["total"] if available is None else available
    unified = any(gpu["unified_memory"] for gpu in facts["gpus"])
    return DoctorRow(
        what="memory",
        need=f"{_gib(need)} available",
        have="unknown"
        if have is None
        else f"{_gib(have)} available" + (" (unified with the GPU)" if unified else ""),
        ok=have is not None and have >= need,
        fix="stop what holds memory there; page cache counts as available",
    )


def _gpu(facts: dict[str, Any], host: Host, contract: Contract | None) -> list[DoctorRow]:
    gpus = facts["gpus"]
    target = contract.target if contract else None
    required = host.gpu == "auto" and target not in (None, "cpu")
    drivers = sorted({gpu["driver"] for gpu in gpus})
    missing = facts["gpu_error"] or "none"
    rows = [
        DoctorRow(
            what="driver",
            need=f"NVIDIA r{LEAST_DRIVER} or later" if required else "not needed for this contract",
            have=", ".join(drivers) or missing,
            ok=not required or (bool(drivers) and all(_major(driver) >= LEAST_DRIVER for driver in drivers)),
            fix="install or update the NVIDIA driver there",
            required=required,
        )
    ]
    if required and target is not None:
        wanted = f"{target.removeprefix('sm_')[:-1]}.{target[-1]}"
        rows.append(
            DoctorRow(
                what="gpu",
                need=f"compute capability {wanted} ({target})",
                have=", ".join(f"{gpu['name']} {gpu['compute_capability']}" for gpu in gpus) or missing,
                ok=any(gpu["compute_capability"] == wanted for gpu in gpus),
                fix="choose the contract of this machine's chip, or set `gpu: none`",
            )
        )
    return rows


def _toolkit(facts: dict[str, Any]) -> DoctorRow:
    found = {name: entry for name, entry in facts["toolkit"].items() if entry is not None}
    old = [name for name, entry in found.items() if _version(entry["version"]) < COMPILER_RELEASE]
    shown = ", ".join(
        f"{name}={entry['path']} ({entry['version'] or 'version unknown'})" for name, entry in found.items()
    )
    return DoctorRow(
        what="toolkit",
        need=f"no CUDA_HOME or CUDA_PATH, or {COMPILER_RELEASE[0]}.{COMPILER_RELEASE[1]} or later",
        have=shown or "neither is set",
        ok=not old,
        fix=f"unset {' and '.join(old)} there: tileiras would take that toolkit's older ptxas and fail",
        required=False,
    )


def _linger(facts: dict[str, Any]) -> DoctorRow:
    linger = facts["linger"]
    return DoctorRow(
        what="linger",
        need="on, so that systemd keeps jobs after logout (else: own sessions)",
        have={True: "on", False: "off", None: "no logind"}[linger],
        ok=linger is not False,
        fix="`loginctl enable-linger` there",
        required=False,
    )


def _foreign_kernels(facts: dict[str, Any]) -> DoctorRow:
    found = facts["foreign_kernels"]
    return DoctorRow(
        what="foreign kernels",
        need="no other package named `kernels` beside this Python",
        have="none" if found is None else f"kernels {found}",
        ok=found is None,
        fix="harmless while our own venv is used; else `pip uninstall kernels` in that Python",
        required=False,
    )


def _weights(contract: Contract) -> int:
    """Bytes in BF16, the checkpoint's form."""
    return 2 * contract.model.parameters


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if head.isdigit() else 0


def _version(text: str | None) -> tuple[int, ...]:
    parts = (text or "").split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
