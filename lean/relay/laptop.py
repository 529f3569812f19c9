"""What is relayed, from where: the listing and addresses of a hub's model, or of one URL."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean.errors import LeanError, LinkLost, error_document, from_document
from lean.files.exclusive import hold
from lean.files.staging import named_disk_errors
from lean.models.huggingface import HuggingFaceSource
from lean.models.modelscope import ModelScopeSource
from lean.models.selection import DEFAULT_ALLOW, select
from lean.models.source import Listing, RemoteFile, check_id, check_revision
from lean.relay.origin import Origin
from lean.relay.send import Progress, Sender, listing_document
from lean.relay.spool import Spool
from lean.transfer.channel import Channel, ChannelError, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Either `url`, or a hub's model. `source`: hf or modelscope; `id`: `<organisation>/<name>`."""

    url: str | None = None
    source: str | None = None
    id: str | None = None
    revision: str | None = None
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """A listing, an address for each of its files, headers for their first host, and bytes in all."""

    kind: str
    listing: Listing
    urls: list[str]
    credentials: dict[str, str]
    total: int


def send(
    request: Request, *, reader: int, writer: int, idle_s: float, folder: Path, limit: int
) -> dict[str, Any]:
    """Hold the laptop's end of one relay over two descriptors; the host's report.

    `folder` keeps at most `limit` bytes of downloads between runs. Errors: those of the hub and the network,
    `LinkLost` when the host is lost, `PreflightError` when the same relay runs already.
    """
    channel = Channel(reader, writer, idle_s=idle_s)
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with hold(lock, "this relay"), named_disk_errors(folder, "the spool"):
            return _held(request, channel, folder, limit)
    except Refused as refusal:
        raise from_document(refusal.document()) from None
    except ChannelError as error:
        raise LinkLost(f"the host: {error}; what arrived is kept, run it again to go on") from None
    except LeanError as error:
        with contextlib.suppress(
            ChannelError, Refused
        ):  # the reason is ours, whether or not the host hears it
            channel.send(error_document(error))
            channel.flush()
        raise


def _held(request: Request, channel: Channel, folder: Path, limit: int) -> dict[str, Any]:
    offer = (
        channel.beating(_one_file, request.url) if request.url else channel.beating(_model, request, folder)
    )
    origin = Origin(offer.credentials)
    with Spool(origin, folder, limit=limit) as spool:
        sender = Sender(channel, origin, spool, offer.urls, _progress(), total=offer.total)
        sizes = [file.size for file in offer.listing.files]
        report = sender.run(listing_document(offer.listing, offer.kind), sizes)
    spool.clear()
    return report


def _one_file(url: str) -> _Offer:
    version = Origin().version(url)
    file = RemoteFile(path="file", size=version.size)
    listing = Listing(revision=version.validator, files=(file,), endpoint=None, client="leanstack")
    return _Offer(kind="url", listing=listing, urls=[url], credentials={}, total=version.size)


def _model(request: Request, folder: Path) -> _Offer:
    model_id = check_id(request.id or "")
    revision = None if request.revision is None else check_revision(request.revision)
    source: HuggingFaceSource | ModelScopeSource
    if request.source == "hf":
        source = HuggingFaceSource(id=model_id, revision=revision, endpoint=None)
    else:
        private = folder.with_name(".modelscope")
        source = ModelScopeSource(id=model_id, revision=revision, endpoint=None, private=private)
    listing = source.listing()
    chosen = select(listing.files, request.allow or DEFAULT_ALLOW, f"{listing.endpoint}: {model_id}")
    urls = [source.address(listing, file) for file in listing.files]
    return _Offer(
        kind=source.kind,
        listing=listing,
        urls=urls,
        credentials=source.credentials(),
        total=sum(file.size for file in chosen.chosen),
    )


def _progress() -> Callable[[Progress], None]:
    """A line for every twentieth."""
    shown_part = -1

    def report(now: Progress) -> None:
        nonlocal shown_part
        part = now.done * 20 // now.total if now.total else 20
        if part > shown_part:
            shown_part = part
            print(f"{now.done} of {now.total} bytes are there", file=sys.stderr, flush=True)

    return report
