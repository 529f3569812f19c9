"""What each kernel of a decode step reads from memory: weights, cached keys and values. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.qwen3 import HEAD_DIM, Sizes, decode_program, kernel_specs, work_buffers
from kernels.spec import Array, Launch
from kernels.tiles import load_tiles

_CACHE = ("keys.", "values.")
_BF16 = 2  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReads:
    """One kernel's launches of a step, and the bytes they read together."""

    kernel: str
    launches: tuple[Launch, ...]
    read_bytes: int


def step_reads(
    sizes: Sizes, *, batch: int, positions: int, split_k: int | None = None
) -> tuple[KernelReads, ...]:
    """Every kernel of a greedy step of `batch` streams with `positions` cached rows each, in its order.

    Every byte once a launch, as it must cross the memory bus, also of a tensor that is bound twice; the
    embedding's row a stream is left out, as `Model.decode_parameters` does. `split_k`: see `decode_program`.
    """
    cached = batch * positions * sizes.kv_heads * HEAD_DIM * _BF16  # of keys, or of values, a layer
    arrays = {spec.name: spec.arrays for spec in kernel_specs(sizes, load_tiles("any"))}
    ours = {"embedding", *(buffer.name for buffer in work_buffers(sizes, batch, split_k))}

    def read(name: str, array: Array) -> int:
        size = 0 if name in ours else array.nbytes
        return cached if name.startswith(_CACHE) else int(size)

    launches: dict[str, list[Launch]] = {}
    for launch in decode_program(sizes, batch, split_k=split_k):
        launches.setdefault(launch.kernel, []).append(launch)
    return tuple(
        KernelReads(
            kernel=kernel,
            launches=tuple(own),
            read_bytes=sum(
                read(name, array)
                for launch in own
                for name, array in dict(zip(launch.buffers, arrays[kernel], strict=True)).items()
            ),
        )
        for kernel, own in launches.items()
    )
