"""The hot operations of a step and of a prompt, as the programs launch them, and what each costs at least.

Standard library only. Every launch is one of `kernels.qwen3`'s own programs: the first layer's, and the
head's. `rotated` buffers are those that a step finds in memory and not in a cache: weights, keys and values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kernels.qwen3 import HEAD_DIM, PROMPT_GROUP, SLOTS, Sizes, decode_program, prompt_program, work_buffers
from kernels.spec import Array, KernelSpec, Launch

DECODE_ROWS = (1, 2, 4, 8)
PROMPT_ROWS = (64, 1024)
# The kernels of each, as far as a program has them: only prompts append, only encoded weights are widened.
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("widen.qkv", "qkv"),
    "attention": ("append", "attention"),
    "output": ("widen.output", "output"),
    "gate_up": ("widen.gate_up", "gate_up"),
    "down": ("widen.down", "down"),
    "head_argmax": ("head", "argmax", "greedy"),
}
ABOUT = {
    "qkv": "rmsnorm, query, key and value projections",
    "attention": "query and key norm, rotary embedding, append to the cache, attention",
    "output": "the attention's output projection, added to the residual",
    "gate_up": "rmsnorm, gate and up projections, silu times",
    "down": "down projection, added to the residual",
    "head_argmax": "rmsnorm, output head, argmax over the vocabulary",
}
NOT_APPLICABLE = {
    "rmsnorm": "fused: the kernels of qkv, gate_up and head_argmax norm what they read",
    "head_argmax of a prompt": "only its last row goes through the head: see head_argmax up to 8 rows",
}
_SCRATCH = ("split_acc", "split_m", "split_l")
_CACHE = ("keys.", "values.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation on `rows` rows: `launches` in order, each with its kernel's specification.

    `path`: one, rows or prompt<T>, whose tiles the kernels have. `position`: of every decoded row; a prompt's
    begin at 0. `bytes_moved` and `flops` are what the operation needs at least, whoever does it.
    """

    name: str
    rows: int
    path: str
    position: int
    launches: tuple[tuple[Launch, KernelSpec], ...]
    bytes_moved: int
    flops: int

    @property
    def label(self) -> str:
        """Name and rows."""
        return f"{self.name} M={self.rows}"

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels it launches."""
        return tuple(launch.kernel for launch, _ in self.launches)

    def buffers(self) -> dict[str, Array]:
        """Every buffer it is bound to, with the largest array that any of its kernels takes it as."""
        found: dict[str, Array] = {}
        for name, array in _bound(self.launches):
            if name not in found or array.nbytes > found[name].nbytes:
                found[name] = array
        return found


def operations(
    sizes: Sizes,
    specs: Iterable[KernelSpec],
    position: int,
    *,
    decode: Iterable[int] = DECODE_ROWS,
    prompts: Iterable[int] = PROMPT_ROWS,
    several_slots: bool = False,
) -> tuple[tuple[Operation, ...], dict[str, str]]:
    """Every hot operation at every number of rows, and why those that are left out are.

    `several_slots`: also prompts that one slot cannot hold; they go on in the next.
    """
    by_name = {spec.name: spec for spec in specs}
    found: list[Operation] = []
    left_out = dict(NOT_APPLICABLE)
    for rows in (rows for rows in decode if rows in DECODE_ROWS):
        path = "one" if rows == 1 else "rows"
        found += _of_program(sizes, by_name, decode_program(sizes, rows), rows, path, position)
    for rows in prompts:
        if rows not in sizes.prompt_rows or (rows > sizes.length and not several_slots):
            left_out[f"prompts of {rows} rows"] = f"a slot of this contract holds {sizes.length} positions"
            continue
        found += _of_program(sizes, by_name, prompt_program(sizes, rows), rows, f"prompt{rows}", position)
    return tuple(found), left_out


def is_rotated(sizes: Sizes, buffer: str) -> bool:
    """Whether a step finds this buffer in memory: it is a weight, or one layer's keys or values."""
    return buffer.startswith(_CACHE) or buffer not in {array.name for array in work_buffers(sizes, SLOTS)}


def prompt_groups(sizes: Sizes, rows: int) -> list[tuple[int, int, int]]:
    """`groups` of `rows` rows of prompts from slot 0 on, each from its slot's start."""
    room = sizes.length // PROMPT_GROUP * PROMPT_GROUP
    return [(row // room, row % room, PROMPT_GROUP) for row in range(0, rows, PROMPT_GROUP)]


def _of_program(
    sizes: Sizes,
    specs: Mapping[str, KernelSpec],
    program: Iterable[Launch],
    rows: int,
    path: str,
    position: int,
) -> Iterator[Operation]:
    first: dict[str, Launch] = {}
    for launch in program:
        whole = launch.kernel.startswith("widen.")
        first.setdefault(launch.kernel if whole else launch.kernel.split(".")[0], launch)
    for name, parts in OPERATIONS.items():
        launches = tuple((first[part], specs[first[part].kernel]) for part in parts if part in first)
        if not launches or (path.startswith("prompt") and name == "head_argmax"):
            continue
        yield Operation(
            name=name,
            rows=rows,
            path=path,
            position=min(position, sizes.length - 1),
            launches=launches,
            bytes_moved=_bytes(sizes, name, rows, path, min(position, sizes.length - 1), launches),
            flops=_flops(sizes, name, rows, path, min(position, sizes.length - 1)),
        )


def _flops(s: Sizes, name: str, rows: int, path: str, position: int) -> int:
    """Multiplications and additions of the products."""
    if name == "attention":
        seen = rows * (position + 1) if not path.startswith("prompt") else rows * (rows + 1) // 2
        return int(4 * seen * s.query_heads * HEAD_DIM)
    outputs, reduction = product_shape(s, name)
    return 2 * rows * outputs * reduction


def product_shape(s: Sizes, name: str) -> tuple[int, int]:
    """Rows and reduction of an operation's weight."""
    return {
        "qkv": (s.heads * HEAD_DIM, s.hidden),
        "output": (s.hidden, s.width),
        "gate_up": (2 * s.intermediate, s.hidden),
        "down": (s.hidden, s.intermediate),
        "head_argmax": (s.vocab, s.hidden),
    }[name]


def _bytes(
    s: Sizes,
    name: str,
    rows: int,
    path: str,
    position: int,
    launches: tuple[tuple[Launch, KernelSpec], ...],
) -> int:
    """Weights once; keys and values that are seen; activations of the rows that count, once each.

    What one launch of an operation hands to the next stays in the chip's cache, and scratch does too.
    """
    total, counted = 0, set[str]()
    for buffer, array in _bound(launches):
        if buffer in counted or buffer in _SCRATCH:
            continue
        counted.add(buffer)
        if buffer.startswith(_CACHE):
            seen = rows * (position + 1) if not path.startswith("prompt") else rows
            total += seen * s.kv_heads * HEAD_DIM * 2
        elif is_rotated(s, buffer):
            total += array.nbytes
        elif buffer == "rotary":
            total += rows * HEAD_DIM * 4
        elif not _handed_on(buffer, launches):
            total += array.nbytes * min(rows, array.shape[0]) // array.shape[0]
    return total


def _handed_on(buffer: str, launches: tuple[tuple[Launch, KernelSpec], ...]) -> bool:
    return sum(buffer in launch.buffers for launch, _ in launches) > 1


def _bound(launches: Iterable[tuple[Launch, KernelSpec]]) -> Iterator[tuple[str, Array]]:
    for launch, spec in launches:
        yield from zip(launch.buffers, spec.arrays, strict=True)
