"""Decay and write strength: from what the caller has to what the kernels use.

Written with ``exp`` and ``log1p``: torch's sigmoid, softplus, silu and exp2 give the numbers that
fall behind the last full vector of a thread's share other bits, so that a token's would depend on
the batch around it. (``exp2`` is used all the same, for its speed, where every share is made of
full vectors and the same ones for the same chunk: see ``GATE_BLOCK_ELEMENTS``.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = [
    "GATE_BLOCK_ELEMENTS",
    "SplitDecay",
    "decay_from_gate",
    "split_cumulative_decay",
    "write_strength",
]

_LINEAR = 20.0
"""Above it softplus is its argument, to the last bit of fp32."""
_SMALLEST_LOGIT = -80.0
"""Below it a sigmoid is zero to any purpose, and its exponential near the end of fp32."""
_LOG2_E = 1.4426950408889634
_FLOOR = -1000.0
"""Base-2 decay below this is an exact zero in fp32 (and fp64 sums of it stay exact)."""

GATE_BLOCK_ELEMENTS = 32767
"""Elementwise operations on fewer than 32768 elements are not shared out among threads."""


def decay_from_gate(
    a: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor | None
) -> torch.Tensor:
    """Natural-log decay ``-exp(A_log) * softplus(a + dt_bias)``, fp32, of ``a``'s shape."""
    x = a.float()
    if dt_bias is not None:
        x = x + dt_bias.float()
    softplus = torch.where(x > _LINEAR, x, x.clamp(max=_LINEAR).exp().log1p())
    return -A_log.float().exp() * softplus


def write_strength(beta: torch.Tensor, *, is_logit: bool, allow_neg_eigval: bool) -> torch.Tensor:
    """Write strength in fp32: ``sigmoid(beta)`` of a logit, doubled for negative eigenvalues."""
    x = beta.float()
    if is_logit:
        x = (1 + x.clamp(min=_SMALLEST_LOGIT).neg().exp()).reciprocal()
    return x * 2 if allow_neg_eigval else x


class SplitDecay(NamedTuple):
    """Cumulative base-2 decay inside a chunk, ``integer + fraction``, both fp32 of one shape.

    Differences of two cumulative decays are what the kernels need, and a plain fp32 sum loses them
    after a reset (g = -1e4): the integer parts subtract exactly, the fractions are small.
    """

    integer: torch.Tensor
    fraction: torch.Tensor


def split_cumulative_decay(g: torch.Tensor) -> SplitDecay:
    """Inclusive cumulative sum of ``g`` over its last dimension, in base 2, split.

    Args:
        g: ``[..., C]`` fp32 natural-log decay, <= 0, may be -inf.
    """
    total = (g * _LOG2_E).clamp_(min=_FLOOR).cumsum(-1, dtype=torch.float64)
    integer = total.round()
    return SplitDecay(integer.float(), total.sub_(integer).float())
