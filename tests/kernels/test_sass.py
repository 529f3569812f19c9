"""The reader of nvdisasm's text, on lines of real disassemblies."""

from __future__ import annotations

import pytest

from kernels.sass import read_sass

TEXT = """
\t.target\tsm_90a
        .type           vector_add,@function
.text.vector_add:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*01f0*/              @!P0 BRA `(.L_x_0) ;
        /*02d0*/                   LDG.E.64 R6, desc[UR6][R2.64] ;
        /*02e0*/               @P1 LDG.E R7, desc[UR6][R2.64] ;
        /*02f0*/             @!UP0 LDG.E.128.CONSTANT R8, desc[UR6][R2.64] ;
        /*0490*/                   FADD R3, R7, R5 ;
        /*04a0*/                   FADD R2, R6, R4 ;
        /*05f0*/              @!PT STG.E.U16 desc[UR6][R4.64], R2 ;
        /*0600*/                   EXIT ;
"""


def test_opcodes_are_counted_with_their_modifiers_and_without_their_predicates() -> None:
    facts = read_sass(TEXT)
    assert facts.target == "sm_90a"
    assert facts.functions == ("vector_add",)
    assert facts.instructions == 9
    assert facts.opcodes["FADD"] == 2
    assert facts.opcodes["BRA"] == facts.opcodes["LDG.E.128.CONSTANT"] == 1


def test_widths_of_global_accesses_are_bytes_per_thread() -> None:
    facts = read_sass(TEXT)
    assert facts.global_load_bytes == (4, 8, 16)
    assert facts.global_store_bytes == (2,)


def test_an_opcode_is_found_by_its_leading_parts_and_not_by_its_leading_letters() -> None:
    facts = read_sass(TEXT)
    assert facts.holds("LDG.E") and facts.holds("LDG.E.128") and facts.holds("FADD")
    assert not facts.holds("FAD") and not facts.holds("LDG.E.12")


def test_spills_and_bulk_copies_are_counted() -> None:
    more = TEXT + (
        "        /*0610*/                   STL.64 [R1], R4 ;\n"
        "        /*0620*/                   LDL.64 R4, [R1] ;\n"
        "        /*0630*/                   LDL R4, [R1+0x8] ;\n"
        "        /*0640*/                   UTMALDG.2D [UR8], [UR4] ;\n"
    )
    facts = read_sass(more)
    assert (facts.spill_stores, facts.spill_loads, facts.bulk_copies) == (1, 2, 1)


@pytest.mark.parametrize("text", ["", "\t.target\tsm_90a\n", TEXT.replace(".target", ".elsewhere")])
def test_text_without_a_target_or_an_instruction_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no \.target or holds no instruction"):
        read_sass(text)
