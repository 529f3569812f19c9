"""Sealing a pack: from a draft and an origin to a directory with a LOCK, all of it or nothing."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lean import __version__
from lean.contracts import Contract
from lean.errors import PackError
from lean.files.exclusive import hold
from lean.files.staging import (
    check_space,
    clear_left_behind,
    named_disk_errors,
    publish,
    seal,
    staged_directory,
    write_file,
)
from lean.leanpack.compile import CompiledTarget
from lean.leanpack.cpu import cpu_isa, cpu_name
from lean.leanpack.encoded_contents import EncodedContents
from lean.leanpack.layout import plan_tensors
from lean.leanpack.lock import LOCK_NAME, FileRecord, hash_files, lock_of
from lean.leanpack.manifest import MANIFEST_NAME, Manifest, encode_manifest
from lean.leanpack.origin import Origin
from lean.leanpack.read import check_pack
from lean.leanpack.weight_file import WeightFilePlan, plan_weight_files, write_weight_file

SLACK_BYTES = 1 << 20  # manifest, LOCK, directories


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """`built` is False when the same pack was there already. Sizes in bytes."""

    path: str
    lock: str
    contract: str
    weights: str
    built: bool
    files: int
    tensors: int
    weight_bytes: int
    bytes: int


def own_versions() -> dict[str, str]:
    """What turns an origin's numbers into files, by name: its part of a manifest's `toolchain`."""
    return {"leanstack": __version__, "numpy": np.__version__, "python": platform.python_version()}


def build_host() -> dict[str, str]:
    """This machine, as a manifest has it."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "isa": cpu_isa(),
    }


@contextmanager
def writing_into(packs: Path, contract: Contract) -> Iterator[None]:
    """Be the only one who builds a pack of the contract in `packs`, which is created.

    Errors: `PreflightError` when somebody else does, or the disk is full or closed.
    """
    what = _what(contract)
    with named_disk_errors(packs, what):
        packs.mkdir(parents=True, exist_ok=True)
        with hold(packs / f".{contract.id}.lock", f"{what} in {packs}"):
            yield


def seal_pack(
    packs: Path,
    draft: Manifest,
    origin: Origin,
    compiled: tuple[CompiledTarget, ...] = (),
    *,
    overwrite: bool = False,
) -> BuildReport:
    """Write `packs/<contract>-<lock8>/`, or find that it exists. The caller is `writing_into` that folder.

    `draft`: what is known before the weights are written; its tensors lack their hashes, and its `files` are
    those of `compiled`. Errors: `PackError` of a damaged pack of that name, `PreflightError` when the disk is
    too full, and what `origin` raises. Nothing half-written stays.
    """
    same = None if overwrite else _find_same(packs, draft)
    return same or _build(packs, draft, origin, compiled, overwrite=overwrite)


def _build(
    packs: Path,
    draft: Manifest,
    origin: Origin,
    compiled: tuple[CompiledTarget, ...],
    *,
    overwrite: bool,
) -> BuildReport:
    contract = draft.contract
    plans = weight_files(contract)
    clear_left_behind(packs, f".{contract.id}.staging")
    needed = sum(plan.size for plan in plans) + sum(file.size for file in draft.files)
    check_space(packs, needed + SLACK_BYTES, _what(contract))
    with staged_directory(packs / f".{contract.id}.staging") as staging:
        for target in compiled:
            _put(staging, target.contents)
        manifest, lock = _write(staging, draft, plans, origin)
        final = packs / f"{contract.id}-{lock[:8]}"
        if final.exists() and not overwrite:
            raise PackError(f"{final}: it is there, but damaged; remove it, or build with --overwrite")
        publish(staging, final, replace=overwrite)
    return _report(final, manifest, lock, built=True)


def weight_files(contract: Contract) -> tuple[WeightFilePlan, ...]:
    """The files of a contract's weights. Errors: `ContractError` for a geometry that has none."""
    return plan_weight_files(plan_tensors(contract.model, contract.encoding))


def _what(contract: Contract) -> str:
    return f"a pack of {contract.id}"


def _find_same(packs: Path, draft: Manifest) -> BuildReport | None:
    """An existing pack, verified, that is made of the same things.

    Builds are deterministic, so a pack that has the draft's kernels, and whose manifest differs from the
    draft in the hashes of weights only, is the one we would write. A damaged one does not count; when it has
    the very name of the new pack, `_build` says so.
    """
    for folder in sorted(packs.glob(f"{draft.contract.id}-????????")):
        try:
            manifest, _ = check_pack(folder, verify=False)
            compiled = {file.path for file in draft.files}
            bare = replace(
                manifest,
                files=tuple(file for file in manifest.files if file.path in compiled),
                tensors=tuple(replace(tensor, sha256="") for tensor in manifest.tensors),
            )
            if bare == replace(draft, files=_sorted(draft.files)):
                return _report(folder, *check_pack(folder, verify=True), built=False)
        except PackError:
            continue
    return None


def _write(
    staging: Path, draft: Manifest, plans: tuple[WeightFilePlan, ...], origin: Origin
) -> tuple[Manifest, str]:
    files: list[FileRecord] = [*draft.files]
    hashes: list[str] = []
    contents = EncodedContents(origin).contents
    for plan in plans:
        print(f"pack {plan.name}, {plan.size} bytes", file=sys.stderr, flush=True)
        (staging / plan.name).parent.mkdir(exist_ok=True)
        with (staging / plan.name).open("xb") as out:
            written = write_weight_file(plan, out, contents)
            out.flush()
            seal(out.fileno())
        files.append(FileRecord(path=plan.name, size=plan.size, sha256=written.sha256))
        hashes += written.tensor_sha256
    tokenizer = {f"tokenizer/{name}": data for name, data in origin.tokenizer().items()}
    small = [*_put(staging, tokenizer), *_put(staging, _describe_targets(draft))]
    origin.check_unchanged()
    manifest = replace(
        draft,
        tensors=tuple(replace(t, sha256=sha256) for t, sha256 in zip(draft.tensors, hashes, strict=True)),
        files=_sorted([*files, *hash_files(staging, small)]),
    )
    write_file(staging, MANIFEST_NAME, encode_manifest(manifest))
    lock = lock_of([*manifest.files, *hash_files(staging, [MANIFEST_NAME])])
    write_file(staging, LOCK_NAME, f"{lock}\n".encode())
    return manifest, lock


def _sorted(files: Iterable[FileRecord]) -> tuple[FileRecord, ...]:
    return tuple(sorted(files, key=lambda file: file.path))


def _put(staging: Path, contents: Mapping[str, bytes]) -> list[str]:
    for name, data in contents.items():
        write_file(staging, name, data)
    return list(contents)


def _describe_targets(draft: Manifest) -> dict[str, bytes]:
    """One target.json per target, so that its directory says what runs there even with no kernels in it."""
    described = {}
    for target in draft.targets:
        names = [kernel.name for kernel in target.kernels]
        body = {"name": target.name, "runner": target.runner, "encoding": target.encoding, "kernels": names}
        text = json.dumps(body, indent=1, sort_keys=True) + "\n"
        described[f"targets/{target.name}/target.json"] = text.encode()
    return described


def _report(path: Path, manifest: Manifest, lock: str, *, built: bool) -> BuildReport:
    return BuildReport(
        path=str(path),
        lock=lock,
        contract=manifest.contract.id,
        weights=manifest.weights,
        built=built,
        files=len(manifest.files) + 2,
        tensors=len(manifest.tensors),
        weight_bytes=manifest.weight_bytes,
        bytes=sum(file.size for file in manifest.files),
    )
