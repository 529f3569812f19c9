"""What the run records of earlier measurements say of their chips, read as files that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lean.errors import IntegrityError
from lean.files.safe_path import json_object, read_small
from lean.in_process import CACHE_BYTES

MAX_RUN_BYTES = 256 << 20
LEAST, MOST = 1e-9, 1e18  # of any unit here; no machine is beyond, and no quotient of two overflows

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """What a run says of its chip: the whole step's share of `read_gbs`, and each kernel's, if known.

    `other_s`: what the step took beside the kernels that read. `name` is its folder below the results.
    """

    started: str
    name: str
    target: str
    read_gbs: float
    share: float
    kernel_shares: Mapping[str, float] = field(default_factory=dict)
    other_s: float = 0.0


def newest_run(
    results: Path, profile: str, encoding: str, read_gbs: Mapping[str, float]
) -> MeasuredRun | None:
    """The newest sound run of the cuda runner on a target of `read_gbs`, GB/s of reads alone by target.

    Only runs of weights in this encoding and without options count: others have other kernels; and only
    rounds of as many streams as slots: what the steps of another load read is not known. One that
    measured every kernel comes before one that did not. Errors: `IntegrityError` naming a record that cannot
    be read, and the field.
    """
    found = []
    for path in results.glob(f"v1/*/{profile}/*/run.json"):
        run = json_object(read_small(path.parent, path.name, MAX_RUN_BYTES), str(path))
        try:
            if _is_usable(run, encoding, read_gbs):
                found.append(_measured(run, path.parent.relative_to(results).as_posix(), read_gbs))
        except ValueError as error:
            raise IntegrityError(f"{path}: no run record: {error}") from None
    return max(found, key=lambda one: (bool(one.kernel_shares), one.started, one.name)) if found else None


def _is_usable(run: Mapping[str, Any], encoding: str, read_gbs: Mapping[str, float]) -> bool:
    backend = _field(run, "backend", dict)
    if _field(run, "status", str) != "ok" or _field(backend, "name", str) != "cuda" or backend.get("options"):
        return False
    if run.get("load") is not None:
        return False
    contract = _field(run, "contract", dict)
    return _field(contract, "encoding", str) == encoding and _field(contract, "target", str) in read_gbs


def _measured(run: Mapping[str, Any], name: str, read_gbs: Mapping[str, float]) -> MeasuredRun:
    target = run["contract"]["target"]
    rate = _number(_field(_field(run, "metrics", dict), "bytes_per_s", dict), "median")
    inside = {} if run.get("in_process") is None else _field(run, "in_process", dict)
    gbs, kernels = read_gbs[target], []
    if inside.get("read_bandwidth") is not None:
        reading = _field(inside, "read_bandwidth", dict)
        measured_gbs = _number(reading, "gbs")
        if _number(reading, "read_bytes") >= CACHE_BYTES:  # with less it is as fast as a cache
            gbs, kernels = measured_gbs, _reading_kernels(inside)
    reading_s = sum(_number(kernel, "step_s") for kernel in kernels)
    return MeasuredRun(
        started=_field(run, "started_utc", str),
        name=name,
        target=target,
        read_gbs=gbs,
        share=rate / (gbs * 1e9),
        kernel_shares={_field(kernel, "kernel", str): _number(kernel, "share") for kernel in kernels},
        other_s=max(0.0, _number(inside, "step_ms") / 1e3 - reading_s) if kernels else 0.0,
    )


def _reading_kernels(inside: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The kernels that read and so have a share; each has one name, and it is the only one of that name."""
    if inside.get("kernels") is None:
        return []
    kernels = _field(inside, "kernels", list)
    if any(type(kernel) is not dict or "share" not in kernel for kernel in kernels):
        raise ValueError("kernels: expected objects, each with a share or null")
    names = [_field(kernel, "kernel", str) for kernel in kernels]
    if len(set(names)) != len(names):
        raise ValueError("kernels: one is there twice")
    return [kernel for kernel in kernels if kernel["share"] is not None]


def _field(data: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = data.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name}: expected {kind.__name__}, got {repr(value)[:60]}")
    return value


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not LEAST <= value <= MOST:
        raise ValueError(f"{name}: expected a number from {LEAST:g} to {MOST:g}, got {repr(value)[:60]}")
    return float(value)
