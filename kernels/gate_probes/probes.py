"""Every probe as data: precision, authoring route, source, arrays, and the instruction its SASS must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from kernels.sass import SassFacts

# Bits that one weight takes in memory, its scales and codebooks not counted.
PRECISIONS = {
    "bf16": 16,
    "fp16": 16,
    "tf32": 32,
    "fp8-e4m3": 8,
    "fp8-e5m2": 8,
    "int8": 8,
    "int4-codebook": 4,
    "nvfp4": 4,
}
ROUTES = {
    "elementwise": "arithmetic on tiles of the precision",
    "mma": "ct.mma on tiles of the precision",
    "block-scaled-mma": "ct.mma_scaled, a scale to each block along the reduction",
    "weight-only": "the compiler's own conversion of weights to bf16, then ct.mma",
    "weight-only-shift": "weights to bf16 by shifts and a multiplication, then ct.mma",
}
_NO_CONVERSION = "its weights are what the tensor core takes: there is nothing to dequantise"
_NO_NUMBERS = "its four bits are indices into a codebook, no numbers to compute with"
_NO_SHIFT = "its conversion is one instruction on every chip, so there is no second way to write"
_LOOK_UP = "a codebook's values are looked up; no arithmetic leads to them"
NOT_APPLICABLE = {
    **{(p, r): _NO_CONVERSION for p in ("bf16", "fp16", "tf32") for r in tuple(ROUTES)[3:]},
    **{("int4-codebook", route): _NO_NUMBERS for route in tuple(ROUTES)[:3]},
    ("int4-codebook", "weight-only-shift"): _LOOK_UP,
    ("int8", "weight-only-shift"): _NO_SHIFT,
}
DTYPE_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "i32": 4, "i8": 1, "u8": 1, "e4m3": 1, "e5m2": 1, "e8m0": 1}
_STORED = {"bf16": "bf16", "fp16": "f16", "tf32": "f32", "fp8-e4m3": "e4m3", "fp8-e5m2": "e5m2", "int8": "i8"}
_ADDRESSES = {"MOV", "WIDE", "SHL", "IADD", "X", "U32"}  # IMAD's forms that moves and addresses are made of
M, N, K, TILES = 64, 32, 64, 4
GROUP = 64  # weights that share a codebook


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One array, row-major and contiguous. Two numbers of four bits share a byte of `u8`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it occupies."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index to the next in each dimension, the last one 1."""
        return tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question. `function` is a kernel of `tiles`; the last operand is what it writes; one block runs."""

    precision: str
    route: str
    function: str
    operands: tuple[Operand, ...]
    constants: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """Precision and route."""
        return f"{self.precision}.{self.route}"

    @property
    def symbol(self) -> str:
        """The kernel's name in its cubin."""
        return self.name.replace(".", "_").replace("-", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An instruction: its opcode and modifiers that must stand behind it, in any order."""

    opcode: str
    modifiers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.opcode, *self.modifiers))

    def found(self, facts: SassFacts) -> tuple[str, ...]:
        """The instructions of the machine code that are it."""
        split = ((form, form.split(".")) for form in facts.opcodes)
        found = (f for f, (base, *rest) in split if base == self.opcode and {*self.modifiers} <= {*rest})
        return tuple(form for form in found if not _ADDRESSES.intersection(form.split(".")))


def probes() -> tuple[Probe, ...]:
    """All of them, by precision, then route."""
    found = {(probe.precision, probe.route): probe for probe in _all()}
    return tuple(found[p, r] for p in PRECISIONS for r in ROUTES if (p, r) not in NOT_APPLICABLE)


def wanted(probe: Probe, target: str) -> Wanted:
    """What the probe's SASS must hold on `target`: the native instruction, not an emulation."""
    if probe.route == "elementwise":
        by_precision = {
            "bf16": Wanted(opcode="HFMA2", modifiers=("BF16_V2",)),
            "fp16": Wanted(opcode="HFMA2"),
        }
        return by_precision.get(
            probe.precision, Wanted(opcode="IMAD" if probe.precision == "int8" else "FFMA")
        )
    converted = probe.route.startswith("weight-only")
    precision = "bf16" if converted else probe.precision
    scaled = probe.route == "block-scaled-mma"
    kind = {"fp8-e4m3": "Q", "fp8-e5m2": "Q", "int8": "I", "nvfp4": "O"}.get(precision, "H")
    if target in ("sm_100", "sm_103", "sm_110"):
        return Wanted(opcode=f"UTC{kind}MMA")  # the types are in a descriptor, not in the opcode
    types = {"bf16": "BF16", "tf32": "TF32", "fp8-e4m3": "E4M3", "fp8-e5m2": "E5M2", "nvfp4": "E2M1"}
    modifiers = (*(("SF",) if scaled else ()), *((types[precision],) if precision in types else ()))
    return Wanted(opcode=f"{kind}{'G' if target == 'sm_90' else ''}MMA", modifiers=modifiers)


def _all() -> Iterator[Probe]:
    for precision, dtype in _STORED.items():
        suffix = "_tf32" if precision == "tf32" else ""
        yield _elementwise(precision, f"elementwise{suffix}", (dtype, dtype, dtype))
        yield _mma(precision, f"mma{suffix}", dtype, K * TILES, "i32" if precision == "int8" else "f32")
        yield _scaled(precision, f"scaled{suffix}", dtype, K * TILES, "e8m0", 32)
        yield _weight_only(precision, "weight-only", "converted", dtype)
    for precision, shift, factor in (("fp8-e4m3", 7, 256), ("fp8-e5m2", 8, 1)):
        more = (("SHIFT", shift), ("FACTOR", factor))
        yield _weight_only(precision, "weight-only-shift", "shifted_fp8", "u8", more)
    yield _elementwise("nvfp4", "elementwise_fp4", ("u8", "u8", "f32"))
    yield _mma("nvfp4", "mma_fp4", "u8", K * TILES // 2, "f32")
    yield _scaled("nvfp4", "scaled_fp4", "u8", K * TILES // 2, "e4m3", 16)
    for route, function, scale in (
        ("weight-only", "converted_fp4", "e4m3"),
        ("weight-only-shift", "shifted_fp4", "u8"),
    ):
        scales = Operand(name="scale", dtype=scale, shape=(M, K * TILES // 16))
        yield _packed("nvfp4", route, function, scales, 16)
    book = Operand(name="book", dtype="bf16", shape=(M, K * TILES // GROUP, 16))
    yield _packed("int4-codebook", "weight-only", "codebook", book, GROUP)


def _elementwise(precision: str, function: str, dtypes: tuple[str, str, str]) -> Probe:
    packed = dtypes[0] == "u8"
    shapes = ((M, K // 2), (M, K // 2), (M, K)) if packed else ((M, K),) * 3
    operands = tuple(
        Operand(name=name, dtype=dtype, shape=shape)
        for name, dtype, shape in zip(("a", "b", "out"), dtypes, shapes, strict=True)
    )
    return _probe(precision, "elementwise", function, operands, (("M", M), ("N", K)))


def _mma(precision: str, function: str, dtype: str, width: int, out: str) -> Probe:
    operands = (
        Operand(name="w", dtype=dtype, shape=(M, width)),
        Operand(name="x", dtype=dtype, shape=(N, width)),
        Operand(name="out", dtype=out, shape=(M, N)),
    )
    return _probe(precision, "mma", function, operands, _PRODUCT)


def _scaled(precision: str, function: str, dtype: str, width: int, scale: str, block: int) -> Probe:
    operands = (
        Operand(name="w", dtype=dtype, shape=(M, width)),
        Operand(name="w_scale", dtype=scale, shape=(M, K * TILES // block)),
        Operand(name="x", dtype=dtype, shape=(N, width)),
        Operand(name="x_scale", dtype=scale, shape=(N, K * TILES // block)),
        Operand(name="out", dtype="f32", shape=(M, N)),
    )
    return _probe(precision, "block-scaled-mma", function, operands, (*_PRODUCT, ("BLOCK", block)))


def _weight_only(
    precision: str, route: str, function: str, dtype: str, more: tuple[tuple[str, int], ...] = ()
) -> Probe:
    operands = (
        Operand(name="w", dtype=dtype, shape=(M, K * TILES)),
        Operand(name="scale", dtype="f32", shape=(M, 1)),
        *_ACTIVATIONS,
    )
    return _probe(precision, route, function, operands, (*_PRODUCT, *more))


def _packed(precision: str, route: str, function: str, beside: Operand, block: int) -> Probe:
    operands = (Operand(name="w", dtype="u8", shape=(M, K * TILES // 2)), beside, *_ACTIVATIONS)
    return _probe(precision, route, function, operands, (*_PRODUCT, ("BLOCK", block)))


_PRODUCT = (("M", M), ("N", N), ("K", K), ("TILES", TILES))
_ACTIVATIONS = (
    Operand(name="x", dtype="bf16", shape=(N, K * TILES)),
    Operand(name="out", dtype="f32", shape=(M, N)),
)


def _probe(
    precision: str,
    route: str,
    function: str,
    operands: tuple[Operand, ...],
    constants: tuple[tuple[str, int], ...],
) -> Probe:
    return Probe(precision=precision, route=route, function=function, operands=operands, constants=constants)
