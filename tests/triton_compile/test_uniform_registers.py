"""The check for uniform registers that nobody wrote, on lines as cuobjdump prints them."""

import pytest
from uniform_registers import unwritten

WRITTEN = """
        /*0000*/                   UMOV UR4, 0x400 ;
        /*0010*/                   UIADD3 UR5, UR4, 0x10, URZ ;
        /*0020*/                   ULDC.64 UR6, c[0x0][0x208] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, !UPT ;
        /*0040*/                   ULOP3.LUT UP0, UR9, UR5, 0x7f, URZ, 0xc0, !UPT ;
        /*0050*/                   UIADD3 UR9, UR9, 0x40, URZ ;
"""


def test_what_is_written_is_found_written():
    assert unwritten(WRITTEN) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("UMOV UR4, 0x400", 2),  # the sum and the product's descriptor
        ("ULDC.64 UR6, c[0x0][0x208]", 1),
        ("ULOP3.LUT UP0, UR9, UR5, 0x7f, URZ, 0xc0, !UPT", 1),
    ],
)
def test_what_nobody_wrote_is_found(line, found):
    assert line in WRITTEN
    assert len(set(unwritten(WRITTEN.replace(line, "NOP")))) == found


def test_with_the_left_operand_in_registers_two_are_needed():
    lines = ("ULDC.64 UR6, c[0x0][0x208]", "HGMMA.64x64x16.F32 R24, R8, gdesc[UR4], R24")
    text = "\n".join(f"  /*00{n}0*/ {line} ;" for n, line in enumerate(lines))
    assert unwritten(text) == []
    assert len(unwritten(text.replace("UR6", "UR8"))) == 1


def test_a_move_of_what_nobody_wrote_is_no_fault_and_makes_nothing_written():
    move = "  /*0000*/ UMOV UR33, UR51 ;\n"
    dead = "  /*0010*/ UIADD3.X UR33, URZ, URZ, URZ ;\n"
    use = "  /*0020*/ UIADD3 UR4, UR33, 0x10, URZ ;\n"
    assert unwritten(move + dead + use) == []
    assert len(unwritten(move + use)) == 1
    assert len(unwritten(dead + move + use)) == 1  # written before, and moved over since
