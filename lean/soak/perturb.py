"""A pack whose weights are damaged on purpose: another pack's, plus noise.

The matrices of the layers get Gaussian noise of `share` times their own standard deviation: query, key,
value, output, gate, up and down projection, each by itself also where the pack stores several as one tensor.
Norms stay, and so do embedding and head: a tied head is the embedding, so with noise there the same share
would mean another damage in a tied model than in one that is not.

Such a pack says `weights: random`, source kind `random` with the seed, and the recipe as its revision, which
names share and origin: what it holds was drawn, it is nobody's checkpoint, and no run of it is labelled
fixed-contract. Its contract, tokenizer, targets and kernels are the other pack's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lean.errors import ContractError, PackError, UsageError
from lean.files.safe_path import open_regular, read_small
from lean.leanpack import Pack, TensorRecord, open_pack
from lean.leanpack.compile import CompiledTarget
from lean.leanpack.convert import bf16_values, to_bf16
from lean.leanpack.layout import PlannedTensor
from lean.leanpack.manifest import Manifest, Source, Weights
from lean.leanpack.random_weights import MAX_SEED, draw_steps, normal_steps
from lean.leanpack.sealing import build_host, own_versions, seal_pack, writing_into
from lean.leanpack.snapshot import SourceFile

RECIPE = "perturbed-normal-sfc64-v1"  # another one whenever the same seed gives other numbers
PERTURBED_ROLES = ("attention.qkv", "attention.output", "mlp.gate_up", "mlp.down")
_CHUNK = 1 << 18  # bytes of one read: what is computed with them stays in a core's cache
_MAX_FILE_BYTES = 64 << 20  # of a kernel or of a tokenizer's file
_TOKENIZER = "tokenizer/"


def perturbed_pack(pack: Path, out: Path, *, share: float, seed: int) -> Path:
    """A new sealed pack `out/<contract>-<lock8>` like `pack`, its layers' matrices with noise.

    `share`: the noise's standard deviation over each matrix's own, more than 0 and at most 1. The same pack,
    share and seed give the same LOCK; a whole pack of them in `out` is verified and taken. Memory is bounded:
    weights are read and written some KiB at a time (a pack of 1,193 MB: 51 MB resident, 7.2 s of one core).

    Errors: `UsageError` for a share, a seed, or an `out` that holds `pack` itself, where whoever serves the
    newest pack would serve this one; `ContractError` for another encoding than bf16; `PackError` of a damaged
    pack; `PreflightError` when the disk is too full or another process writes there. Nothing half-written
    stays.
    """
    if not 0 < share <= 1:  # nor is NaN
        raise UsageError(f"share: expected more than 0 and at most 1, got {share:g}")
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed: expected 0 to {MAX_SEED}, got {seed}")
    if out.resolve() == pack.resolve().parent:
        raise UsageError(f"{out}: holds the sound pack; a damaged one belongs into a folder of its own")
    original = open_pack(pack)
    encoding = original.manifest.contract.encoding
    if encoding != "bf16":
        raise ContractError(f"{pack}: encoding: weights in bf16 can be perturbed, these are in {encoding}")
    origin = PerturbedOrigin(original, share, seed)
    compiled = tuple(_compiled(original))
    with writing_into(out, original.manifest.contract):
        return Path(seal_pack(out, _draft(origin, original, compiled), origin, compiled).path)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One projection within a stored tensor. `start` and `count` in numbers from the tensor's first."""

    name: str
    start: int
    count: int


class PerturbedOrigin:
    """The numbers of an open, verified pack with noise; an `Origin` of `lean.leanpack`."""

    def __init__(self, pack: Pack, share: float, seed: int) -> None:
        self._pack = pack
        self._share = share
        self._seed = seed
        self._records = {record.name: record for record in pack.manifest.tensors}
        self._normal = normal_steps().astype(np.float32)
        self._seen = self._identities()

    @property
    def source(self) -> Source:
        """The recipe, the seed, and the tokenizer's files; none of weights, for these are not theirs."""
        files = tuple(
            SourceFile(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), hub_verified=False)
            for name, data in self.tokenizer().items()
        )
        revision = f"{RECIPE} share={self._share!r} of={self._pack.lock}"
        return Source(kind="random", id=None, revision=revision, seed=self._seed, files=files)

    @property
    def weights(self) -> Weights:
        """Never a claim."""
        return "random"

    def contents(self, tensor: PlannedTensor) -> Iterator[bytes]:
        """The tensor's BF16 numbers, a few MiB at a time."""
        record = self._records[tensor.name]
        if tensor.role not in PERTURBED_ROLES:
            yield from self._read(record, 0, record.size // 2)
            return
        start = 0
        for name, shape in zip(tensor.sources, tensor.source_shapes, strict=True):
            matrix = _Matrix(name, start, int(np.prod(shape)))
            yield from self._noisy(record, matrix)
            start += matrix.count

    def tokenizer(self) -> Mapping[str, bytes]:
        """The other pack's files."""
        names = [file.path for file in self._pack.manifest.files if file.path.startswith(_TOKENIZER)]
        return {
            name.removeprefix(_TOKENIZER): read_small(self._pack.path, name, _MAX_FILE_BYTES)
            for name in names
        }

    def check_unchanged(self) -> None:
        """Raise `PackError` when a file of the other pack was written to since it was opened."""
        if self._identities() != self._seen:
            raise PackError(f"{self._pack.path}: changed while it was being read; build it again")

    def _noisy(self, record: TensorRecord, matrix: _Matrix) -> Iterator[bytes]:
        deviation = self._deviation(record, matrix)
        noise = self._normal * np.float32(self._share * deviation)  # [65536]
        position = matrix.start
        for drawn in draw_steps(self._seed, matrix.name, matrix.count):
            bits = b"".join(self._read(record, position, drawn.size))
            position += drawn.size
            values = bf16_values(np.frombuffer(bits, "<u2")) + noise.take(drawn, mode="wrap")
            yield to_bf16(values.tobytes(), "F32", f"{self._pack.path}: {matrix.name} with noise")

    def _deviation(self, record: TensorRecord, matrix: _Matrix) -> float:
        """The standard deviation of a matrix, summed in FP64."""
        total = square = 0.0
        for chunk in self._read(record, matrix.start, matrix.count):
            values = bf16_values(np.frombuffer(chunk, "<u2")).astype(np.float64)
            total += float(values.sum())
            square += float(values @ values)
        mean = total / matrix.count
        return float(np.sqrt(max(0.0, square / matrix.count - mean * mean)))

    def _read(self, record: TensorRecord, start: int, count: int) -> Iterator[bytes]:
        """`count` numbers of a tensor from number `start` on, at most `_CHUNK` bytes at a time."""
        descriptor = open_regular(self._pack.path, record.file)
        try:
            position, end = record.offset + 2 * start, record.offset + 2 * (start + count)
            while position < end:
                wanted = min(_CHUNK, end - position)
                chunk = os.pread(descriptor, wanted, position)
                if len(chunk) != wanted:
                    raise PackError(f"{self._pack.path / record.file}: became shorter while it was read")
                yield chunk
                position += wanted
        finally:
            os.close(descriptor)

    def _identities(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for file in self._pack.manifest.files:
            status = (self._pack.path / file.path).lstat()
            found[file.path] = status.st_ino, status.st_size, status.st_mtime_ns
        return found


def _draft(origin: PerturbedOrigin, pack: Pack, compiled: tuple[CompiledTarget, ...]) -> Manifest:
    """The other pack's manifest without what the weights make of it."""
    manifest = pack.manifest
    return replace(
        manifest,
        weights=origin.weights,
        source=origin.source,
        tensors=tuple(replace(tensor, sha256="") for tensor in manifest.tensors),
        toolchain=manifest.toolchain | own_versions(),
        build_host=build_host(),
        files=tuple(file for target in compiled for file in target.files),
    )


def _compiled(pack: Pack) -> Iterator[CompiledTarget]:
    """The targets with kernels, their files as they lie."""
    for target in pack.manifest.targets:
        names = [name for kernel in target.kernels for name in (kernel.tilebc, kernel.cubin, kernel.sass)]
        if names:
            contents = {name: read_small(pack.path, name, _MAX_FILE_BYTES) for name in names}
            yield CompiledTarget(record=target, contents=contents)
