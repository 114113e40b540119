"""Decay and write strength: from what the caller has to what the kernels use."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["SplitDecay", "decay_from_gate", "split_cumulative_decay", "write_strength"]

_LOG2_E = 1.4426950408889634
_FLOOR = -1000.0
"""Base-2 decay below this is an exact zero in fp32 (and fp64 sums of it stay exact)."""


def decay_from_gate(
    a: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor | None
) -> torch.Tensor:
    """Natural-log decay ``-exp(A_log) * softplus(a + dt_bias)``, fp32, of ``a``'s shape."""
    x = a.float()
    if dt_bias is not None:
        x = x + dt_bias.float()
    return -A_log.float().exp() * F.softplus(x)


def write_strength(beta: torch.Tensor, *, is_logit: bool, allow_neg_eigval: bool) -> torch.Tensor:
    """Write strength in fp32: ``sigmoid(beta)`` of a logit, doubled for negative eigenvalues."""
    x = beta.float()
    if is_logit:
        x = x.sigmoid()
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
