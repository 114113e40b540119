"""The mathematics, one token at a time, to be read and to test against.

Nothing here is fast. ``reference_gated_delta_rule`` and ``reference_gdn_layer`` take one sequence,
compute in the dtype asked for (fp64 is the oracle) and return new tensors; every kernel of every
backend is held against them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["reference_conv", "reference_gated_delta_rule", "reference_gates", "reference_gdn_layer"]

_L2_EPS = 1e-6


def reference_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    use_qk_l2norm: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence of Yang et al., "Gated Delta Networks" (arXiv 2412.06464), eq. 10.

    Per token: ``S <- e^g S;  d = beta (v - S^T k);  S <- S + k d^T;  o = scale S^T q``.

    Args:
        q, k: ``[T, H, K]``. v: ``[T, HV, V]``; value head j reads key head j // (HV/H).
        g: ``[T, HV]`` natural-log decay, <= 0, may be -inf. beta: ``[T, HV]``.
        scale: Factor on the output; K^-1/2 unless given.
        initial_state: ``[HV, K, V]``, or None for zeros.
        use_qk_l2norm: Normalise q and k over K first.
        dtype: What to compute in.

    Returns:
        Output ``[T, HV, V]`` and final state ``[HV, K, V]``, both in ``dtype``.
    """
    T, H, K = q.shape
    HV, V = v.shape[1:]
    q, k, v, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
    if use_qk_l2norm:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _L2_EPS) for x in (q, k))
    q, k = (x.repeat_interleave(HV // H, dim=1) for x in (q, k))
    q = q * (K**-0.5 if scale is None else scale)
    decay = g.exp()
    state = v.new_zeros(HV, K, V) if initial_state is None else initial_state.to(dtype)
    output = v.new_empty(T, HV, V)
    for t in range(T):
        state = state * decay[t][:, None, None]
        d = beta[t][:, None] * (v[t] - torch.einsum("hkv,hk->hv", state, k[t]))
        state = state + k[t][:, :, None] * d[:, None, :]
        output[t] = torch.einsum("hkv,hk->hv", state, q[t])
    return output, state


def reference_gates(
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    *,
    allow_neg_eigval: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay ``-exp(A_log) softplus(a + dt_bias)`` and beta ``sigmoid(b)``, ``[T, HV]`` each."""
    g = -A_log.to(dtype).exp() * F.softplus(a.to(dtype) + dt_bias.to(dtype))
    beta = b.to(dtype).sigmoid()
    return g, beta * 2 if allow_neg_eigval else beta


def reference_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    history: torch.Tensor | None,
    activation: str | None,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal depthwise convolution: ``c_t = act(bias + sum_i w[:, i] h_{t+i})``, h = [history | x].

    Args:
        x: ``[T, D]``. weight: ``[D, W]``. bias: ``[D]`` or None.
        history: ``[D, W-1]``, oldest first, or None for zeros.

    Returns:
        ``[T, D]`` in ``dtype``, and h ``[W-1+T, D]`` in x's dtype (its last W-1 rows are the next
        history).
    """
    T, W = x.shape[0], weight.shape[1]
    past = x.new_zeros(W - 1, x.shape[1]) if history is None else history.t().to(x.dtype)
    h = torch.cat([past, x])
    total = torch.zeros_like(x, dtype=dtype) if bias is None else bias.to(dtype).expand(T, -1)
    for i in range(W):
        total = total + weight[:, i].to(dtype) * h[i : i + T].to(dtype)
    return (F.silu(total) if activation in ("silu", "swish") else total), h


def reference_gdn_layer(
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    num_heads: int,
    head_dim_k: int,
    head_dim_v: int,
    conv_history: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    activation: str | None = "silu",
    scale: float | None = None,
    allow_neg_eigval: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A whole layer core over one sequence: conv, heads and gates, recurrence.

    Args:
        mixed_qkv: ``[T, D]``. a, b: ``[T, HV]``. conv_history: ``[D, W-1]`` or None.
        initial_state: ``[HV, K, V]`` or None. The rest as in ``gdn_dispatch.gdn_attention``.

    Returns:
        Output ``[T, HV, V]``, conv history ``[D, W-1]``, state ``[HV, K, V]``.
    """
    T = mixed_qkv.shape[0]
    conv, h = reference_conv(
        mixed_qkv, conv_weight, conv_bias, conv_history, activation, dtype=dtype
    )
    # What the model hands on is in the activation dtype; the oracle for fp32 keeps fp32 rounding.
    conv = conv.to(mixed_qkv.dtype)
    width = num_heads * head_dim_k
    q = conv[:, :width].view(T, num_heads, head_dim_k)
    k = conv[:, width : 2 * width].view(T, num_heads, head_dim_k)
    v = conv[:, 2 * width :].view(T, -1, head_dim_v)
    g, beta = reference_gates(a, b, A_log, dt_bias, allow_neg_eigval=allow_neg_eigval, dtype=dtype)
    output, state = reference_gated_delta_rule(
        q, k, v, g, beta, scale=scale, initial_state=initial_state, use_qk_l2norm=True, dtype=dtype
    )
    return output, h[h.shape[0] - conv_weight.shape[1] + 1 :].t(), state
