"""``xpu/sycl``: the whole layer core as one operator of Intel's vllm-xpu-kernels.

``torch.ops._xpu_C.gdn_attention`` runs conv, gates and recurrence of a whole step on an engine's
pools, in place. It wants every index tensor of the exact length, in int32, and the projections
whole; rows that are padding must not reach it (``step_builder``).

Copies and casts made here:

* ``mixed_qkv``, ``a`` and ``b`` to whole projections, unless they are columns of such (``inputs``).
* ``A_log`` to fp32. ``out`` and ``z`` of rows it does not run: zeros, and the gate's channels.
* The state of a row that reads one slot and writes another: to the latter, before the call.
* Where slots are known to the device alone: the padding slot's contents, saved and put back, since
  rows of padding are written there; and their output zeroed.

Not used: the operators for convolution and recurrence apart (0.1.16). What they hand to each other
depends on the kernel chosen inside (normalised or not, fp32 or not, padded), the scale, the gates
and the logits are built into the second one as they are into the whole, so that they serve no call
the whole does not, but one: token by token with raw gates, without a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gdn_dispatch.errors import BackendUnavailableError, UnsupportedRequestError
from gdn_dispatch.types import GDNOutput
from gdn_dispatch_xpu.meta import XpuChunkMeta
from gdn_dispatch_xpu.providers.checks import problems
from gdn_dispatch_xpu.providers.inputs import projections
from gdn_dispatch_xpu.providers.op_step import OpStep
from gdn_dispatch_xpu.providers.schema import Operator, operator, unavailable

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNRequest

__all__ = ["arguments", "gdn_attention", "moves_states", "refusals", "run"]

_WAY_OUT = 'pass backend="xpu/triton"'
_NO_STEP = (
    "metadata without the operator's index tensors (op_step), as it is built for xpu/triton; build "
    'it with backend="xpu" or "xpu/sycl"'
)


def refusals(request: GDNRequest) -> tuple[str, ...]:
    """Every reason why the operator cannot run this call; empty if it can."""
    found = operator()
    if isinstance(found, str):
        return (found,)
    step = _step(request)
    if step is None:
        return (_NO_STEP,)
    return problems(request, step, found)


def moves_states(request: GDNRequest) -> bool:
    """Whether states would be copied from slot to slot before the call."""
    step = _step(request)
    return step is not None and (step.move is not None or step.draft_move is not None)


def gdn_attention(request: GDNRequest) -> GDNOutput:
    """Run a validated request; see ``gdn_dispatch.hookspecs`` for what may be assumed.

    Raises:
        BackendUnavailableError: vllm-xpu-kernels cannot be used here.
        UnsupportedRequestError: The operator cannot run the call; nothing was written.
    """
    missing = unavailable()
    if missing:
        raise BackendUnavailableError(f"xpu/sycl: {missing}")
    reasons = refusals(request)
    if reasons:
        raise UnsupportedRequestError(f"xpu/sycl: {'; '.join(reasons)}; {_WAY_OUT}")
    return run(request)


def run(request: GDNRequest) -> GDNOutput:
    """Run a request that ``refusals`` has nothing against."""
    found, step = operator(), _step(request)
    if isinstance(found, str):
        raise BackendUnavailableError(f"xpu/sycl: {found}")
    if step is None:
        raise UnsupportedRequestError(f"xpu/sycl: {_NO_STEP}; {_WAY_OUT}")
    with torch.no_grad():
        if step.num_rows:
            _call(request, step, found)
        _finish(request, step)
    return GDNOutput(request.out)


def arguments(request: GDNRequest, step: OpStep) -> dict[str, object]:
    """The operator's arguments, by name."""
    qkvz, ba = projections(request)
    z = torch.empty_like(request.out) if request.z is None else request.z
    return {
        "core_attn_out": request.out,
        "z": z,
        "projected_states_qkvz": qkvz,
        "projected_states_ba": ba,
        # of this rank: what is said of heads is taken as global and divided by tp_size
        "num_k_heads": request.num_heads,
        "num_v_heads": request.num_v_heads,
        "head_k_dim": request.head_dim_k,
        "head_v_dim": request.head_dim_v,
        "conv_state": request.conv_state.transpose(1, 2),
        "ssm_state": request.ssm_state,
        "conv_weights": request.conv_weight,
        "conv_bias": request.conv_bias,
        "activation": "silu",
        "A_log": request.A_log.to(torch.float32).contiguous(),
        "dt_bias": request.dt_bias,
        "num_prefills": step.num_prefills,
        "num_decodes": step.num_decodes,
        "num_spec_decodes": step.num_spec_decodes,
        "has_initial_state": step.has_initial_state,
        "non_spec_query_start_loc": step.non_spec_query_start_loc,
        "non_spec_token_indx": step.non_spec_token_indx,
        "non_spec_state_indices_tensor": step.non_spec_state_indices_tensor,
        "spec_query_start_loc": step.spec_query_start_loc,
        "spec_token_indx": step.spec_token_indx,
        "spec_state_indices_tensor": step.spec_state_indices_tensor,
        "num_accepted_tokens": step.num_accepted_tokens,
        "num_actual_tokens": step.num_actual_tokens,
        "tp_size": 1,
        "reorder_input": not request.gqa_interleaved_layout,
    }


def _step(request: GDNRequest) -> OpStep | None:
    """The operator's tensors of the step; never made here, where every layer would make them."""
    meta = request.meta
    return meta.op_step if isinstance(meta, XpuChunkMeta) else None


def _call(request: GDNRequest, step: OpStep, found: Operator) -> None:
    conv, ssm = request.conv_state, request.ssm_state
    saved = None
    if step.pad_slot is not None:
        saved = conv[step.pad_slot].clone(), ssm[step.pad_slot].clone()
    if step.move is not None:
        columns = slice(request.conv_weight.shape[1] - 1)
        conv[step.move.write, :, columns] = conv[step.move.read, :, columns]
        ssm[step.move.write] = ssm[step.move.read]
    if step.draft_move is not None:
        _move_drafts(request, step)
    found.call(**arguments(request, step))
    if saved is not None:
        conv[step.pad_slot].copy_(saved[0])
        ssm[step.pad_slot].copy_(saved[1])


def _move_drafts(request: GDNRequest, step: OpStep) -> None:
    """Bring what an accepted token left to the first columns of column 0's slot."""
    move = step.draft_move
    if move is None:
        raise TypeError("a step without moves of drafts")
    conv, ssm, history = request.conv_state, request.ssm_state, request.conv_weight.shape[1] - 1
    columns = move.first[:, None] + torch.arange(history, device=conv.device)
    lines = conv[move.line].gather(2, columns[:, None].expand(-1, conv.shape[1], -1))
    states = ssm[move.state]
    conv[move.write, :, :history] = torch.where(move.has_line[:, None, None], lines, 0)
    ssm[move.write] = torch.where(move.has_state[:, None, None, None], states, 0)


def _finish(request: GDNRequest, step: OpStep) -> None:
    """Rows the operator does not run: zeros in ``out``, and their gate in ``z``."""
    out, z = request.out, request.z
    if step.padded_tokens is not None:
        out[: step.end].masked_fill_(step.padded_tokens[:, None, None], 0)
    gate = None
    if z is not None and (step.idle_tokens is not None or step.end < z.shape[0]):
        gate, z = _gate_views(request, z)
    if step.idle_tokens is not None:
        out.index_fill_(0, step.idle_tokens, 0)
        if z is not None and gate is not None:
            z[step.idle_tokens] = gate[step.idle_tokens]
    if step.end < out.shape[0]:
        out[step.end :].zero_()
        if z is not None and gate is not None:
            z[step.end :].copy_(gate[step.end :])


def _gate_views(request: GDNRequest, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gate's channels of the projection, and ``z`` in the same shape; both are views."""
    qkvz = request.projected_states_qkvz
    if qkvz is None:
        raise TypeError("z comes with the projections")
    H, K, HV, V = request.num_heads, request.head_dim_k, request.num_v_heads, request.head_dim_v
    if not request.gqa_interleaved_layout:
        return qkvz[:, 2 * H * K + HV * V :], z.flatten(1)
    r = HV // H
    return qkvz.unflatten(1, (H, -1))[:, :, 2 * K + r * V :], z.view(z.shape[0], H, r * V)
