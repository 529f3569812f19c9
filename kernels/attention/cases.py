"""What attention is proved on. Cache rows that no slot has reached, and rows nobody asked for, are NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.attention.reference import rotary_table
from kernels.case import (
    BF16,
    BF16_WEIGHTS,
    EXACT,
    TENSOR_CORE,
    Case,
    Data,
    Draw,
    Expected,
    MachineCode,
    arrays,
    constant,
    inverse_rms,
    kernel_function,
)
from kernels.qwen3.sizes import PROMPT_GROUP
from kernels.spec import KernelSpec

D = 128
THETA = 1.0e6  # Qwen3's
INACTIVE = -1
UNTOUCHED = 7.0  # what stands where a block without rows must write nothing

Group = tuple[int, int, int]  # slot, position of its first row, rows that count
NOTHING: Group = (5, 0, 0)


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """Both ends of a tile of 64 keys, of the slot, slots that are not live, groups of rows without any."""
    name = kernel_function(spec)
    if name in ("attend", "attend_rows"):
        return tuple(_decode(spec))
    return tuple(_append(spec) if name == "append_prompt" else _prompt(spec))


def machine_code(spec: KernelSpec, target: str) -> MachineCode:
    """Wide loads of the cache; the tensor core where there are several queries."""
    match kernel_function(spec):
        case "attend":
            return MachineCode(opcodes=("FFMA", "MUFU.EX2", "ATOMG"), access_bytes=16)
        case "attend_rows":
            return MachineCode(opcodes=(TENSOR_CORE[target], "MUFU.EX2", "ATOMG"), access_bytes=16)
        case "attend_prompt":
            # HGMMA needs 64 rows; smaller blocks have warps of 16 on the older instruction, on every chip
            core = TENSOR_CORE[target] if constant(spec, "T") >= 64 else "HMMA"
            return MachineCode(opcodes=(core, "MUFU.EX2"), access_bytes=16, bulk=True)
    return MachineCode(opcodes=("MUFU.RSQ",), access_bytes=8)


def norm_turn(heads: Tensor, norm: Tensor, table: Tensor, eps: float) -> Tensor:
    """Heads [T, ., D] normed by `norm` [D], turned by `table` [T, D] (cosines, sines), in FP64."""
    x = heads.double()
    x = x * inverse_rms(x.square().mean(-1, keepdim=True), eps) * norm.double()
    cos, sin = table.double().unsqueeze(1).chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def mix(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Attention in FP64: query [T, Hq, D] scaled for base 2, keys and values [Hkv, N, D], seen [T] keys."""
    (rows, heads, _), (groups, length, _) = query.shape, keys.shape
    grouped = query.double().view(rows, groups, heads // groups, D)
    scores = torch.einsum("tghd,gnd->ghtn", grouped, keys.double()) * math.log(2.0)
    hidden = torch.arange(length, device=query.device) >= seen.unsqueeze(1)  # [T, N]
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return torch.einsum("ghtn,gnd->tghd", weights, values.double()).reshape(rows, heads, D)


def _inputs(draw: Draw, spec: KernelSpec) -> Data:
    """What decode and prompt both start from: projected heads, norms, angles, and a cache full of others."""
    a = arrays(spec)
    return {
        "qkv": draw.normal(a["qkv"]),
        "query_norm": draw.gain(D),
        "key_norm": draw.gain(D),
        "rotary": rotary_table(D, THETA, a["rotary"].shape[0]).to(draw.device),
        "keys": draw.normal(a["keys"]),
        "values": draw.normal(a["values"]),
    }


def _heads(spec: KernelSpec, given: Data, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled query [T, Hq, D], keys and values [T, Hkv, D] of `rows` at `places`, in FP64, values as bf16."""
    eps, query_heads, groups = constant(spec, "EPS"), int(constant(spec, "HQ")), int(constant(spec, "HKV"))
    angles = given["rotary"][places]
    query, keys, values = given["qkv"][rows].split((query_heads, groups, groups), dim=1)
    return (
        norm_turn(query, given["query_norm"], angles, eps) * constant(spec, "SCALE"),
        norm_turn(keys, given["key_norm"], angles, eps),
        values.bfloat16().double(),
    )


def _appended(
    given: Data, slots: Tensor, places: Tensor, keys: Tensor, values: Tensor
) -> dict[str, Expected]:
    """The cache with new keys and values [T, Hkv, D], which alone may change."""
    expected = {}
    for name, new, tolerance in (("keys", keys, BF16), ("values", values, EXACT)):
        cache = given[name].double()
        written = torch.zeros(cache.shape, dtype=torch.bool, device=cache.device)
        cache[slots, :, places], written[slots, :, places] = new, True
        expected[name] = Expected(value=cache, tolerance=tolerance, where=written)
    return expected


def _decode(spec: KernelSpec) -> Iterator[Case]:
    a, query_heads, groups = arrays(spec), int(constant(spec, "HQ")), int(constant(spec, "HKV"))
    slots, length, live = a["positions"].shape[0], a["keys"].shape[2], spec.grid[2]

    def data(draw: Draw, positions: list[int]) -> Data:
        given = _inputs(draw, spec)
        given["qkv"][live:] = torch.nan
        for slot, position in enumerate(positions):
            behind = position if slot < live and 0 <= position < length else 0
            given["keys"][slot, :, behind:] = torch.nan
            given["values"][slot, :, behind:] = torch.nan
        none_arrived = torch.zeros(a["arrived"].shape, dtype=torch.int32, device=draw.device)
        return given | {"positions": draw.given(positions), "arrived": none_arrived}

    def expected(given: Data) -> dict[str, Expected]:
        positions = given["positions"][:live].long()
        named = ((positions >= 0) & (positions < length)).nonzero().squeeze(1)
        query, *new = _heads(spec, given, named, positions[named])
        cache = _appended(given, named, positions[named], *new)
        out = torch.zeros(a["out"].shape, dtype=torch.float64, device=positions.device)
        for slot, turned in zip(named.tolist(), query, strict=True):
            seen = positions[slot : slot + 1] + 1
            held = (cache[name].value[slot, :, : int(seen)].bfloat16() for name in ("keys", "values"))
            out[slot] = mix(turned.unsqueeze(0), *held, seen)[0]
        rows = (torch.arange(slots, device=out.device) < live).view(-1, 1, 1).expand(a["out"].shape)
        exact = kernel_function(spec) == "attend"
        return cache | {
            "out": Expected(value=out, tolerance=BF16 if exact else BF16_WEIGHTS, where=rows),
            "arrived": Expected(value=torch.zeros_like(given["arrived"]), tolerance=EXACT),
        }

    for name, positions in _positions(length, live):
        seen = sum(position + 1 for position in positions if 0 <= position < length)
        yield Case(
            name=name,
            data=partial(data, positions=[*positions, *[INACTIVE] * (slots - live)]),
            expected=expected,
            bytes_moved=live * (a["qkv"].nbytes + a["out"].nbytes) // slots + seen * groups * D * 4,
            flops=4 * seen * query_heads * D,
            rows={"qkv": 0, "positions": 0, "keys": 0, "values": 0, "arrived": 0, "out": 0},
            kept=tuple(range(min(live, 3))) if live > 1 else (),
        )


def _positions(length: int, live: int) -> Iterator[tuple[str, list[int]]]:
    """The edges in groups of `live`, the first of them again where they run out."""
    edges = [63, 0, 64, 65, length - 1, INACTIVE, 1000 if length > 1000 else length // 2, length]
    for start in range(0, len(edges), live):
        chosen = [edges[(start + i) % len(edges)] for i in range(live)]
        yield "positions " + " ".join(map(str, chosen)), chosen


def _layouts(rows: int, length: int) -> Iterator[tuple[str, list[Group]]]:
    """One piece: whole programs, one row, across a tile's edge, up to the slot's end. None. Several."""
    part, most = min(rows, 65), min(rows, length)
    for name, piece in (
        ("whole", (2, 0, most)),
        ("one", (0, 0, 1)),
        ("edge", (1, 63, min(rows, 66, length - 63))),
        ("end", (7, length - part, part)),
        ("later", (3, length - most, most)),
    ):
        yield name, _grouped(rows, piece)
    yield "nothing", _grouped(rows)
    if rows > PROMPT_GROUP:
        share = max(rows // 8, PROMPT_GROUP)
        pieces = [(7 - i, 11 * i, min(share - i, length - 11 * i)) for i in range(rows // share)]
        yield "several", _grouped(rows, *pieces)
        last = [(6, length - PROMPT_GROUP, PROMPT_GROUP), (1, 63, 5)]
        gap = [NOTHING] * (rows // PROMPT_GROUP - 3)
        yield "gaps", [(4, 0, 1), *gap, *last]


def _grouped(rows: int, *pieces: Group) -> list[Group]:
    """The groups of pieces of any length one after another, then groups of nothing."""
    groups = [
        (slot, first + start, min(count - start, PROMPT_GROUP))
        for slot, first, count in pieces
        for start in range(0, count, PROMPT_GROUP)
    ]
    return groups + [NOTHING] * (rows // PROMPT_GROUP - len(groups))


def _counted(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row that counts: the row, its slot and its position, each [rows that count]."""
    slot, first, count = (field.unsqueeze(1) for field in groups.long().unbind(1))
    inside = torch.arange(PROMPT_GROUP, device=groups.device).expand(len(groups), -1)
    counts = inside < count
    rows = torch.arange(inside.numel(), device=groups.device).view(inside.shape)
    return rows[counts], slot.expand(inside.shape)[counts], (first + inside)[counts]


def _append(spec: KernelSpec) -> Iterator[Case]:
    a, query_heads, heads = arrays(spec), int(constant(spec, "HQ")), int(constant(spec, "HKV"))

    def data(draw: Draw, groups: list[Group]) -> Data:
        given = _inputs(draw, spec) | {"groups": draw.given(groups)}  # type: ignore[arg-type]
        rows, _, _ = _counted(given["groups"])
        known = given["qkv"][rows]
        given["qkv"][:] = torch.nan
        given["qkv"][rows] = known
        return given

    def expected(given: Data) -> dict[str, Expected]:
        rows, slots, places = _counted(given["groups"])
        query = torch.zeros(a["query"].shape, dtype=torch.float64, device=rows.device)
        asked = torch.zeros(query.shape, dtype=torch.bool, device=rows.device)
        query[rows], *new = _heads(spec, given, rows, places)
        asked[rows] = True
        return _appended(given, slots, places, *new) | {
            "query": Expected(value=query, tolerance=BF16, where=asked)
        }

    for name, groups in _layouts(a["qkv"].shape[0], a["keys"].shape[2]):
        rows = sum(count for _, _, count in groups)
        yield Case(
            name=name,
            data=partial(data, groups=groups),
            expected=expected,
            bytes_moved=rows * (2 * a["qkv"].nbytes // a["qkv"].shape[0] + D * 4) + a["groups"].nbytes,
            flops=rows * (query_heads + heads) * D * 8,
        )


def _prompt(spec: KernelSpec) -> Iterator[Case]:
    a, block = arrays(spec), int(constant(spec, "T"))
    query_heads, heads = int(constant(spec, "HQ")), int(constant(spec, "HKV"))

    def data(draw: Draw, groups: list[Group]) -> Data:
        given = {"groups": draw.given(groups)}  # type: ignore[arg-type]
        rows, slots, places = _counted(given["groups"])
        for name in ("keys", "values"):
            given[name] = draw.normal(a[name])
            for slot in range(a[name].shape[0]):
                mine = places[slots == slot]
                given[name][slot, :, int(mine.max()) + 1 if len(mine) else 0 :] = torch.nan
        query = draw.normal(a["query"]) * (math.log2(math.e) / math.sqrt(D))
        given["query"] = torch.full_like(query, torch.nan)
        given["query"][rows] = query[rows]
        return given | {"out": torch.full_like(query, UNTOUCHED)}

    def expected(given: Data) -> dict[str, Expected]:
        out = given["out"].double()
        rows, _, _ = _counted(given["groups"])
        judged = torch.zeros(len(out), dtype=torch.bool, device=out.device)
        judged[rows] = True
        idle = ~judged.view(-1, block).any(1).repeat_interleave(block)  # blocks that must write nothing
        for group, (slot, first, count) in enumerate(given["groups"].tolist()):
            mine = slice(group * PROMPT_GROUP, group * PROMPT_GROUP + count)
            seen = torch.arange(first + 1, first + count + 1, device=out.device)
            cache = (given[name][slot, :, : first + count] for name in ("keys", "values"))
            if count:
                out[mine] = mix(given["query"][mine], *cache, seen)
        where = (judged | idle).view(-1, 1, 1).expand(out.shape)
        return {"out": Expected(value=out, tolerance=BF16_WEIGHTS, where=where, elsewhere="anything")}

    for name, groups in _layouts(a["query"].shape[0], a["keys"].shape[2]):
        ends = {slot: first + count for slot, first, count in groups if count}
        pairs = sum(count * first + count * (count + 1) // 2 for _, first, count in groups)
        yield Case(
            name=name,
            data=partial(data, groups=groups),
            expected=expected,
            bytes_moved=2 * a["query"].nbytes + sum(ends.values()) * heads * D * 4,
            flops=4 * pairs * query_heads * D,
        )
