"""What the machine code of a cubin holds, read from `nvdisasm -c` text. Standard library only."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_TARGET = re.compile(r"^\s*\.target\s+(sm_\d+[a-z]?)", re.MULTILINE)
_FUNCTION = re.compile(r"^\s*\.type\s+([\w$.]+),@function", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)", re.MULTILINE
)
_WIDTHS = {"8": 1, "U8": 1, "S8": 1, "16": 2, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_BULK = ("UBLKCP", "UBLKRED", "UTMALDG", "UTMASTG", "UTMAREDG")


@dataclass(frozen=True, slots=True, kw_only=True)
class SassFacts:
    """What one disassembly holds.

    `opcodes` counts each instruction with its modifiers. Widths are bytes per thread, ascending, no repeats.

    `bulk_copies` counts instructions of the tensor memory accelerator; `spill_stores` and `spill_loads` those
    on local memory (STL, LDL): registers that did not fit.
    """

    target: str
    functions: tuple[str, ...]
    instructions: int
    opcodes: dict[str, int]
    global_load_bytes: tuple[int, ...]
    global_store_bytes: tuple[int, ...]
    bulk_copies: int
    spill_stores: int
    spill_loads: int

    def holds(self, opcode: str) -> bool:
        """Whether an instruction of this name is there; `LDG.E` also finds `LDG.E.64`."""
        return any(found == opcode or found.startswith(opcode + ".") for found in self.opcodes)


def read_sass(text: str) -> SassFacts:
    """Facts of one disassembly. Errors: `ValueError` when it names no target or holds no instruction."""
    target = _TARGET.search(text)
    opcodes = Counter(_INSTRUCTION.findall(text))
    if target is None or not opcodes:
        raise ValueError("the disassembly names no .target or holds no instruction")
    return SassFacts(
        target=target.group(1),
        functions=tuple(sorted(set(_FUNCTION.findall(text)))),
        instructions=sum(opcodes.values()),
        opcodes=dict(sorted(opcodes.items())),
        global_load_bytes=_widths(opcodes, "LDG"),
        global_store_bytes=_widths(opcodes, "STG"),
        bulk_copies=sum(n for opcode, n in opcodes.items() if opcode.split(".")[0] in _BULK),
        spill_stores=_count(opcodes, "STL"),
        spill_loads=_count(opcodes, "LDL"),
    )


def _count(opcodes: Counter[str], base: str) -> int:
    return sum(n for opcode, n in opcodes.items() if opcode.split(".")[0] == base)


def _widths(opcodes: Counter[str], base: str) -> tuple[int, ...]:
    found = set()
    for opcode in opcodes:
        name, *modifiers = opcode.split(".")
        if name == base:
            found.add(next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 4))  # no width means 32 bits
    return tuple(sorted(found))
