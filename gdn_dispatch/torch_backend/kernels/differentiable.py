"""The gated delta rule in chunks, out of place, for autograd.

The same chunk form as ``chunk.py`` written with ordinary differentiable operations: one solve with
A instead of an inverse, a Python loop over chunks, a list of outputs. Slower, and it keeps what
backward needs; used only where an input requires grad.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gdn_dispatch.torch_backend.kernels.gates import split_cumulative_decay

__all__ = ["differentiable_gated_delta_rule"]

_CHUNK = 64
_L2_EPS = 1e-6


def differentiable_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    scale: float,
    initial_state: torch.Tensor | None,
    l2norm: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence.

    Args:
        q, k: ``[T, H, K]``. v: ``[T, HV, V]``. g, beta: ``[T, HV]`` fp32.
        scale: Factor on the output. initial_state: ``[HV, K, V]`` or None.
        l2norm: Normalise q and k over K first.

    Returns:
        Output ``[T, HV, V]`` and state ``[HV, K, V]``, fp32.
    """
    T, H, K = q.shape
    HV, V = v.shape[1:]
    q, k, v = (x.float() for x in (q, k, v))
    if l2norm:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _L2_EPS) for x in (q, k))
    q, k = (x.repeat_interleave(HV // H, dim=1) for x in (q * scale, k))
    state = v.new_zeros(HV, K, V) if initial_state is None else initial_state.float()
    if T == 0:
        return v, state

    pad = -T % _CHUNK
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, pad)) for x in (q, k, v))
    g, beta = (F.pad(x, (0, 0, 0, pad)) for x in (g, beta))
    # [HV, chunks, C, ...]
    q, k, v = (x.unflatten(0, (-1, _CHUNK)).permute(2, 0, 1, 3) for x in (q, k, v))
    g, beta = (x.unflatten(0, (-1, _CHUNK)).permute(2, 0, 1) for x in (g, beta))

    integer, fraction = split_cumulative_decay(g)
    visible = torch.ones(_CHUNK, _CHUNK, dtype=torch.bool, device=q.device).tril()
    difference = (integer.unsqueeze(-1) - integer.unsqueeze(-2)) + (
        fraction.unsqueeze(-1) - fraction.unsqueeze(-2)
    )
    # Masked before exp2: a future difference may overflow, and inf * 0 has no gradient.
    decay = torch.exp2(difference.masked_fill(~visible, 0.0)).masked_fill(~visible, 0.0)
    from_start = torch.exp2(integer + fraction).unsqueeze(-1)
    to_end = torch.exp2((integer[..., -1:] - integer) + (fraction[..., -1:] - fraction)).unsqueeze(
        -1
    )
    system = (beta.unsqueeze(-1) * decay * (k @ k.transpose(-1, -2))).tril(-1)
    attention = decay * (q @ k.transpose(-1, -2))

    outputs = []
    for c in range(q.shape[1]):
        residual = beta[:, c].unsqueeze(-1) * (v[:, c] - from_start[:, c] * (k[:, c] @ state))
        new_values = torch.linalg.solve_triangular(
            system[:, c], residual, upper=False, unitriangular=True
        )
        outputs.append(from_start[:, c] * (q[:, c] @ state) + attention[:, c] @ new_values)
        state = from_start[:, c, -1:] * state + k[:, c].transpose(-1, -2) @ (
            to_end[:, c] * new_values
        )
    output = torch.cat(outputs, dim=1).transpose(0, 1)[:T]
    return output, state
