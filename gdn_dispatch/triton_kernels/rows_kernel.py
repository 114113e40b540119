"""Tiles of rows."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["load_rows"]


@triton.jit
def load_rows(at, stride, rows, columns, live, width: tl.constexpr, padded: tl.constexpr):
    """Tile [rows, columns] of a tensor with last stride 1; 0 where a row is dead or past width."""
    mask = live[:, None]
    if width != padded:
        mask = mask & (columns < width)[None, :]
    return tl.load(at + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)
