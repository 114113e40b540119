"""torch.library operators, used only while torch compiles.

An eager call would pay several times its own overhead for going through the dispatcher; a compiled
graph needs an operator it can hold without looking inside. Both end in ``rule_call`` and
``layer_call``, which choose the backend when the graph runs.

A ``ChunkMeta`` travels through a graph as its handle, a small CPU tensor (``handles``), so that a
graph compiled with the metadata of one step runs with that of the next.
"""

from __future__ import annotations

from typing import Any

import torch

from gdn_dispatch.handles import meta_of
from gdn_dispatch.layer_call import run_layer_call
from gdn_dispatch.rule_call import run_rule

__all__ = ["gated_delta_rule", "gdn_attention"]


@torch.library.custom_op("gdn_dispatch::gated_delta_rule", mutates_args=())
def _rule(
    recurrent: bool,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    use_beta_sigmoid_in_kernel: bool,
    allow_neg_eigval: bool,
    state_v_first: bool,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    use_gate_in_kernel: bool,
    A_log: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    meta: torch.Tensor | None,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    output, state = run_rule(
        recurrent, q, k, v, g, beta, scale, initial_state, output_final_state,
        use_qk_l2norm_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, state_v_first,
        cu_seqlens, cu_seqlens_cpu, use_gate_in_kernel, A_log, dt_bias, meta_of(meta), backend,
    )  # fmt: skip
    # A schema cannot return an optional tensor.
    return output, v.new_empty(0) if state is None else state


@_rule.register_fake
def _(
    recurrent: bool,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    use_beta_sigmoid_in_kernel: bool,
    allow_neg_eigval: bool,
    state_v_first: bool,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    meta = rest[3]
    output = v.new_empty(v.shape)
    if not output_final_state:
        return output, v.new_empty(0)
    starts = next((x for x in (meta, cu_seqlens, cu_seqlens_cpu) if x is not None), None)
    N = q.shape[0] if starts is None else starts.shape[0] - 1
    K, V = q.shape[3], v.shape[3]
    shape = (N, v.shape[2], V, K) if state_v_first else (N, v.shape[2], K, V)
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return output, v.new_empty(shape, dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
    ctx.others = [None if isinstance(x, torch.Tensor) else x for x in inputs]
    ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))


_DIFFERENTIABLE = (1, 2, 3, 4, 5, 7, 16, 17)
"""Positions of q, k, v, g, beta, initial_state, A_log and dt_bias."""


@torch.library.custom_op("gdn_dispatch::gated_delta_rule_backward", mutates_args=())
def _rule_backward(
    grad_output: torch.Tensor,
    grad_state: torch.Tensor,
    recurrent: bool,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    use_beta_sigmoid_in_kernel: bool,
    allow_neg_eigval: bool,
    state_v_first: bool,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    use_gate_in_kernel: bool,
    A_log: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    meta: torch.Tensor | None,
    backend: str | None,
) -> list[torch.Tensor]:
    inputs: list[Any] = [
        recurrent, q, k, v, g, beta, scale, initial_state, output_final_state,
        use_qk_l2norm_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, state_v_first,
        cu_seqlens, cu_seqlens_cpu, use_gate_in_kernel, A_log, dt_bias, meta_of(meta), backend,
    ]  # fmt: skip
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


@_rule_backward.register_fake
def _(grad_output: torch.Tensor, grad_state: torch.Tensor, *inputs: Any) -> list[torch.Tensor]:
    return [torch.empty_like(inputs[i]) for i in _DIFFERENTIABLE if inputs[i] is not None]


def _backward(ctx: Any, grad_output: torch.Tensor, grad_state: torch.Tensor) -> tuple[Any, ...]:
    inputs = list(ctx.others)
    for i, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
        inputs[i] = tensor
    grads: list[Any] = [None] * len(inputs)
    found = _rule_backward(grad_output.contiguous(), grad_state.contiguous(), *inputs)
    for i, grad in zip((i for i in _DIFFERENTIABLE if inputs[i] is not None), found, strict=True):
        grads[i] = grad
    return tuple(grads)


_rule.register_autograd(_backward, setup_context=_save)


def gated_delta_rule(recurrent: bool, *args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``rule_call.run_rule`` as one operator of the graph."""
    arguments = list(args)
    output_final_state, cu_seqlens_cpu, meta = args[7], args[13], args[17]
    if cu_seqlens_cpu is not None and not isinstance(cu_seqlens_cpu, torch.Tensor):
        arguments[13] = torch.tensor(cu_seqlens_cpu)
    arguments[17] = None if meta is None else meta.handle
    output, state = _rule(recurrent, *arguments)
    return output, state if output_final_state else None


@torch.library.custom_op(
    "gdn_dispatch::gdn_attention", mutates_args=("conv_state", "ssm_state", "out", "z")
)
def _layer(
    mixed_qkv: torch.Tensor | None,
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    meta: torch.Tensor,
    conv_state: torch.Tensor,
    ssm_state: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    activation: str | None,
    scale: float | None,
    allow_neg_eigval: bool,
    state_v_first: bool,
    out: torch.Tensor,
    backend: str | None,
    projected_states_qkvz: torch.Tensor | None,
    projected_states_ba: torch.Tensor | None,
    z: torch.Tensor | None,
    gqa_interleaved_layout: bool,
) -> None:
    run_layer_call(
        mixed_qkv, a, b, meta_of(meta), conv_state, ssm_state, conv_weight, conv_bias, A_log,
        dt_bias, activation, scale, allow_neg_eigval, state_v_first, out, backend,
        projected_states_qkvz, projected_states_ba, z, gqa_interleaved_layout,
    )  # fmt: skip


@_layer.register_fake
def _(*args: Any) -> None:
    return None


def gdn_attention(*args: Any) -> torch.Tensor:
    """``layer_call.run_layer_call`` as one operator of the graph, updating the pools in place."""
    arguments = list(args)
    mixed_qkv, meta, ssm_state, state_v_first, out, qkvz = (args[i] for i in (0, 3, 5, 13, 14, 16))
    arguments[3] = meta.handle
    if out is None:
        x = qkvz if mixed_qkv is None else mixed_qkv
        V = ssm_state.shape[2 if state_v_first else 3]
        arguments[14] = out = x.new_empty(x.shape[0], ssm_state.shape[1], V)
    _layer(*arguments)
    return out  # type: ignore[no-any-return]
