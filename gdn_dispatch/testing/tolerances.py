"""How far a result may be from the fp64 recurrence: one table, a reason for each number."""

from __future__ import annotations

from typing import Final

__all__ = ["NEAR_IDENTICAL_FACTOR", "TOLERANCES"]

TOLERANCES: Final = {
    # fp64 throughout; sums of a few hundred terms
    "float64": 1e-12,
    # fp32 throughout, whatever the order of the sums; tf32 products would err by 1e-3
    "float32": 1e-5,
    # rounding the output alone costs 5e-4; inside, operands of products may be fp16 too
    "float16": 3e-3,
    # rounding the output alone costs 4e-3; inside, operands of products may be bf16 too
    "bfloat16": 1.5e-2,
}
"""Relative error (Frobenius norm) of output and final state, by activation dtype."""

NEAR_IDENTICAL_FACTOR: Final = 10.0
"""More for keys that are nearly the same: the recurrence itself amplifies every rounding there."""
