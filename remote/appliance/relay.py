"""Files for a host without internet: downloaded here, streamed on, complete and hashed there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.contracts import load_contract
from lean.errors import LeanError, LinkLost, UsageError, from_document
from remote.host.site import LiveSite, Site
from remote.host.wheelhouse import not_installed_here
from remote.paths import REPOSITORY, STATE
from remote.ssh.command import plain_path
from remote.transfer.far_end import HostChild, host_child

MOST_BYTES = 16 << 20  # of a report
NEEDED = ("requests", "huggingface_hub", "modelscope_hub")
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?")
_SHIFTS = {None: 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRequest:
    """A hub's model, or one `url`. `source`: hf or modelscope; no `model` or `revision` means the contract's.

    `target`, with `url` only, is an absolute path on the host. `spool` is what may wait on this disk.
    """

    source: str = "hf"
    model: str | None = None
    revision: str | None = None
    allow: str | None = None
    url: str | None = None
    target: str | None = None
    replace: bool = False
    spool: str = "2GiB"


def relay(site: Site, request: RelayRequest, *, state: Path = STATE) -> dict[str, Any]:
    """Have the files on the host, whatever was there or under way before; the report of what is there now.

    What waits here between the legs lies below `state`.

    Errors: `UsageError`, `PreflightError` (packages missing here, space there, a second relay of the same),
    those of the hub, `TransferError` for bytes that never match, `UnreachableError` for a lost link.
    """
    what, take = _one_file(request) if request.url else _model(site, request)
    name = hashlib.sha256("\n".join([site.name, *what]).encode()).hexdigest()[:16]
    send = ["send", *what, "--spool-folder", str(state / "relay" / name)]
    send += ["--spool", str(size_in_bytes(request.spool))]
    if not isinstance(site, LiveSite):
        return site.call("lean.relay", *take)
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise not_installed_here("relaying", *missing)
    idle = ["--idle", str(2 * site.connection.settings.stall_timeout)]
    with host_child(site.connection, site.python.argv("lean.relay", *take, *idle)) as child:
        return _sent(child, [*send, *idle], site.console.line)


def size_in_bytes(text: str) -> int:
    """`2GiB` and the like. Errors: `UsageError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"size {text!r}: expected a number with B, KiB, MiB, GiB or TiB, such as 2GiB")
    return int(found[1]) << _SHIFTS[found[2]]


def _one_file(request: RelayRequest) -> tuple[list[str], list[str]]:
    if request.target is None:
        raise UsageError("--url needs --target, an absolute path on the host")
    take = ["take-file", f"--target={plain_path('target', request.target)}"]
    return [f"--url={request.url}"], take + (["--replace"] if request.replace else [])


def _model(site: Site, request: RelayRequest) -> tuple[list[str], list[str]]:
    if request.target is not None:
        raise UsageError("--target belongs to --url; a model goes where remote.fetch would put it")
    wanted = load_contract(site.host.contract).model
    model = request.model or wanted.id
    revision = request.revision or (wanted.revision if model == wanted.id else None)
    allow = [f"--allow={request.allow}"] if request.allow else []
    what = ["--source", request.source, "--id", model, *allow]
    what += [f"--revision={revision}"] if revision else []
    take = ["take-model", "--models", site.paths.models, "--id", model, *allow]
    return what, take + ([f"--requested={revision}"] if revision else [])


def _sent(child: HostChild, arguments: list[str], on_line: Callable[[str], None]) -> dict[str, Any]:
    """Run the sending end between the hub and the host.

    It is a process of its own, so that Ctrl-C need not wait for threads that download.
    """
    ends = child.reader.fileno(), child.writer.fileno()
    argv = [sys.executable, "-m", "lean.relay", *arguments]
    argv += ["--while-stdin", "--reader", str(ends[0]), "--writer", str(ends[1])]
    with (
        tempfile.TemporaryFile() as printed,
        subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,  # its end is ours: the sender does not outlive us
            stdout=printed,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=ends,
            start_new_session=True,  # Ctrl-C reaches us alone
        ) as sender,
    ):
        try:
            child.reader.close()
            child.writer.close()
            assert sender.stderr is not None
            for line in sender.stderr:
                on_line(line.rstrip("\n"))
            sender.wait()
        except BaseException:
            sender.terminate()
            raise
        printed.seek(0)
        answer = printed.read(MOST_BYTES)
    try:
        document: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise LeanError(f"the relay's sender ended with {sender.returncode} and no result") from None
    if "error" not in document:
        return document
    error = from_document(document)
    raise child.fault(str(error)) if isinstance(error, LinkLost) else error
