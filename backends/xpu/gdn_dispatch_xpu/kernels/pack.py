"""The launch of the packing kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import triton

from gdn_dispatch_xpu.kernels.pack_kernel import pack_kernel

if TYPE_CHECKING:
    import torch

__all__ = ["pack"]

_BLOCK: Final = 1024


def pack(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    packed: torch.Tensor | None,
    gates: torch.Tensor | None,
) -> None:
    """Copy columns into contiguous rows, in one launch.

    Args:
        x: ``[T, D]``, any strides. a, b: ``[T, HV]``, any strides.
        packed: ``[T, >= D]`` contiguous, receives x in its first D columns; None: not wanted.
        gates: ``[T, 2*HV]`` contiguous, receives [b | a]; None: not wanted.
    """
    T, D = x.shape
    HV = a.shape[1]
    blocks = triton.cdiv(D, _BLOCK) if packed is not None else 0
    gate_blocks = triton.cdiv(2 * HV, _BLOCK) if gates is not None else 0
    if T == 0 or blocks + gate_blocks == 0:
        return
    pack_kernel[(T * (blocks + gate_blocks),)](
        x, a, b, packed, gates, blocks, blocks + gate_blocks,
        *x.stride(), *a.stride(), *b.stride(), 0 if packed is None else packed.stride(0),
        D=D, HV=HV, BLOCK=_BLOCK,
    )  # fmt: skip
