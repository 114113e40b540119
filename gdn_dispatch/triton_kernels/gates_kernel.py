"""Decay and write strength of a block of tokens."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["decay_and_strength"]


@triton.jit
def decay_and_strength(
    g, beta, A_log, dt_bias, head, live, BETA_IS_LOGIT: tl.constexpr, NEG_EIGVAL: tl.constexpr
):
    """Natural-log decay and write strength in fp32, from raw gates where there are some.

    ``g`` and ``beta`` are pointers of one shape, ``head`` the value head they are of; both results
    are 0 where ``live`` is false.
    """
    decay = tl.load(g, mask=live, other=0.0).to(tl.float32)
    if A_log is not None:
        x = decay
        if dt_bias is not None:
            x += tl.load(dt_bias + head).to(tl.float32)
        # softplus = max(x, 0) + log1p(e); log1p from log, corrected for what 1 + e rounds away
        e = tl.exp(-tl.abs(x))
        u = 1.0 + e
        log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
        decay = -tl.exp(tl.load(A_log + head).to(tl.float32)) * (tl.maximum(x, 0.0) + log1p)
        decay = tl.where(live, decay, 0.0)
    strength = tl.load(beta, mask=live, other=0.0).to(tl.float32)
    if BETA_IS_LOGIT:
        strength = 1.0 / (1.0 + tl.exp(-strength))
        strength = tl.where(live, strength, 0.0)
    if NEG_EIGVAL:
        strength = strength * 2.0
    return decay, strength
