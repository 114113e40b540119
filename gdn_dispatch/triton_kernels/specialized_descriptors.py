"""Descriptors of what the kernels of specialised warps read and write.

Gluon's descriptors hold the layout that a tile has in shared memory. Triton's, of ``tiles``, leave
it to the compiler.
"""

from __future__ import annotations

from typing import Final

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from gdn_dispatch.triton_kernels.rule_tensors import CHUNK

__all__ = ["HALF", "factors_of_chunks", "quarters", "quarters_of_heads", "tokens"]

HALF: Final = CHUNK // 2
"""Rows and columns of a quarter of a chunk's matrix."""

# Made once: a layout takes longer to make than the rest of a descriptor.
_ROWS: Final = gl.NVMMASharedLayout(128, 16, 2)
_PANELS: Final = gl.NVMMASharedLayout(64, 16, 2)
_PANELS_OF_HEADS: Final = gl.NVMMASharedLayout(64, 16, 3)
_FLAT: Final = gl.NVMMASharedLayout(0, 32, 1)


def tokens(x: torch.Tensor, columns: int) -> TensorDescriptor:
    """Of ``[T, heads, width]``: chunks of tokens, ``columns`` wide."""
    T, heads, width = x.shape
    block = [CHUNK, columns]
    return TensorDescriptor(x, [T, heads * width], [x.stride(0), 1], block, _ROWS)


def factors_of_chunks(x: torch.Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Of a chunk's factors: four numbers a token, and the two, decay, that scores alone need."""
    four, two = (TensorDescriptor(x, [x.numel()], [1], [n * CHUNK], _FLAT) for n in (4, 2))
    return four, two


def quarters(x: torch.Tensor) -> TensorDescriptor:
    """Of matrices ``[..., n, n]``, or of quarters of them: a quarter."""
    n = x.shape[-1]
    return TensorDescriptor(x, [x.numel() // n, n], [n, 1], [HALF, HALF], _PANELS)


def quarters_of_heads(x: torch.Tensor, heads: int, group: int) -> TensorDescriptor:
    """Of the same by heads, ``[HV, ..., n, n]``: the same quarter of several heads.

    Where these may be more than are left of a key head's, matrices of all key heads lie one below
    the other instead: those of a key head's first value head, of its second and so on side by side.
    """
    n, each = x.shape[-1], x.stride(0)
    count, rows = x.shape[0], each // n
    if heads % group and group % heads:
        count, rows = group, (x.shape[0] - group + 1) * rows
    block = [heads, HALF, HALF]
    return TensorDescriptor(x, [count, rows, n], [each, n, 1], block, _PANELS_OF_HEADS)
