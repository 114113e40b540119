"""A recurrence-only call: validated, bound, sent to the backend."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch

from gdn_dispatch.calls.layer_validation import check_meta
from gdn_dispatch.calls.metadata import check_owner, host_data, run_build_chunk_meta
from gdn_dispatch.calls.validation import (
    INTEGERS,
    RuleShape,
    check_dtype,
    check_flags,
    check_gate_parameters,
    check_rule,
    check_scale,
    check_state,
    check_tensor,
    refuse,
)
from gdn_dispatch.capability import CallFacts, Feature
from gdn_dispatch.errors import BackendContractError, InvalidPlanError, MetadataError
from gdn_dispatch.meta import ChunkMeta
from gdn_dispatch.plan.arrays import int32_array
from gdn_dispatch.plan.batch import check_starts, plan_batch
from gdn_dispatch.selection.dispatch import Bound, bind, lookup
from gdn_dispatch.types import GDNOutput, RuleRequest

__all__ = ["dtype_name", "refuse_result", "run_rule"]

_RULE = ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule")


def run_rule(
    recurrent: bool,
    q: Any,
    k: Any,
    v: Any,
    g: Any,
    beta: Any,
    scale: Any,
    initial_state: Any,
    output_final_state: Any,
    use_qk_l2norm_in_kernel: Any,
    use_beta_sigmoid_in_kernel: Any,
    allow_neg_eigval: Any,
    state_v_first: Any,
    cu_seqlens: Any,
    cu_seqlens_cpu: Any,
    use_gate_in_kernel: Any,
    A_log: Any,
    dt_bias: Any,
    meta: Any,
    backend: Any,
    donate_initial_state: Any = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See ``api.chunk_gated_delta_rule``."""
    shape = check_rule(q, k, v, g, beta)
    flags = (
        output_final_state,
        use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
        state_v_first,
        use_gate_in_kernel,
        donate_initial_state,
    )
    for flag in flags:
        if flag is not True and flag is not False:
            check_flags(
                output_final_state=output_final_state,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
                use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
                allow_neg_eigval=allow_neg_eigval,
                state_v_first=state_v_first,
                use_gate_in_kernel=use_gate_in_kernel,
                donate_initial_state=donate_initial_state,
            )
    if allow_neg_eigval and not use_beta_sigmoid_in_kernel:
        refuse(
            "allow_neg_eigval",
            True,
            "use_beta_sigmoid_in_kernel=True with it",
            "double beta yourself",
        )
    device = q.device
    if use_gate_in_kernel:
        if A_log is None:
            refuse("A_log", None, "a tensor [HV] with use_gate_in_kernel=True")
        check_gate_parameters(A_log, dt_bias, shape.HV, q.dtype, device)
    elif A_log is not None or dt_bias is not None:
        name = "dt_bias" if A_log is None else "A_log"
        refuse(name, dt_bias if A_log is None else A_log, "None unless use_gate_in_kernel=True")
    scale = check_scale(scale, shape.K)

    packed = meta is not None or cu_seqlens is not None or cu_seqlens_cpu is not None
    state_dtype = None
    if initial_state is not None:
        check_tensor("initial_state", initial_state, 4, "[N, HV, K, V]")
        state_dtype = initial_state.dtype
    grad = torch.is_grad_enabled() and _any_requires_grad(
        q, k, v, g, beta, initial_state, A_log, dt_bias
    )
    key = (
        recurrent,
        device,
        q.dtype,
        state_dtype,
        shape[2:],
        packed,
        grad,
        state_v_first,
        use_gate_in_kernel,
    )
    bound = lookup(key, backend)
    if bound is None:
        bound = _bind_rule(
            key,
            q,
            v,
            shape,
            initial_state,
            recurrent,
            packed,
            grad,
            state_v_first,
            use_gate_in_kernel,
            backend,
        )

    N = shape.B
    if packed:
        meta = _rule_meta(bound, meta, cu_seqlens, cu_seqlens_cpu, shape, device)
        N = meta.plan.num_seqs
    if initial_state is not None:
        K, V = shape.K, shape.V
        if state_v_first:
            check_state(
                "initial_state", initial_state, (N, shape.HV, V, K), "[N, HV, V, K]", device
            )
        else:
            check_state(
                "initial_state", initial_state, (N, shape.HV, K, V), "[N, HV, K, V]", device
            )
    request = RuleRequest(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, state_v_first, A_log, dt_bias, meta,
        recurrent, bound.provider, donate_initial_state,
    )  # fmt: skip
    result = bound.function(request)
    if type(result) is not GDNOutput:
        refuse_result(bound, "gated_delta_rule", result)
    return result.output, result.final_state


def _any_requires_grad(*tensors: Any) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


def _bind_rule(
    key: tuple[Any, ...],
    q: torch.Tensor,
    v: torch.Tensor,
    shape: RuleShape,
    initial_state: Any,
    recurrent: bool,
    packed: bool,
    grad: bool,
    state_v_first: bool,
    use_gate_in_kernel: bool,
    backend: Any,
) -> Bound:
    wanted = {
        Feature.VARLEN: packed,
        Feature.AUTOGRAD: grad,
        Feature.STATE_V_FIRST: state_v_first,
        Feature.RAW_GATE: use_gate_in_kernel,
    }
    features = frozenset(feature for feature, on in wanted.items() if on)
    state_dtype = getattr(initial_state, "dtype", None)
    facts = CallFacts(
        op=_RULE[recurrent],
        device_type=q.device.type,
        dtype=dtype_name(q.dtype),
        state_dtype=None if state_dtype is None else dtype_name(state_dtype),
        head_dim_k=shape.K,
        head_dim_v=shape.V,
        num_heads=shape.H,
        num_v_heads=shape.HV,
        features=features,
    )
    inputs = [("q", q), ("v", v), ("initial_state", initial_state)]
    return bind(
        facts,
        backend,
        key=key,
        inputs=[(name, x) for name, x in inputs if isinstance(x, torch.Tensor)],
        options=sorted(feature.name.lower() for feature in features),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _rule_meta(
    bound: Bound,
    meta: Any,
    cu_seqlens: Any,
    cu_seqlens_cpu: Any,
    shape: RuleShape,
    device: torch.device,
) -> ChunkMeta:
    """Metadata of a packed batch: the caller's, or built here from host lengths."""
    if shape.B != 1:
        refuse("q", f"B = {shape.B}", "B = 1 with packed sequences (cu_seqlens or meta)")
    lengths = _host_lengths(cu_seqlens, cu_seqlens_cpu)
    if meta is None:
        if lengths is None:
            raise MetadataError(
                "cu_seqlens_cpu",
                f"None, with cu_seqlens on {cu_seqlens.device}",
                "the host's copy of cu_seqlens, or meta",
                hint="nothing reads a device tensor on the host",
            )
        try:
            plan = plan_batch(lengths, total_tokens=shape.T)
        except InvalidPlanError:
            # The same faults under the name they were given by; every layer of a model comes here,
            # so good lengths are looked at once.
            _refuse_lengths(
                "cu_seqlens_cpu" if cu_seqlens is None else "cu_seqlens", lengths, shape.T
            )
            raise
        return run_build_chunk_meta(plan, device, None, None, None, None, None, _name(bound))
    check_meta(meta, shape.T, device, serving=False)
    check_owner(meta, bound)
    if lengths is not None and not np.array_equal(lengths, meta.plan.query_start_loc):
        raise MetadataError(
            "meta.plan.query_start_loc",
            f"{meta.plan.num_seqs} sequences of other lengths",
            "those of cu_seqlens",
            hint="pass meta alone; cu_seqlens is in it",
        )
    if cu_seqlens is not None and cu_seqlens.shape[0] != meta.plan.num_seqs + 1:
        refuse("cu_seqlens", cu_seqlens, f"[N+1] with meta's N = {meta.plan.num_seqs}")
    return meta  # type: ignore[no-any-return]


def _refuse_lengths(name: str, lengths: Any, T: int) -> None:
    starts = int32_array(name, lengths)
    check_starts(name, starts)
    if starts[-1] > T:
        refuse(name, f"sequences that end at token {starts[-1]}", f"at most T = {T}")


def _host_lengths(cu_seqlens: Any, cu_seqlens_cpu: Any) -> Any:
    """The lengths the host knows, or None."""
    if cu_seqlens is not None:
        if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.ndim != 1:
            refuse("cu_seqlens", cu_seqlens, "a tensor [N+1] of int32 or int64")
        check_dtype("cu_seqlens", cu_seqlens, INTEGERS)
    host = host_data("cu_seqlens_cpu", cu_seqlens_cpu)
    if host is not None:
        host = int32_array("cu_seqlens_cpu", host)
    if cu_seqlens is None:
        return host
    if cu_seqlens.device.type == "cpu":
        own = host_data("cu_seqlens", cu_seqlens)
        if host is not None and not np.array_equal(own, host):
            refuse("cu_seqlens_cpu", cu_seqlens_cpu, "the values of cu_seqlens")
        return own
    if host is not None and host.shape != tuple(cu_seqlens.shape):
        refuse(
            "cu_seqlens_cpu", cu_seqlens_cpu, f"the shape of cu_seqlens, {tuple(cu_seqlens.shape)}"
        )
    return host


def _name(bound: Bound) -> str:
    return bound.name if bound.provider is None else f"{bound.name}/{bound.provider}"


def refuse_result(bound: Bound, hook: str, result: object) -> NoReturn:
    """A compute hook that returns anything but a ``GDNOutput`` broke the contract."""
    got = type(result).__name__
    raise BackendContractError(
        f"{hook} of backend '{bound.name}' returned {got}, a GDNOutput is required"
    )
