"""Checkpoints and packs on a host: fetch, probe, pack, inspect, lay out."""

from __future__ import annotations

from typing import Any

from lean.contracts import load_contract
from lean.errors import NotReadyError, UsageError
from remote.host.site import Site
from remote.ssh.command import plain_path

DEMO_ID = "leanstack/demo-5m"
DEMO_PATH = "lean/demo/checkpoint"


def fetch(
    site: Site,
    *,
    source: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    path: str | None = None,
    allow: str | None = None,
) -> dict[str, Any]:
    """A complete, hashed snapshot in the host's `models/`; `model` and `revision` default to the contract's.

    The demo's checkpoint travels with every release, so for its contract the source is that directory.
    """
    wanted = load_contract(site.host.contract).model
    model = model or wanted.id
    if source is None and model == DEMO_ID and path is None and revision is None:
        source, path = "local", f"{site.release}/{DEMO_PATH}"
    source = source or "hf"
    if source == "local" and path is None:
        raise UsageError("--source local needs --path, a directory on the host")
    arguments = ["--source", source, "--id", model, "--models", site.paths.models]
    if model == wanted.id and source != "local":
        revision = revision or wanted.revision
    for flag, value in (("--revision", revision), ("--path", path), ("--allow", allow)):
        if value is not None:
            arguments.append(f"{flag}={value}")
    return site.job("fetch", "lean.models", "fetch", *arguments)


def probe(site: Site, model: str | None) -> dict[str, Any]:
    """What a model directory on the host holds, and whether it is the host contract's model."""
    path = plain_path("model directory", str(model or newest_snapshot(site)))
    return site.call("lean.models", "probe", path, "--contract", site.host.contract)


def newest_snapshot(site: Site) -> str:
    """The host contract's newest complete snapshot. Errors: `NotReadyError` naming what makes one."""
    wanted = load_contract(site.host.contract).model.id
    found = site.call("lean.models", "list", "--models", site.paths.models, "--id", wanted)["snapshots"]
    if not found:
        raise NotReadyError(
            f"{site.name} has no snapshot of {wanted}; run: invoke remote.fetch --host {site.name}"
        )
    return str(found[-1]["path"])


def pack(
    site: Site,
    *,
    model: str | None = None,
    random: int | None = None,
    encoding: str | None = None,
    target: str | None = None,
    kernels: str | None = None,
    manifest_only: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Build the host contract's pack from a model directory on the host, the newest snapshot by default.

    `random` is a seed: random weights, and no snapshot is needed. `target`: chips joined by commas.
    `kernels`: a folder on the host with compiled kernels, so that it needs no compiler.
    """
    if model is not None and random is not None:
        raise UsageError("a pack has the weights of a model or of a seed: give --model or --random, not both")
    weights = [f"--random={random}"] if random is not None else ["--model", model or newest_snapshot(site)]
    arguments = [*weights, "--contract", site.host.contract, "--packs", site.paths.packs]
    arguments += [f"--encoding={encoding}"] if encoding else []
    arguments += [f"--target={target}"] if target else []
    arguments += ["--kernels", plain_path("kernels", kernels)] if kernels else []
    arguments += ["--manifest-only"] if manifest_only else []
    arguments += ["--overwrite"] if overwrite else []
    return site.job("pack", "lean.leanpack", "build", *arguments)


def newest_pack(site: Site) -> str:
    """The host contract's newest pack. Errors: `NotReadyError` naming the verb that makes one."""
    found = site.call("lean.leanpack", "list", "--packs", site.paths.packs, "--contract", site.host.contract)[
        "packs"
    ]
    if not found:
        raise NotReadyError(
            f"{site.name} has no pack of {site.host.contract}; run: invoke remote.pack --host {site.name}"
        )
    return str(found[-1]["path"])


def inspect(site: Site, path: str | None) -> dict[str, Any]:
    """A pack's manifest, targets and hashes, without loading it."""
    return site.call("lean.leanpack", "inspect", path or newest_pack(site))


def layout(site: Site, path: str | None, slots: int) -> dict[str, Any]:
    """The resident plan of a real pack on the host."""
    pack_path = path or newest_pack(site)
    return site.call("lean.leanserve", "plan", "--pack", pack_path, "--slots", str(slots)) | {
        "pack": pack_path
    }
