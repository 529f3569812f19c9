"""The host's end as a whole: take a model's snapshot, or one file, and answer with a report or the reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lean.contracts import to_data
from lean.errors import (
    LeanError,
    PreflightError,
    TransferError,
    UnreachableError,
    UsageError,
    error_document,
    from_document,
)
from lean.files.exclusive import hold
from lean.files.hashing import sha256_descriptor
from lean.files.safe_path import check_relative_name, open_regular
from lean.files.staging import check_space, named_disk_errors, publish_file
from lean.leanpack.snapshot import HUBS
from lean.models.fetch import fetch
from lean.relay.take import RelaySource, offered_by
from lean.transfer.channel import Channel, ChannelError, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """One relayed file: where it is now, its size in bytes and its hash."""

    path: str
    size: int
    sha256: str


def take_model(
    models: Path, model_id: str, *, requested: str | None, allow: tuple[str, ...], idle_s: float
) -> int:
    """Complete the snapshot the laptop offers, as a fetch from the hub would. Returns the exit code."""

    def work(source: RelaySource) -> dict[str, Any]:
        if source.kind not in HUBS:
            raise TransferError(f"{model_id}: the laptop offers no hub's model")
        report = fetch(source, model_id, models, requested=requested, allow=allow, on_missing=source.expect)
        data = to_data(report)
        assert isinstance(data, dict)
        return data

    return _hold_conversation(work, idle_s)


def take_file(target: Path, *, replace: bool, idle_s: float) -> int:
    """Complete `target` from the one file the laptop offers. Returns the exit code."""
    return _hold_conversation(lambda source: asdict(_file(source, target, replace)), idle_s)


def _file(source: RelaySource, target: Path, replace: bool) -> FileReport:
    if len(source.offered.files) != 1:
        raise TransferError(
            f"{target}: one file was asked for, the laptop offers {len(source.offered.files)}"
        )
    if not target.is_absolute() or target.is_dir():
        raise UsageError(f"{target}: expected the absolute path of a file")
    file = source.offered.files[0]
    check_relative_name(file.path, "the laptop's listing")
    staging = target.with_name(f".{target.name}.relay")
    with named_disk_errors(target.parent, f"relaying {target}"):
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        with hold(target.with_name(f".{target.name}.relay.lock"), str(target)):
            if not replace:
                _refuse_existing(target)
            partial = source.examine([file], staging)
            check_space(staging, file.size - partial, str(target))
            source.announce()
            sha256 = source.download(source.offered, file, staging, force=False)
            sha256 = sha256 or _hash(staging, file.path)
            _name(staging, file.path, target, replace)
    return FileReport(path=str(target), size=file.size, sha256=sha256)


def _hash(folder: Path, name: str) -> str:
    descriptor = open_regular(folder, name)
    try:
        return sha256_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise PreflightError(f"{target} is there already; choose another target, or add --replace")


def _name(staging: Path, name: str, target: Path, replace: bool) -> None:
    if replace:
        publish_file(staging / name, target)
    else:
        try:  # a link is never made over what somebody else put there meanwhile
            os.link(staging / name, target)
        except FileExistsError:
            _refuse_existing(target)
        publish_file(staging / name, target)
    for left in staging.iterdir():
        left.unlink()
    staging.rmdir()


def _hold_conversation(work: Callable[[RelaySource], dict[str, Any]], idle_s: float) -> int:
    """What goes wrong is said on the channel, where the laptop listens."""
    channel = Channel(0, 1, idle_s=idle_s)
    failure: LeanError
    try:
        source = offered_by(channel)
        source.finish(channel.beating(work, source))
        return 0
    except ChannelError as error:
        print(f"lean.relay: {error}", file=sys.stderr)
        return UnreachableError.exit_code
    except Refused as refusal:
        failure = from_document(refusal.document())
    except LeanError as error:
        failure = error
    except OSError as error:
        failure = PreflightError(f"{error.filename or 'the disk'}: {error.strerror}; mend that on the host")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        failure = TransferError(f"the laptop said something malformed ({error!r})")
    try:
        channel.send(error_document(failure))
        channel.flush()
    except (ChannelError, Refused):
        print(f"lean.relay: {failure}", file=sys.stderr)
    return failure.exit_code
