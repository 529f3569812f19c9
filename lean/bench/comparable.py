"""Whether two runs may be compared: what differs by intent, and what makes a comparison unfair.

The code may differ: that is what a comparison is for, and so is what follows from it (the LOCK of a pack
holds its kernels). Another contract, profile, machine, backend or other weights, or a run that does not
count, are refused unless they are asked for by name. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lean.bench.record import RunRecord
from lean.bench.shown_run import invalid_reasons, machine_line
from lean.contracts import to_data
from lean.errors import InvalidRunError, UsageError
from lean.markdown import plain

Axis = Literal["contract", "profile", "machine", "backend", "weights", "validity"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What is not the same in the two runs, and each one's."""

    what: str
    first: str
    second: str


def axes_named(text: str | None) -> tuple[Axis, ...]:
    """The axes of a comma-separated `--across`. Errors: `UsageError` naming those there are."""
    given = [word.strip() for word in (text or "").split(",") if word.strip()]
    known = {str(axis): axis for axis in AXES}
    if unknown := [word for word in given if word not in known]:
        raise UsageError(f"--across {unknown[0][:40]!r}: expected some of {', '.join(known)}")
    return tuple(known[word] for word in given)


def check_comparable(
    first: RunRecord, second: RunRecord, across: tuple[Axis, ...] = ()
) -> tuple[Difference, ...]:
    """Everything that differs, what was asked for first.

    Errors: `InvalidRunError` naming each difference along an axis that is not in `across`, both values, and
    the flag that allows it.
    """
    unfair = {axis: found for axis in AXES if (found := _DIFFERS[axis](first, second))}
    refused = [axis for axis in unfair if axis not in across]
    if refused:
        told = "; ".join(f"{unfair[a].what}: {unfair[a].first} and {unfair[a].second}" for a in refused)
        flag = ",".join((*across, *refused))
        raise InvalidRunError(
            f"not comparable: {told}; name two runs that agree, or allow it with --across {flag}"
        )
    return (*unfair.values(), *_said_only(first, second))


def _of(what: str, say: Callable[[RunRecord], str]) -> Callable[[RunRecord, RunRecord], Difference | None]:
    def differs(first: RunRecord, second: RunRecord) -> Difference | None:
        one, other = plain(say(first)), plain(say(second))
        return None if one == other else Difference(what=what, first=one, second=other)

    return differs


def _contract(record: RunRecord) -> str:
    return f"{record.contract.id} (sha256 {record.contract_sha256[:12]})"


def _profile(record: RunRecord) -> str:
    """What is asked of the service; how often it is asked is no other traffic."""
    fields = {k: v for k, v in to_data(record.profile).items() if k not in ("requests", "warmup_requests")}
    name = fields.pop("id")
    return f"{name} ({', '.join(f'{k} {v}' for k, v in fields.items() if k != 'schema')})"


def _machine(record: RunRecord) -> str:
    """What the machine is, without its system's version: host name, processors, memory, GPUs."""
    system = record.host_facts.get("system")
    arch = system.get("arch") if isinstance(system, dict) else None
    stays = {k: v for k, v in record.host_facts.items() if k in ("cpu", "memory", "gpus")}
    return f"{record.host} ({machine_line(stays | {'system': {'arch': arch}})})"


def _backend(record: RunRecord) -> str:
    b = record.backend
    return f"{b.name} on {b.device}, {b.compute_dtype} {list(b.options)}" if b else "unknown"


def _weights(record: RunRecord) -> str:
    pack, baseline = record.pack, record.peer
    if baseline is not None:
        return f"{baseline.source_id} at {baseline.source_revision}, weights {baseline.weights_sha256[:12]}"
    return f"{pack.weights}, {pack.source_id} at {pack.source_revision}" if pack else "unknown"


def _validity(record: RunRecord) -> str:
    return (
        record.status if record.status == "ok" else f"{record.status}: {'; '.join(invalid_reasons(record))}"
    )


def _counts(first: RunRecord, second: RunRecord) -> Difference | None:
    """Two invalid runs are as little comparable as one."""
    if first.status == second.status == "ok":
        return None
    return Difference(what="runs that do not count", first=_validity(first), second=_validity(second))


_DIFFERS: dict[Axis, Callable[[RunRecord, RunRecord], Difference | None]] = {
    "contract": _of("contract", _contract),
    "profile": _of("profile", _profile),
    "machine": _of("machine", _machine),
    "backend": _of("backend", _backend),
    "weights": _of("weights", _weights),
    "validity": _counts,
}


def _said_only(first: RunRecord, second: RunRecord) -> Iterator[Difference]:
    """What may differ without being asked for, and is said."""

    def fact(record: RunRecord, group: str, *names: str) -> str:
        found: Any = record.host_facts.get(group)
        return " ".join(str(found.get(n)) for n in names) if isinstance(found, dict) else "unknown"

    def code(record: RunRecord) -> str:
        release = record.release
        dirty = f", dirty (diff {str(release.diff_sha256)[:12]})" if release.dirty else ""
        return release.git_sha[:12] + dirty

    def drivers(record: RunRecord) -> str:
        gpus = record.host_facts.get("gpus")
        known = gpus if isinstance(gpus, list) else []
        return ", ".join(str(g.get("driver")) for g in known if isinstance(g, dict)) or "none"

    for differs in (
        _of("code", code),
        _of("pack LOCK", lambda r: r.pack.lock[:12] if r.pack else "unknown"),
        _of("measured rounds", lambda r: str(r.profile.requests)),
        _of("system", lambda r: fact(r, "system", "os", "kernel")),
        _of("GPU driver", drivers),
        _of("machine's id", lambda r: str(r.host_facts.get("host"))),
    ):
        if (found := differs(first, second)) is not None:
            yield found
