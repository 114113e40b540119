"""What ``bench --suite h200`` checks against: the recurrence in fp64, on a sample of each case."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from gdn_dispatch.torch_backend.reference import reference_conv, reference_gates

__all__ = ["Sample", "chunk_oracle", "layer_oracle", "outermost"]

CHUNK: Final = 64


class Sample(NamedTuple):
    """Exact numbers of one sequence and some value heads.

    Attributes:
        sequence: Its number, or its slot. rows: Its tokens. heads: The value heads.
        output: ``[tokens, heads, V]`` fp64. state: ``[heads, K, V]`` fp64, after the last token.
    """

    sequence: int
    rows: slice
    heads: list[int]
    output: torch.Tensor
    state: torch.Tensor


def outermost(H: int, HV: int) -> tuple[list[int], list[int]]:
    """The first and the last value head, and the key heads they read."""
    heads = sorted({0, HV - 1})
    return heads, [head // (HV // H) for head in heads]


def chunk_oracle(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence over one sequence in fp64, by chunks: steps a device can do in milliseconds.

    Within a chunk, with G the running sum of g from its beginning and S the state before it, the
    corrections d solve (I + A) d = beta (v - e^G S^T k), where A holds
    beta_i e^(G_i - G_j) k_i.k_j below the diagonal; then o = scale (e^G S^T q + P d) with
    P_ij = e^(G_i - G_j) q_i.k_j up to the diagonal, and S becomes
    e^G_last S + sum e^(G_last - G) k d^T.

    Args:
        q, k: ``[T, h, K]``, a key head for every value head. v: ``[T, h, V]``.
        g: ``[T, h]`` finite natural-log decay. beta: ``[T, h]``.
        scale: Factor on the output.
        state: ``[h, K, V]``, or None for zeros.

    Returns:
        Output ``[T, h, V]`` and final state ``[h, K, V]``, fp64.
    """
    T, h, K = q.shape
    V = v.shape[2]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    g, beta = g.double().t(), beta.double().t()
    S = q.new_zeros(h, K, V) if state is None else state.double()
    output = q.new_empty(h, T, V)
    for start in range(0, T, CHUNK):
        rows = slice(start, min(start + CHUNK, T))
        Q, X, Y, b = q[:, rows], k[:, rows], v[:, rows], beta[:, rows, None]
        G = g[:, rows].cumsum(1)
        decay = (G[:, :, None] - G[:, None, :]).clamp(max=0).exp().tril()
        grown = G.exp()[:, :, None]
        A = (b * decay * (X @ X.mT)).tril(-1)
        right = b * (Y - grown * (X @ S))
        d = torch.linalg.solve_triangular(A, right, upper=False, unitriangular=True)
        output[:, rows] = scale * (grown * (Q @ S) + (decay * (Q @ X.mT)) @ d)
        S = G[:, -1].exp()[:, None, None] * S + (decay[:, -1, :, None] * X).mT @ d
    return output.transpose(0, 1), S


def layer_oracle(
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    *,
    num_heads: int,
    state: torch.Tensor,
    conv_weight: torch.Tensor | None,
    history: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """A layer core over one sequence, for the outermost value heads.

    Args:
        mixed_qkv: ``[T, D]``. a, b: ``[T, HV]``. A_log, dt_bias: ``[HV]``.
        num_heads: H.
        state: ``[HV, V, K]`` before the first token.
        conv_weight: ``[D, W]``, or None: ``mixed_qkv`` comes out of the convolution already.
        history: ``[D, W-1]``, or None for zeros.

    Returns:
        Output ``[T, 2, V]`` and state ``[2, K, V]`` in fp64, and the heads they are of.
    """
    HV, V, K = state.shape
    heads, keys = outermost(num_heads, HV)
    width = num_heads * K
    device = mixed_qkv.device
    blocks = [key * K for key in keys] + [width + key * K for key in keys]
    channels = [torch.arange(at, at + K, device=device) for at in blocks]
    channels += [
        torch.arange(2 * width + h * V, 2 * width + (h + 1) * V, device=device) for h in heads
    ]
    chosen = torch.cat(channels)
    x = mixed_qkv[:, chosen]
    if conv_weight is not None:
        past = None if history is None else history[chosen]
        x = reference_conv(x, conv_weight[chosen], None, past, "silu")[0].to(x.dtype)
    q, k, v = x.double().split([len(keys) * K, len(keys) * K, len(heads) * V], dim=1)
    q, k = (y.view(-1, len(keys), K) for y in (q, k))
    q, k = (y * (y.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for y in (q, k))
    gates = (y[..., heads] for y in (a, b, A_log, dt_bias))
    g, beta = reference_gates(*gates)
    output, final = chunk_oracle(q, k, v.view(-1, len(heads), V), g, beta, K**-0.5, state[heads].mT)
    return output, final, heads
