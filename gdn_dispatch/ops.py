"""torch.library operators, used only while torch compiles.

An eager call would pay several times its own overhead for going through the dispatcher; a compiled
graph needs an operator it can hold without looking inside. Both end in ``calls``, which choose the
backend when the graph runs.

A ``ChunkMeta`` travels through a graph as its handle, a small CPU tensor (``meta.handles``): a
graph compiled with the metadata of one step runs with that of the next.
"""

from __future__ import annotations

from typing import Any

import torch

from gdn_dispatch.calls.layer import run_layer_call
from gdn_dispatch.calls.rule import run_rule
from gdn_dispatch.meta.handles import meta_of

__all__ = ["gated_delta_rule", "gdn_attention"]

_library = torch.library.Library("gdn_dispatch", "FRAGMENT")

# In the order of calls.rule.run_rule's arguments. With explicit schemas: having torch infer them
# costs more than all other work of the import.
_RULE_ARGUMENTS = (
    "bool recurrent, Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, float? scale, "
    "Tensor? initial_state, bool output_final_state, bool use_qk_l2norm_in_kernel, "
    "bool use_beta_sigmoid_in_kernel, bool allow_neg_eigval, bool state_v_first, "
    "Tensor? cu_seqlens, Tensor? cu_seqlens_cpu, bool use_gate_in_kernel, Tensor? A_log, "
    "Tensor? dt_bias, Tensor? meta, str? backend"
)
_OUTPUT_FINAL_STATE, _STATE_V_FIRST, _META = 8, 12, 18
_CU_SEQLENS, _CU_SEQLENS_CPU = 13, 14
_DIFFERENTIABLE = (1, 2, 3, 4, 5, 7, 16, 17)
"""Positions of q, k, v, g, beta, initial_state, A_log and dt_bias."""

_library.define(f"gated_delta_rule({_RULE_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    f"gated_delta_rule_backward(Tensor grad_output, Tensor grad_state, {_RULE_ARGUMENTS})"
    " -> Tensor[]"
)
# In the order of calls.layer.run_layer_call's arguments.
_library.define(
    "gdn_attention(Tensor? mixed_qkv, Tensor? a, Tensor? b, Tensor meta, Tensor(c!) conv_state, "
    "Tensor(s!) ssm_state, Tensor conv_weight, Tensor? conv_bias, Tensor A_log, Tensor dt_bias, "
    "str? activation, float? scale, bool allow_neg_eigval, bool state_v_first, Tensor(o!) out, "
    "str? backend, Tensor? projected_states_qkvz, Tensor? projected_states_ba, Tensor(z!)? z, "
    "bool gqa_interleaved_layout) -> ()"
)


def _rule(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = list(arguments)
    inputs[_META] = meta_of(inputs[_META])
    output, state = run_rule(*inputs)
    # A schema cannot return an optional tensor.
    return output, inputs[3].new_empty(0) if state is None else state


def _rule_fake(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    q, v = arguments[1], arguments[3]
    output = v.new_empty(v.shape)
    if not arguments[_OUTPUT_FINAL_STATE]:
        return output, v.new_empty(0)
    places = (_META, _CU_SEQLENS, _CU_SEQLENS_CPU)
    starts = next((arguments[i] for i in places if arguments[i] is not None), None)
    N = q.shape[0] if starts is None else starts.shape[0] - 1
    K, HV, V = q.shape[3], v.shape[2], v.shape[3]
    shape = (N, HV, V, K) if arguments[_STATE_V_FIRST] else (N, HV, K, V)
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return output, v.new_empty(shape, dtype=dtype)


def _rule_backward(
    grad_output: torch.Tensor, grad_state: torch.Tensor, *arguments: Any
) -> list[torch.Tensor]:
    """Run forward again, this time recording, and differentiate it."""
    inputs = list(arguments)
    inputs[_META] = meta_of(inputs[_META])
    leaves = [i for i in _DIFFERENTIABLE if inputs[i] is not None]
    with torch.enable_grad():
        for i in leaves:
            inputs[i] = inputs[i].detach().requires_grad_()
        output, state = run_rule(*inputs)
        results, grads = [output], [grad_output]
        if state is not None:
            results.append(state)
            grads.append(grad_state)
        found = torch.autograd.grad(results, [inputs[i] for i in leaves], grads, allow_unused=True)
    return [
        torch.zeros_like(inputs[i]) if grad is None else grad.clone()
        for i, grad in zip(leaves, found, strict=True)
    ]


def _rule_backward_fake(
    grad_output: torch.Tensor, grad_state: torch.Tensor, *arguments: Any
) -> list[torch.Tensor]:
    return [torch.empty_like(arguments[i]) for i in _DIFFERENTIABLE if arguments[i] is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
    ctx.others = [None if isinstance(x, torch.Tensor) else x for x in inputs]
    ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))


def _backward(ctx: Any, grad_output: torch.Tensor, grad_state: torch.Tensor) -> tuple[Any, ...]:
    inputs = list(ctx.others)
    for i, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
        inputs[i] = tensor
    found = torch.ops.gdn_dispatch.gated_delta_rule_backward(
        grad_output.contiguous(), grad_state.contiguous(), *inputs
    )
    grads: list[Any] = [None] * len(inputs)
    for i, grad in zip((i for i in _DIFFERENTIABLE if inputs[i] is not None), found, strict=True):
        grads[i] = grad
    return tuple(grads)


def _layer(*arguments: Any) -> None:
    inputs = list(arguments)
    inputs[3] = meta_of(inputs[3])
    run_layer_call(*inputs)


def _layer_fake(*arguments: Any) -> None:
    return None


for _name, _run, _fake in (
    ("gated_delta_rule", _rule, _rule_fake),
    ("gated_delta_rule_backward", _rule_backward, _rule_backward_fake),
    ("gdn_attention", _layer, _layer_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gdn_dispatch::{_name}", _fake, lib=_library)
torch.library.register_autograd(
    "gdn_dispatch::gated_delta_rule", _backward, setup_context=_save, lib=_library
)


def gated_delta_rule(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``calls.rule.run_rule`` as one operator of the graph."""
    inputs = list(arguments)
    cu_seqlens_cpu, meta = inputs[_CU_SEQLENS_CPU], inputs[_META]
    if cu_seqlens_cpu is not None and not isinstance(cu_seqlens_cpu, torch.Tensor):
        inputs[_CU_SEQLENS_CPU] = torch.tensor(cu_seqlens_cpu)
    inputs[_META] = None if meta is None else meta.handle
    output, state = torch.ops.gdn_dispatch.gated_delta_rule(*inputs)
    return output, state if inputs[_OUTPUT_FINAL_STATE] else None


def gdn_attention(*arguments: Any) -> torch.Tensor:
    """``calls.layer.run_layer_call`` as one operator of the graph, updating the pools in place."""
    inputs = list(arguments)
    mixed_qkv, meta, ssm_state, state_v_first, out, qkvz = (
        inputs[i] for i in (0, 3, 5, 13, 14, 16)
    )
    inputs[3] = meta.handle
    if out is None:
        x = qkvz if mixed_qkv is None else mixed_qkv
        V = ssm_state.shape[2 if state_v_first else 3]
        inputs[14] = out = x.new_empty(x.shape[0], ssm_state.shape[1], V)
    torch.ops.gdn_dispatch.gdn_attention(*inputs)
    return out  # type: ignore[no-any-return]
