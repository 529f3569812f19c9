"""Building a pack: what it is asked to be, checked first; then sealed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lean.contracts import Contract, Encoding, contract_sha256
from lean.errors import UsageError
from lean.leanpack.checkpoint import Checkpoint
from lean.leanpack.compile import CompiledTarget, Compiler
from lean.leanpack.cpu import cpu_isa
from lean.leanpack.kernel_record import TargetRecord
from lean.leanpack.layout import PlannedTensor, plan_aliases
from lean.leanpack.manifest import Manifest, TensorRecord, kv_layout
from lean.leanpack.origin import CheckpointOrigin, Origin
from lean.leanpack.prebuilt import Prebuilt
from lean.leanpack.random_weights import MAX_SEED, RandomOrigin
from lean.leanpack.sealing import (
    BuildReport,
    build_host,
    own_versions,
    seal_pack,
    weight_files,
    writing_into,
)
from lean.leanpack.source import check_fits
from lean.leanpack.weight_file import tensor_bytes

CPU = "cpu"
_CHIP = re.compile(r"sm_[1-9][0-9]{1,3}")


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


def build_pack(request: BuildRequest) -> BuildReport:
    """Build `packs/<contract>-<lock8>/`, or find that it exists.

    Errors: `ContractError` when the checkpoint is not the contract's, `PackError` when it is damaged or a
    kernel does not compile, `PreflightError` when the disk is too full, the compiler is missing or another
    build of this contract runs. Nothing half-written stays.
    """
    compiler = check_request(request)
    with writing_into(request.packs, request.contract), open_origin(request) as origin:
        compiled = () if compiler is None else _compile(compiler, request)
        draft = draft_manifest(request, origin, compiler, compiled)
        return seal_pack(request.packs, draft, origin, compiled, overwrite=request.overwrite)


def check_request(request: BuildRequest) -> Compiler | Prebuilt | None:
    """The compiler, where a target needs one.

    Errors: `UsageError` for an encoding or target that cannot be built, `ContractError` for a geometry that
    has no kernels, or that the encoding cannot have, `PreflightError` without a compiler.
    """
    if request.encoding != request.contract.encoding:
        raise UsageError(f"encoding: the contract says {request.contract.encoding}, not {request.encoding}")
    weight_files(request.contract)
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
            for plan in weight_files(contract)
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
            **own_versions(),
        },
        build_host=build_host(),
        files=tuple(file for target in compiled for file in target.files),
    )


def _bare_target(name: str, isa: str, encoding: Encoding) -> TargetRecord:
    if name == CPU:
        return TargetRecord(name=f"cpu-{isa}", runner="torch", encoding=encoding, kernels=())
    return TargetRecord(name=name, runner="cuda", encoding=encoding, kernels=())


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
