"""Building a pack: checked first, streamed tensor by tensor into a staging directory, then renamed."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lean import __version__
from lean.contracts import Contract, Encoding, contract_sha256
from lean.errors import PackError, UsageError
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
from lean.leanpack.checkpoint import Checkpoint
from lean.leanpack.compile import CompiledTarget, Compiler
from lean.leanpack.cpu import cpu_isa, cpu_name
from lean.leanpack.encoded_contents import EncodedContents
from lean.leanpack.kernel_record import TargetRecord
from lean.leanpack.layout import PlannedTensor, plan_aliases, plan_tensors
from lean.leanpack.lock import LOCK_NAME, FileRecord, hash_files, lock_of
from lean.leanpack.manifest import (
    MANIFEST_NAME,
    Manifest,
    TensorRecord,
    encode_manifest,
    kv_layout,
)
from lean.leanpack.origin import CheckpointOrigin, Origin
from lean.leanpack.prebuilt import Prebuilt
from lean.leanpack.random_weights import MAX_SEED, RandomOrigin
from lean.leanpack.read import check_pack
from lean.leanpack.source import check_fits
from lean.leanpack.weight_file import WeightFilePlan, plan_weight_files, tensor_bytes, write_weight_file

CPU = "cpu"
_CHIP = re.compile(r"sm_[1-9][0-9]{1,3}")
SLACK_BYTES = 1 << 20  # manifest, LOCK, directories


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build: the weights of `model`, a checkpoint directory, or random ones of `seed`.

    `packs`: where the pack gets its name. `encoding`: the contract's. `target`: chips joined by commas, such
    as `cpu,sm_90`. `kernels`: a folder of compiled kernels, for a machine without the compiler.
    """

    model: Path | None = None
    seed: int | None = None
    contract: Contract
    packs: Path
    encoding: str
    target: str
    overwrite: bool = False
    kernels: Path | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The chips, sorted, each once."""
        return tuple(sorted({name.strip() for name in self.target.split(",") if name.strip()}))


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


def build_pack(request: BuildRequest) -> BuildReport:
    """Build `packs/<contract>-<lock8>/`, or find that it exists.

    Errors: `ContractError` when the checkpoint is not the contract's, `PackError` when it is damaged or a
    kernel does not compile, `PreflightError` when the disk is too full, the compiler is missing or another
    build of this contract runs. Nothing half-written stays.
    """
    compiler = check_request(request)
    contract, packs = request.contract, request.packs
    what = f"a pack of {contract.id}"
    with named_disk_errors(packs, what):
        packs.mkdir(parents=True, exist_ok=True)
        with hold(packs / f".{contract.id}.lock", f"{what} in {packs}"), open_origin(request) as origin:
            compiled = () if compiler is None else _compile(compiler, request)
            draft = draft_manifest(request, origin, compiler, compiled)
            same = None if request.overwrite else _find_same(packs, draft)
            return same or _build(request, draft, origin, compiled, what)


def _build(
    request: BuildRequest,
    draft: Manifest,
    origin: Origin,
    compiled: tuple[CompiledTarget, ...],
    what: str,
) -> BuildReport:
    contract, packs = request.contract, request.packs
    plans = _weight_files(contract)
    clear_left_behind(packs, f".{contract.id}.staging")
    needed = sum(plan.size for plan in plans) + sum(file.size for file in draft.files)
    check_space(packs, needed + SLACK_BYTES, what)
    with staged_directory(packs / f".{contract.id}.staging") as staging:
        for target in compiled:
            _put(staging, target.contents)
        manifest, lock = _write(staging, draft, plans, origin)
        final = packs / f"{contract.id}-{lock[:8]}"
        if final.exists() and not request.overwrite:
            raise PackError(f"{final}: this pack is there, but damaged; --overwrite replaces it")
        publish(staging, final, replace=request.overwrite)
    return _report(final, manifest, lock, built=True)


def check_request(request: BuildRequest) -> Compiler | Prebuilt | None:
    """The compiler, where a target needs one.

    Errors: `UsageError` for an encoding or target that cannot be built, `ContractError` for a geometry that
    has no kernels, or that the encoding cannot have, `PreflightError` without a compiler.
    """
    if request.encoding != request.contract.encoding:
        raise UsageError(f"encoding: the contract says {request.contract.encoding}, not {request.encoding}")
    _weight_files(request.contract)
    if (request.model is None) == (request.seed is None):
        raise UsageError("a pack is built from a model directory or from a seed: one of --model and --random")
    if request.seed is not None and not 0 <= request.seed <= MAX_SEED:
        raise UsageError(f"--random: expected a seed from 0 to {MAX_SEED}, got {request.seed}")
    if request.model is not None and not request.model.is_dir():
        raise UsageError(f"{request.model}: no such directory; fetch the model first")
    chips = _chips(request)
    if not chips:
        return None
    compiler = Compiler() if request.kernels is None else Prebuilt(request.kernels)
    for chip in chips:
        compiler.check(request.contract, chip)
    return compiler


def _chips(request: BuildRequest) -> tuple[str, ...]:
    """The targets that need kernels. Errors: `UsageError` for what is no target at all."""
    for name in request.targets:
        if name != CPU and not _CHIP.fullmatch(name):
            raise UsageError(f"target: {name[:40]!r} is no target; expected cpu or a chip such as sm_90")
    if not request.targets:
        raise UsageError("target: expected cpu or a chip such as sm_90, or several with commas")
    return tuple(name for name in request.targets if name != CPU)


@contextmanager
def open_origin(request: BuildRequest) -> Iterator[Origin]:
    """Where the weights come from, checked against the contract. Errors: `ContractError`, `PackError`."""
    if request.model is None:
        assert request.seed is not None, "check_request saw to it"
        yield RandomOrigin(request.contract, request.seed)
        return
    with Checkpoint(request.model) as checkpoint:
        check_fits(checkpoint, request.contract.model)
        yield CheckpointOrigin(checkpoint)


def _compile(compiler: Compiler | Prebuilt, request: BuildRequest) -> tuple[CompiledTarget, ...]:
    return tuple(compiler.compile(request.contract, chip) for chip in _chips(request))


def draft_manifest(
    request: BuildRequest,
    origin: Origin,
    compiler: Compiler | Prebuilt | None,
    compiled: tuple[CompiledTarget, ...] = (),
) -> Manifest:
    """What is known before the weights are converted: `tensors` lack their hashes.

    `files` lists the compiled kernels alone; a target that is not in `compiled` has none yet.
    """
    contract = request.contract
    isa = cpu_isa()
    records = {target.record.name: target.record for target in compiled}
    return Manifest(
        contract=contract,
        contract_sha256=contract_sha256(contract),
        weights=origin.weights,
        source=origin.source,
        tensors=tuple(
            _record(tensor, offset)
            for plan in _weight_files(contract)
            for tensor, offset in zip(plan.tensors, plan.offsets, strict=True)
        ),
        aliases=plan_aliases(contract.model, contract.encoding),
        buckets=contract.buckets,
        kv=kv_layout(contract),
        targets=tuple(
            records.get(name) or _bare_target(name, isa, contract.encoding) for name in request.targets
        ),
        toolchain={
            **({} if compiler is None else compiler.versions),
            "leanstack": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        build_host={
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu": cpu_name(),
            "isa": isa,
        },
        files=tuple(file for target in compiled for file in target.files),
    )


def _bare_target(name: str, isa: str, encoding: Encoding) -> TargetRecord:
    if name == CPU:
        return TargetRecord(name=f"cpu-{isa}", runner="torch", encoding=encoding, kernels=())
    return TargetRecord(name=name, runner="cuda", encoding=encoding, kernels=())


def _weight_files(contract: Contract) -> tuple[WeightFilePlan, ...]:
    return plan_weight_files(plan_tensors(contract.model, contract.encoding))


def _record(tensor: PlannedTensor, offset: int) -> TensorRecord:
    return TensorRecord(
        name=tensor.name,
        role=tensor.role,
        encoding=tensor.encoding,
        dtype=tensor.dtype,
        shape=tensor.shape,
        file=tensor.file,
        offset=offset,
        size=tensor_bytes(tensor),
        sha256="",
        sources=tensor.sources,
    )


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
