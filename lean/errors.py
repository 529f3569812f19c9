"""One exception tree; every failure a user can meet is one of these, and each knows its exit code.

    LeanError                  1   internal or usage
    ├── UsageError             1   the command line itself is wrong
    │   └── CapacityError      1   more positions asked for than a slot holds
    ├── ContractError          2   a config, profile, contract or hosts file is wrong
    ├── UnreachableError       3   no route, refused, or the link was lost
    │   ├── HostKeyError       3   unknown or changed host key
    │   ├── AuthError          3   the host refused every key
    │   └── LinkLost           3   the link to the host was lost while it worked for us
    ├── PreflightError         4   something needed is missing: a tool, disk, memory, a free port
    ├── GateError              5   a gate or a proof failed
    ├── NotReadyError          6   the service or the job is not there yet, or no longer
    ├── InvalidRunError        7   it ran, but the numbers do not count (unfair, throttled)
    ├── IntegrityError         8   bytes are not what their hash says
    │   ├── TransferError      8   a copy did not arrive whole
    │   └── PackError          8   a leanpack or a checkpoint is malformed or was altered
    └── Interrupted          130   the user stopped it

A message names the thing and the fix. Host programs print `error_document(...)` as their one JSON document;
the laptop turns it back into the same exception with `from_document`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class LeanError(Exception):
    """Base of every failure with a name. `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = 1


class UsageError(LeanError):
    """The command line itself is wrong."""


class CapacityError(UsageError):
    """More positions asked for than a slot holds. Nothing was written."""


class ContractError(LeanError):
    """A contract, profile or hosts file is wrong, or disagrees with the checkpoint."""

    exit_code = 2


class UnreachableError(LeanError):
    """The host cannot be reached, or the link to it was lost and the remote state is unknown."""

    exit_code = 3


class HostKeyError(UnreachableError):
    """The host's key is unknown or differs from the recorded one. Nothing was sent."""


class AuthError(UnreachableError):
    """The host refused every key that was offered."""


class LinkLost(UnreachableError):
    """The link to the host was lost while it worked for us. What had arrived is kept."""


class PreflightError(LeanError):
    """Something needed is missing: a tool, disk, memory, a free port, a driver."""

    exit_code = 4


class GateError(LeanError):
    """A gate or a proof failed."""

    exit_code = 5


class NotReadyError(LeanError):
    """The service or the job is not there yet, or no longer."""

    exit_code = 6


class InvalidRunError(LeanError):
    """The run finished but its numbers do not count: unfair, incomplete or throttled."""

    exit_code = 7


class IntegrityError(LeanError):
    """Bytes are not what their hash says."""

    exit_code = 8


class TransferError(IntegrityError):
    """A copy did not arrive whole. The name at the destination still holds what it held before."""


class PackError(IntegrityError):
    """A leanpack or a checkpoint is malformed, incomplete or was altered."""


class Interrupted(LeanError):
    """The user stopped the operation."""

    exit_code = 130


def _tree(root: type[LeanError]) -> Iterator[type[LeanError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def error_document(error: LeanError) -> dict[str, Any]:
    """The JSON form of a failure: `{"error": {"kind", "message", "exit_code"}}`."""
    return {"error": {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}}


def from_document(document: dict[str, Any]) -> LeanError:
    """The exception an `error_document` describes; an unknown kind becomes a plain `LeanError`."""
    body = document["error"]
    kinds = {kind.__name__: kind for kind in _tree(LeanError)}
    return kinds.get(str(body.get("kind")), LeanError)(str(body.get("message")))
