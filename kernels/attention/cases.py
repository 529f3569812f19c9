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
from kernels.spec import KernelSpec

D = 128
THETA = 1.0e6  # Qwen3's
INACTIVE = -1


def cases(spec: KernelSpec) -> tuple[Case, ...]:
    """Both ends of a tile of 64 keys, of the slot, and slots that are not live."""
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


def _decode(spec: KernelSpec) -> Iterator[Case]:
    a, eps, scale = arrays(spec), constant(spec, "EPS"), constant(spec, "SCALE")
    query_heads, groups = int(constant(spec, "HQ")), int(constant(spec, "HKV"))
    slots, length, live = a["positions"].shape[0], a["keys"].shape[2], spec.grid[2]

    def data(draw: Draw, positions: list[int]) -> Data:
        qkv, keys, values = draw.normal(a["qkv"]), draw.normal(a["keys"]), draw.normal(a["values"])
        qkv[live:] = torch.nan
        for slot in range(slots):
            place = positions[slot]
            behind = place if slot < live and 0 <= place < length else 0
            keys[slot, :, behind:] = torch.nan
            values[slot, :, behind:] = torch.nan
        return {
            "qkv": qkv,
            "query_norm": draw.gain(D),
            "key_norm": draw.gain(D),
            "rotary": rotary_table(D, THETA, length).to(draw.device),
            "positions": draw.given(positions),
            "keys": keys,
            "values": values,
            "arrived": draw.given([[0] * a["arrived"].shape[1]] * slots),  # type: ignore[arg-type]
        }

    def expected(given: Data) -> dict[str, Expected]:
        positions = given["positions"].tolist()
        out = torch.zeros(a["out"].shape, dtype=torch.float64, device=given["qkv"].device)
        keys, values = given["keys"].double(), given["values"].double()
        written = torch.zeros(a["keys"].shape[:3], dtype=torch.bool, device=out.device)
        for slot in range(live):
            place = positions[slot]
            if not 0 <= place < length:
                continue
            angle, row = given["rotary"][place : place + 1], given["qkv"][slot : slot + 1]
            turned = norm_turn(row[:, :query_heads], given["query_norm"], angle, eps) * scale
            new = norm_turn(row[:, query_heads : query_heads + groups], given["key_norm"], angle, eps)[0]
            value = row[0, query_heads + groups :].bfloat16().double()
            here = torch.cat((keys[slot, :, :place], new.bfloat16().double().unsqueeze(1)), dim=1)
            there = torch.cat((values[slot, :, :place], value.unsqueeze(1)), dim=1)
            out[slot] = mix(turned, here, there, torch.tensor([place + 1], device=out.device))[0]
            keys[slot, :, place], values[slot, :, place], written[slot, :, place] = new, value, True
        where = written.unsqueeze(-1).expand(a["keys"].shape)
        rows = (torch.arange(slots, device=out.device) < live).view(-1, 1, 1).expand(a["out"].shape)
        exact = kernel_function(spec) == "attend"
        return {
            "out": Expected(value=out, tolerance=BF16 if exact else BF16_WEIGHTS, where=rows),
            "keys": Expected(value=keys, tolerance=BF16, where=where),
            "values": Expected(value=values, tolerance=EXACT, where=where),
            "arrived": Expected(value=torch.zeros_like(given["arrived"]), tolerance=EXACT),
        }

    for name, positions in _positions(length, live):
        seen = sum(place + 1 for place in positions if 0 <= place < length)
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


def _spans(rows: int, length: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """(slot, first, count): whole chunks, one row, across a tile's edge, up to the slot's end."""
    part = min(rows, 65)
    yield "whole", (2, 0, min(rows, length))
    yield "one", (0, 0, 1)
    yield "edge", (1, 63, min(rows, 66, length - 63))
    yield "end", (7, length - part, part)
    yield "later", (3, length - min(rows, length), min(rows, length))


def _append(spec: KernelSpec) -> Iterator[Case]:
    a, eps, scale = arrays(spec), constant(spec, "EPS"), constant(spec, "SCALE")
    query_heads, groups = int(constant(spec, "HQ")), int(constant(spec, "HKV"))
    length = a["keys"].shape[2]

    def data(draw: Draw, span: tuple[int, int, int]) -> Data:
        qkv = draw.normal(a["qkv"])
        qkv[span[2] :] = torch.nan
        return {
            "qkv": qkv,
            "query_norm": draw.gain(D),
            "key_norm": draw.gain(D),
            "rotary": rotary_table(D, THETA, length).to(draw.device),
            "span": draw.given([*span, span[2] - 1]),
            "keys": draw.normal(a["keys"]),
            "values": draw.normal(a["values"]),
        }

    def expected(given: Data) -> dict[str, Expected]:
        slot, first, count, _ = given["span"].tolist()
        angles, rows = given["rotary"][first : first + count], given["qkv"][:count]
        query = torch.zeros(a["query"].shape, dtype=torch.float64, device=rows.device)
        query[:count] = norm_turn(rows[:, :query_heads], given["query_norm"], angles, eps) * scale
        keys, values = given["keys"].double(), given["values"].double()
        new = norm_turn(rows[:, query_heads : query_heads + groups], given["key_norm"], angles, eps)
        keys[slot, :, first : first + count] = new.transpose(0, 1)
        values[slot, :, first : first + count] = rows[:, query_heads + groups :].double().transpose(0, 1)
        written = torch.zeros(keys.shape, dtype=torch.bool, device=rows.device)
        written[slot, :, first : first + count] = True
        asked = torch.zeros(query.shape, dtype=torch.bool, device=rows.device)
        asked[:count] = True
        return {
            "query": Expected(value=query, tolerance=BF16, where=asked),
            "keys": Expected(value=keys, tolerance=BF16, where=written),
            "values": Expected(value=values, tolerance=EXACT, where=written),
        }

    for name, span in _spans(a["qkv"].shape[0], length):
        yield Case(
            name=name,
            data=partial(data, span=span),
            expected=expected,
            bytes_moved=span[2] * (2 * a["qkv"].nbytes // a["qkv"].shape[0] + D * 4),
            flops=span[2] * (query_heads + groups) * D * 8,
        )


def _prompt(spec: KernelSpec) -> Iterator[Case]:
    a = arrays(spec)
    query_heads, groups = int(constant(spec, "HQ")), int(constant(spec, "HKV"))
    length = a["keys"].shape[2]

    def data(draw: Draw, span: tuple[int, int, int]) -> Data:
        slot, first, count = span
        query, keys, values = (draw.normal(a[name]) for name in ("query", "keys", "values"))
        query *= math.log2(math.e) / math.sqrt(D)
        query[count:] = torch.nan
        for cache in (keys, values):
            cache[:slot] = torch.nan
            cache[slot + 1 :] = torch.nan
            cache[slot, :, first + count :] = torch.nan
        return {"query": query, "span": draw.given([*span, count - 1]), "keys": keys, "values": values}

    def expected(given: Data) -> dict[str, Expected]:
        slot, first, count, _ = given["span"].tolist()
        out = torch.zeros(a["out"].shape, dtype=torch.float64, device=given["query"].device)
        seen = torch.arange(first + 1, first + count + 1, device=out.device)
        cache = (given[name][slot, :, : first + count] for name in ("keys", "values"))
        out[:count] = mix(given["query"][:count], *cache, seen)
        asked = torch.zeros(out.shape, dtype=torch.bool, device=out.device)
        asked[:count] = True
        return {"out": Expected(value=out, tolerance=BF16_WEIGHTS, where=asked, elsewhere="anything")}

    for name, span in _spans(a["query"].shape[0], length):
        _, first, count = span
        pairs = count * first + count * (count + 1) // 2
        yield Case(
            name=name,
            data=partial(data, span=span),
            expected=expected,
            bytes_moved=2 * a["query"].nbytes + (first + count) * groups * D * 4,
            flops=4 * pairs * query_heads * D,
        )
