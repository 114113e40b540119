"""(I + A)^-1 for batches of strictly lower triangular 32 x 32 matrices.

Powers of A are never formed: for correlated keys and beta near one they grow before they cancel,
and fp32 loses the answer. Instead the inverse is grown along the diagonal. With T the inverse of
the diagonal blocks of size s, and A_s the part of A that joins two of them to one of size 2s,

    T <- T - T A_s T

is exact, because the off-diagonal block of the inverse of [[L1, 0], [B, L2]] is -L2^-1 B L1^-1.
Blocks of 16 are packed side by side, so that no product touches the zero half.
"""

from __future__ import annotations

import torch

from gdn_dispatch.torch_backend.capability import CHUNK

__all__ = ["InverseBuffers", "unit_lower_inverse"]

_HALF = CHUNK // 2


def _joins(size: int) -> torch.Tensor:
    """0/1 mask of the part of a 16 x 16 matrix that joins neighbouring blocks of ``size``."""
    block = torch.arange(_HALF) // size
    row, col = block[:, None], block[None, :]
    return ((row // 2 == col // 2) & (row % 2 == 1) & (col % 2 == 0)).float()


class InverseBuffers:
    """Scratch for up to ``capacity`` matrices; reused by every call."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.diagonal = torch.empty(capacity, 2, _HALF, _HALF, device=device)
        self.inverse = torch.empty(2 * capacity, _HALF, _HALF, device=device)
        self.joint = torch.empty_like(self.inverse)
        self.product = torch.empty_like(self.inverse)
        self.result = torch.zeros(capacity, CHUNK, CHUNK, device=device)
        self.eye = torch.eye(_HALF, device=device)
        self.masks = {size: _joins(size).to(device) for size in (1, 2, 4, 8)}


def unit_lower_inverse(a: torch.Tensor, buffers: InverseBuffers) -> torch.Tensor:
    """Inverse of ``I + a``.

    Args:
        a: ``[n, 32, 32]`` fp32, strictly lower triangular.
        buffers: Scratch for at least n matrices.

    Returns:
        ``[n, 32, 32]`` fp32, unit lower triangular; lives in ``buffers`` until the next call.
    """
    n = a.shape[0]
    packed = buffers.diagonal[:n]
    packed[:, 0].copy_(a[:, :_HALF, :_HALF])
    packed[:, 1].copy_(a[:, _HALF:, _HALF:])
    diagonal = packed.view(2 * n, _HALF, _HALF)
    joint, product = buffers.joint[: 2 * n], buffers.product[: 2 * n]

    inverse = buffers.inverse[: 2 * n]
    torch.addcmul(buffers.eye, diagonal, buffers.masks[1], value=-1, out=inverse)
    for size in (2, 4, 8):
        torch.mul(diagonal, buffers.masks[size], out=joint)
        torch.bmm(inverse, joint, out=product)
        torch.bmm(product, inverse, out=joint)
        inverse.sub_(joint)

    upper, lower = inverse.view(n, 2, _HALF, _HALF).unbind(1)
    result = buffers.result[:n]
    result[:, :_HALF, :_HALF].copy_(upper)
    result[:, _HALF:, _HALF:].copy_(lower)
    corner = torch.bmm(torch.bmm(lower, a[:, _HALF:, :_HALF]), upper)
    torch.neg(corner, out=result[:, _HALF:, :_HALF])
    return result
