"""Uniform registers that machine code reads and never writes: a fault of ptxas 12.8 on sm_90.

Seen in Triton 3.6: the descriptor of a matrix product (wgmma) took half of its four uniform
registers from one that nothing had written, so the product read shared memory out of bounds, on
some inputs only. No other tool says a word of it.
"""

from __future__ import annotations

import re

_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(\S+)\s*(.*?);")
_WRITES = ("U", "R2UR", "S2UR", "VOTEU", "REDUX", "CREDUX")
_UNIFORM = re.compile(r"\bUR(\d+)\b")


def unwritten(sass):
    """Instructions of ``sass`` that read a uniform register before any instruction wrote it."""
    written, found = set(), []
    for line in sass.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, text = match.groups()
        operands = [operand.strip() for operand in text.split(",")]
        target = None
        while operands and re.fullmatch(r"UP\d+", operands[0]) and name.startswith("ULOP"):
            operands = operands[1:]  # a predicate that is written, too
        if name.startswith(_WRITES) and re.fullmatch(r"UR\d+", operands[0]):
            target, operands = int(operands[0][2:]), operands[1:]
        if name == "UMOV" and target is not None:
            # half of a pair is moved with the other half, and written after that: what was not
            # written does not become so by a move, but the move itself is no fault
            source = _UNIFORM.fullmatch(operands[0])
            if source is not None and int(source[1]) not in written:
                written.discard(target)
                continue
        for operand in operands:
            for number in map(int, _UNIFORM.findall(operand)):
                if any(n not in written for n in _needed(number, operand, operands)):
                    found.append(f"{name} {text}")
        if target is not None:
            width = 4 if ".128" in name else 2 if ".64" in name or "WIDE" in name else 1
            written |= set(range(target, target + width))
    return found


def _needed(number, operand, operands):
    """Registers that an operand stands for: a descriptor is two or four of them."""
    if "gdesc" not in operand:
        return (number,)
    # with the left operand in registers, only the right one is described
    left_in_registers = len(operands) > 2 and re.match(r"R\d+", operands[1]) is not None
    if left_in_registers and "gdesc" in operands[2]:
        return number + 2, number + 3
    return range(number, number + 4)
