"""Launches of ``operands_kernel``: one pass over q and k, one over the gates."""

from __future__ import annotations

from typing import Final

import torch
import triton

from gdn_dispatch.triton_kernels.rule_tensors import flat_tokens
from gdn_dispatch_cuda.kernels.operands_kernel import gates_kernel, unit_heads_kernel

__all__ = ["gates", "unit_heads"]

_ROWS: Final = 16
_PAIRS: Final = 512


def unit_heads(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x / sqrt(sum x^2 + 1e-6)`` over the last dimension, in fp32, cast back; contiguous.

    Args:
        q, k: ``[B, T, H, K]`` of one shape and dtype.
    """
    B, T, H, K = q.shape
    out = torch.empty(2, B, T, H, K, dtype=q.dtype, device=q.device)
    pairs = B * T * H
    if pairs:
        q, k = flat_tokens(q), flat_tokens(k)
        unit_heads_kernel[(2 * triton.cdiv(pairs, _ROWS),)](
            q, k, out[0], out[1], pairs, H, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
            K=K, BK=triton.next_power_of_2(K), ROWS=_ROWS, num_warps=4,
        )  # fmt: skip
    return out[0], out[1]


def gates(
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    A_log: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    linear: bool,
    smallest: float,
    beta_is_logit: bool,
    allow_neg_eigval: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay and write strength as a library takes them: fp32, contiguous.

    Args:
        g, beta: ``[B, T, HV]``: natural-log decay and write strength, or what they come from.
        A_log, dt_bias: ``[HV]`` where ``g`` is the raw gate.
        linear: Return ``exp`` of the decay.
        smallest: Else its lower bound.
        beta_is_logit: ``beta`` is before the sigmoid.
        allow_neg_eigval: Double the strength.
    """
    B, T, HV = g.shape
    out = torch.empty(2, B, T, HV, dtype=torch.float32, device=g.device)
    pairs = B * T * HV
    if pairs:
        g, beta = g.flatten(0, 1), beta.flatten(0, 1)
        gates_kernel[(triton.cdiv(pairs, _PAIRS),)](
            g, beta, A_log, dt_bias, out[0], out[1], pairs, HV, smallest,
            g.stride(0), g.stride(1), beta.stride(0), beta.stride(1),
            LINEAR=linear, BETA_IS_LOGIT=beta_is_logit, NEG_EIGVAL=allow_neg_eigval,
            PAIRS=_PAIRS, num_warps=4,
        )  # fmt: skip
    return out[0], out[1]
