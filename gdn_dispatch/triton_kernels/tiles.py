"""Tensor descriptors of what the recurrence reads chunk by chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from triton.tools.tensor_descriptor import TensorDescriptor

if TYPE_CHECKING:
    import torch

__all__ = ["Tiles", "tiles_of"]


class Tiles(NamedTuple):
    """Descriptors, in the order in which kernels take them."""

    q: TensorDescriptor
    k: TensorDescriptor
    v: TensorDescriptor
    transform: TensorDescriptor
    attention: TensorDescriptor | None
    factors: TensorDescriptor


def tiles_of(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    transform: torch.Tensor,
    attention: torch.Tensor | None,
    factors: torch.Tensor,
    *,
    block_v: int,
) -> Tiles | None:
    """Descriptors of whole chunks, or None where strides, alignment or sizes do not allow them.

    Args:
        q, k: ``[T, H, K]``. v: ``[T, HV, V]``.
        transform: ``[HV, chunks, C, C]``. attention: The same, or None: not wanted.
        factors: ``[HV, chunks, 5, C]``.
        block_v: Columns of v to read at once.
    """
    K, V = k.shape[2], v.shape[2]
    C = factors.shape[-1]
    if K not in (16, 32, 64, 128, 256) or V % block_v:
        return None
    rows = []
    for x, columns in ((q, K), (k, K), (v, block_v)):
        T, heads, width = x.shape
        # heads side by side, in rows that start at multiples of 16 bytes
        if heads > 1 and x.stride(1) != width:
            return None
        if x.stride(0) * x.element_size() % 16 or x.data_ptr() % 16:
            return None
        rows.append(TensorDescriptor(x, [T, heads * width], [x.stride(0), 1], [C, columns]))
    of_transform, of_attention = (
        None if x is None else TensorDescriptor(x, [x.numel() // C, C], [C, 1], [C, C])
        for x in (transform, attention)
    )
    of_factors = TensorDescriptor(factors, [factors.numel() // C, C], [C, 1], [1, C])
    of_q, of_k, of_v = rows
    return Tiles(of_q, of_k, of_v, of_transform, of_attention, of_factors)
