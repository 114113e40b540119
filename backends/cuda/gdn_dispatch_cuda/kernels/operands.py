"""The launch of ``operands_kernel``: q, k and the gates as a library wants them."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton

from gdn_dispatch.triton_kernels.rule_tensors import flat_tokens
from gdn_dispatch_cuda.kernels.operands_kernel import operands_kernel

__all__ = ["Gates", "converted"]

_ROWS: Final = 16
_PAIRS: Final = 512


class Gates(NamedTuple):
    """The gates of a call, and the form in which a library takes them.

    Attributes:
        g, beta: ``[B, T, HV]``. A_log, dt_bias: ``[HV]``, where g is raw.
        linear: The decay as ``exp(g)``; else in natural logarithms, at least ``smallest``.
        beta_is_logit: Of beta. allow_neg_eigval: Strength up to 2.
    """

    g: torch.Tensor
    beta: torch.Tensor
    A_log: torch.Tensor | None
    dt_bias: torch.Tensor | None
    linear: bool
    smallest: float
    beta_is_logit: bool
    allow_neg_eigval: bool


def converted(
    heads: tuple[torch.Tensor, torch.Tensor] | None, gates: Gates
) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor, torch.Tensor]:
    """Unit heads, decay and write strength, contiguous, in one launch.

    Args:
        heads: q and k ``[B, T, H, K]`` of one shape and dtype, to be divided by
            ``sqrt(sum x^2 + 1e-6)`` over K in fp32 and cast back; None: they stay as they are.
        gates: The results are fp32. beta itself is handed on where there is nothing to do.
    """
    g, beta = gates.g, gates.beta
    B, T, HV = g.shape
    kept = (
        beta.dtype == torch.float32
        and beta.is_contiguous()
        and not (gates.beta_is_logit or gates.allow_neg_eigval)
    )
    decay = torch.empty(B, T, HV, dtype=torch.float32, device=g.device)
    strength = beta if kept else torch.empty_like(decay)
    q = k = unit = None
    H = K = blocks = 0
    strides = [0, 0, 0, 0]
    if heads is not None:
        q, k = heads
        H, K = q.shape[2:]
        both = torch.empty(2, B, T, H, K, dtype=q.dtype, device=q.device)
        unit = both[0], both[1]
        q, k = flat_tokens(q), flat_tokens(k)
        strides = [*q.stride()[:2], *k.stride()[:2]]
        blocks = triton.cdiv(B * T * H, _ROWS)
    if B * T:
        flat = g.is_contiguous() and (kept or beta.is_contiguous())
        g, beta = g.flatten(0, 1), beta.flatten(0, 1)
        operands_kernel[(2 * blocks + triton.cdiv(B * T * HV, _PAIRS),)](
            q, k, *(unit or (None, None)),
            g, None if kept else beta, gates.A_log, gates.dt_bias,
            decay, None if kept else strength,
            blocks, B * T * H, H, B * T * HV, HV, gates.smallest,
            *strides, *g.stride(), *beta.stride(),
            K=K, BK=triton.next_power_of_2(max(K, 1)), FLAT=flat, LINEAR=gates.linear,
            BETA_IS_LOGIT=gates.beta_is_logit, NEG_EIGVAL=gates.allow_neg_eigval,
            ROWS=_ROWS, PAIRS=_PAIRS, num_warps=4,
        )  # fmt: skip
    return unit, decay, strength
