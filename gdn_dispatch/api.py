"""The public calls and their contract in full; backends may assume it holds.

Each function hands over to a module of ``calls``; while torch compiles, to the operators of ``ops``
instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gdn_dispatch import ops
from gdn_dispatch.calls.layer import run_layer_call
from gdn_dispatch.calls.metadata import host_data, run_build_chunk_meta
from gdn_dispatch.calls.rule import run_rule
from gdn_dispatch.calls.validation import refuse
from gdn_dispatch.plan import batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.plan.batch import BatchPlan

__all__ = [
    "build_chunk_meta",
    "chunk_gated_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "gdn_attention",
    "plan_batch",
]

HostInts = Any
"""A list of ints, a numpy array of ints, or a CPU tensor of ints."""


def plan_batch(
    query_start_loc: HostInts,
    *,
    state_indices: HostInts | None = None,
    initial_state_indices: HostInts | None = None,
    has_initial_state: HostInts | None = None,
    speculative: HostInts | None = None,
    num_accepted_tokens: HostInts | None = None,
    total_tokens: int | None = None,
    pad_slot: int = -1,
    checkpoint_offsets: Sequence[Sequence[int]] | None = None,
    checkpoint_indices: Sequence[Sequence[int]] | None = None,
) -> BatchPlan:
    """Describe a step of N sequences on the host, once; check it; return it immutable.

    All arguments are host data: lists, numpy arrays or CPU tensors. What an engine holds on the
    device goes to ``build_chunk_meta`` instead.

    Args:
        query_start_loc: ``[N+1]``: starts at 0, never decreases; sequence i owns the tokens
            ``query_start_loc[i]`` to ``query_start_loc[i+1]``. Empty sequences keep their state.
        state_indices: Slots that receive the state: ``[N]``; or ``[N, S]`` where a row may be
            speculative: the state after draft token t goes to column t, the conv line to column 0.
            A negative slot, or ``pad_slot``, is padding: a row whose (first) slot is padding reads
            and writes nothing, and its output is zero.
        initial_state_indices: Slots to read from where they differ; same shape. Padding here means:
            start from zero.
        has_initial_state: ``[N]`` bool; False starts from zero whatever the slot holds. All True
            if not given.
        speculative: ``[N]`` bool: rows that carry draft tokens, at most S of them.
        num_accepted_tokens: ``[N]`` ints in 1..S: a speculative row reads its state from column
            ``accepted - 1`` and its conv history from that column of its line on.
        total_tokens: Rows T of the step's tensors, if more than ``query_start_loc[-1]``; the
            output's rows past the last sequence are zero.
        pad_slot: A non-negative slot that also means padding (vLLM's is 0).
        checkpoint_offsets: One list for every sequence: offsets, from its first token in this
            step, after which its state is also kept. Multiples of the backend's chunk size.
        checkpoint_indices: The slots that receive them, nested alike.

    Returns:
        The plan; it shares no memory with the arguments.

    Raises:
        InvalidPlanError: The description contradicts itself, or two rows would race for a slot.

    Example:
        >>> plan_batch([0, 3, 3, 8], state_indices=[4, 1, 7]).seq_lens.tolist()
        [3, 0, 5]
    """
    return batch.plan_batch(
        host_data("query_start_loc", query_start_loc),
        state_indices=host_data("state_indices", state_indices),
        initial_state_indices=host_data("initial_state_indices", initial_state_indices),
        has_initial_state=host_data("has_initial_state", has_initial_state),
        speculative=host_data("speculative", speculative),
        num_accepted_tokens=host_data("num_accepted_tokens", num_accepted_tokens),
        total_tokens=total_tokens,
        pad_slot=pad_slot,
        checkpoint_offsets=checkpoint_offsets,
        checkpoint_indices=checkpoint_indices,
    )


def build_chunk_meta(
    plan: BatchPlan,
    device: torch.device | str,
    *,
    state_indices: torch.Tensor | None = None,
    initial_state_indices: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    num_accepted_tokens: torch.Tensor | None = None,
    num_v_heads: int | None = None,
    backend: str | None = None,
) -> ChunkMeta:
    """Build the metadata all layers of a step share: one asynchronous copy, no synchronisation.

    The four tensors are what an engine holds on the device already. They take the place of the
    plan's field of that name, and are used as they are: no copy, no cast, no read on the host.

    Args:
        plan: From ``plan_batch``.
        device: Where the step's tensors are.
        state_indices: ``[N]`` or ``[N, S]`` int32/int64 on ``device``.
        initial_state_indices: The same shape.
        has_initial_state: ``[N]`` bool on ``device``.
        num_accepted_tokens: ``[N]`` int32/int64 on ``device``.
        num_v_heads: Value heads of this rank, for backends whose block sizes depend on it.
        backend: As in ``gdn_attention``; the metadata belongs to the backend that built it.

    Raises:
        InvalidPlanError: A field given twice or missing, a wrong N, a checkpoint that is no
            multiple of the backend's chunk size.
        InvalidArgumentError: A tensor of the wrong shape, dtype or device.
        GDNDispatchError: No backend for ``device``.
    """
    return run_build_chunk_meta(
        plan, device, state_indices, initial_state_indices, has_initial_state,
        num_accepted_tokens, num_v_heads, backend,
    )  # fmt: skip


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: HostInts | None = None,
    *,
    use_gate_in_kernel: bool = False,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    meta: ChunkMeta | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gated delta rule over whole sequences, in chunks: FLA's function, argument for argument.

    Per token (Yang et al., "Gated Delta Networks", arXiv 2412.06464), in fp32 or better::

        S <- exp(g) S;   d = beta (v - S^T k);   S <- S + k d^T;   o = scale S^T q

    Args:
        q, k: ``[B, T, H, K]``, any strides.
        v: ``[B, T, HV, V]``, HV a multiple of H; value head j reads key head j // (HV/H).
        g: ``[B, T, HV]`` natural-log decay, <= 0; -inf resets the state. fp32 or q's dtype.
        beta: ``[B, T, HV]`` write strength, fp32 or q's dtype.
        scale: Factor on the output; K**-0.5 if None.
        initial_state: ``[N, HV, K, V]``, or None for zeros. Never written.
        output_final_state: Return the state after the last token.
        use_qk_l2norm_in_kernel: Divide q and k by sqrt(sum x^2 + 1e-6) first.
        use_beta_sigmoid_in_kernel: ``beta`` is a logit.
        allow_neg_eigval: Double beta after the sigmoid (needs ``use_beta_sigmoid_in_kernel``).
        state_v_first: States are ``[N, HV, V, K]``.
        cu_seqlens: ``[N+1]`` int32/int64: B = 1, sequences packed one after another.
        cu_seqlens_cpu: The same on the host. Needed where ``cu_seqlens`` is on an accelerator:
            nothing reads a device tensor on the host.
        use_gate_in_kernel: ``g`` is the raw gate a: decay = -exp(A_log) softplus(a + dt_bias).
        A_log: ``[HV]``, with ``use_gate_in_kernel``.
        dt_bias: ``[HV]``, with ``use_gate_in_kernel``; zeros if None.
        meta: Metadata of the packed batch, instead of ``cu_seqlens``, built once for all layers:
            ``build_chunk_meta(plan_batch(cu_seqlens, total_tokens=T), device)``.
        backend: ``"name"`` or ``"name/provider"``; strict, never falls back. None: automatic.

    Returns:
        ``o`` ``[B, T, HV, V]`` in q's dtype, rows past the last sequence zero; and the final state
        ``[N, HV, K, V]`` fp32 (None unless asked for).

    Raises:
        InvalidArgumentError: A wrong shape, dtype, device or value; the message names it.
        MetadataError: Missing, foreign or stale metadata.
        GDNDispatchError: No backend, or not the one asked for, can run this.

    Example:
        >>> import torch
        >>> q = k = torch.randn(1, 5, 2, 16); v = torch.randn(1, 5, 4, 8)
        >>> g = -torch.rand(1, 5, 4); beta = torch.rand(1, 5, 4)
        >>> o, state = chunk_gated_delta_rule(q, k, v, g, beta, output_final_state=True)
        >>> o.shape, state.shape
        (torch.Size([1, 5, 4, 8]), torch.Size([1, 4, 16, 8]))
    """
    call = ops.gated_delta_rule if torch.compiler.is_compiling() else run_rule
    return call(
        False, q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, state_v_first, cu_seqlens, cu_seqlens_cpu,
        use_gate_in_kernel, A_log, dt_bias, meta, backend,
    )  # fmt: skip


def fused_recurrent_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    gk: None = None,
    gv: None = None,
    beta: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: HostInts | None = None,
    *,
    meta: ChunkMeta | None = None,
    backend: str | None = None,
    donate_initial_state: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gated delta rule token by token, for decode: FLA's function, in FLA's order of arguments.

    As ``chunk_gated_delta_rule``, but: ``g`` None means no decay, ``beta`` None means one, and
    ``gk`` and ``gv`` (decay per key or value channel: another operator, KDA) are refused.

    Args:
        donate_initial_state: The caller needs ``initial_state`` no more, so its memory may be
            used for the final state. Where a backend does that, the tensor returned is
            ``initial_state``; where it cannot (another dtype, strides, gradients, a compiled
            graph), the final state is new memory and ``initial_state`` keeps its values.
    """
    if gk is not None or gv is not None:
        name = "gk" if gk is not None else "gv"
        refuse(name, gk if gv is None else gv, "None", "decay per channel is not this operator")
    if isinstance(v, torch.Tensor) and v.ndim == 4:
        if g is None and not use_gate_in_kernel:
            g = v.new_zeros(v.shape[:3], dtype=torch.float32)
        if beta is None and not use_beta_sigmoid_in_kernel:
            beta = v.new_ones(v.shape[:3], dtype=torch.float32)
    arguments = (
        True, q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, state_v_first, cu_seqlens, cu_seqlens_cpu,
        use_gate_in_kernel, A_log, dt_bias, meta, backend,
    )  # fmt: skip
    if torch.compiler.is_compiling():  # the compiler decides itself what memory to use again
        return ops.gated_delta_rule(*arguments)
    return run_rule(*arguments, donate_initial_state)


def gdn_attention(
    mixed_qkv: torch.Tensor | None = None,
    a: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    *,
    meta: ChunkMeta,
    conv_state: torch.Tensor,
    ssm_state: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None = None,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    activation: str | None = "silu",
    scale: float | None = None,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    out: torch.Tensor | None = None,
    backend: str | None = None,
    projected_states_qkvz: torch.Tensor | None = None,
    projected_states_ba: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    gqa_interleaved_layout: bool = False,
) -> torch.Tensor:
    """The core of a Gated DeltaNet layer over a serving step, on the engine's state pools.

    Causal convolution, heads and gates, recurrence, for every sequence of the step, whatever it is
    at: prefill, continued prefill, decode, speculative decode, padding. Head counts come from the
    tensors, so a tensor-parallel rank passes its own. The formulas stand at
    ``gdn_dispatch.hookspecs.gdn_attention``.

    **The pools are updated in place**, in the slots the plan names and nowhere else; a call that is
    refused leaves them as they are. Not differentiable: gradients come from
    ``chunk_gated_delta_rule``.

    Args:
        mixed_qkv: ``[T, D]``, D = 2*H*K + HV*V channels [q | k | v]; row stride free.
        a: ``[T, HV]`` raw gate: g = -exp(A_log) softplus(a + dt_bias), natural-log decay.
        b: ``[T, HV]``: beta = sigmoid(b).
        meta: From ``build_chunk_meta``, with slots; one for all layers of the step.
        conv_state: ``[slots, D, L]`` view with any strides, L >= W-1, activation dtype. The history
            is its first W-1 columns, oldest first. Speculative rows need L >= W-2+S.
        ssm_state: ``[slots, HV, K, V]``, fp32, bf16 or fp16; the slot stride is free.
        conv_weight: ``[D, W]``. conv_bias: ``[D]``. Activation dtype or fp32.
        conv_bias: See conv_weight.
        A_log: ``[HV]``, fp32 or activation dtype. dt_bias: the same.
        dt_bias: See A_log.
        activation: ``"silu"`` (``"swish"``) or None, after the convolution.
        scale: Factor on the output; K**-0.5 if None.
        allow_neg_eigval: beta is doubled.
        state_v_first: ``ssm_state`` is ``[slots, HV, V, K]``.
        out: ``[T, HV, V]`` to write to; allocated if None. Rows past the last sequence, and rows of
            padded sequences, become zero.
        backend: ``"name"`` or ``"name/provider"``; strict, never falls back. None: automatic.
        projected_states_qkvz: ``[T, 2*H*K + 2*HV*V]``: the engine's fused projection, in the place
            of ``mixed_qkv``.
        projected_states_ba: ``[T, 2*HV]``, in the place of ``a`` and ``b``.
        z: ``[T, HV, V]``, written with the projection's output gate.
        gqa_interleaved_layout: The projections are interleaved per key head (Qwen3-Next), not flat
            (Qwen3.5).

    Returns:
        ``out``.

    Raises:
        InvalidArgumentError: A wrong shape, dtype, device or value; the message names it.
        MetadataError: Missing, foreign or stale metadata.
        GDNDispatchError: No backend, or not the one asked for, can run this.
    """
    call = ops.gdn_attention if torch.compiler.is_compiling() else run_layer_call
    return call(
        mixed_qkv, a, b, meta, conv_state, ssm_state, conv_weight, conv_bias, A_log, dt_bias,
        activation, scale, allow_neg_eigval, state_v_first, out, backend, projected_states_qkvz,
        projected_states_ba, z, gqa_interleaved_layout,
    )  # fmt: skip
