"""Which matrix and load instructions a kernel's machine code holds."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.sass import SassFacts

_PLAIN = ("LDG", "LDGSTS")  # to registers; to shared memory past the registers (cp.async)
_WIDTHS = {"8": 1, "U8": 1, "S8": 1, "16": 2, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """`matrix`: opcode families of the tensor cores, such as HGMMA, and `matrix_forms` with modifiers.

    `loads`: TMA where tiles come by the tensor memory accelerator, and LDG and LDGSTS, the plain ones.
    `widest_load`: bytes a thread of the widest plain load, 0 where there is none.
    """

    matrix: tuple[str, ...]
    matrix_forms: tuple[str, ...]
    loads: tuple[str, ...]
    widest_load: int


def read_instructions(facts: SassFacts) -> Instructions:
    """What `facts` say of them."""
    forms = tuple(opcode for opcode in facts.opcodes if opcode.split(".")[0].endswith("MMA"))
    plain = [opcode.split(".") for opcode in facts.opcodes if opcode.split(".")[0] in _PLAIN]
    return Instructions(
        matrix=tuple(sorted({form.split(".")[0] for form in forms})),
        matrix_forms=forms,
        loads=(*(("TMA",) if facts.bulk_copies else ()), *sorted({base for base, *_ in plain})),
        widest_load=max((_width(modifiers) for _, *modifiers in plain), default=0),
    )


def _width(modifiers: list[str]) -> int:
    return next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 4)  # no width means 32 bits
