"""Launches of the recurrence token by token: decodes, drafts, and plain sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import triton

from gdn_dispatch.triton_kernels.steps_kernel import recurrent_kernel

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.triton_kernels.rows import Rows, Slots

__all__ = ["StepConfig", "recurrent_rule", "recurrent_sequences"]

_BYTES_PER_LOAD = 16
_MOST_PER_THREAD = 64


@dataclass(frozen=True, slots=True)
class StepConfig:
    """How a launch is cut.

    Attributes:
        block_values: Values of a head's state that a program has; a power of two.
        num_warps: Warps of a program.
        lanes: Threads along a line of the state where keys run along memory; a power of two up
            to 32. 8 lanes of 16 bytes are a cache line.
        values_last: What to take instead where values run along memory, and a program's values
            are as long a piece of a line as there is; None: the same.
    """

    block_values: int
    num_warps: int
    lanes: int = 8
    values_last: StepConfig | None = None


def recurrent_rule(
    conv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    rows: Rows,
    slots: Slots,
    ssm_state: torch.Tensor,
    out: torch.Tensor,
    config: StepConfig,
    *,
    num_heads: int,
    scale: float,
    state_v_first: bool,
    allow_neg_eigval: bool = False,
    speculative: bool = False,
) -> None:
    """A layer's step on decode or speculative rows, from the convolution's output; one launch.

    q and k are normalised, g = -exp(A_log) softplus(a + dt_bias) and beta = sigmoid(b) in fp32::

        S <- e^g S;  d = beta (v - S^T k);  S <- S + k d^T;  o = scale S^T q

    A draft reads the state of column A-1 of its slots, A = ``num_accepted_tokens`` (anything
    outside 1..S counts as the nearest), and leaves the state after token t in column t.

    Args:
        conv: ``[T, D]``, channels [q | k | v]; row stride free.
        a, b: ``[T, HV]``. A_log, dt_bias: ``[HV]``.
        rows: A decode or speculative group. Rows may have any number of tokens.
        slots: Of the step.
        ssm_state: ``[slots, HV, V, K]`` with ``state_v_first``, else ``[slots, HV, K, V]``; fp32,
            bf16 or fp16; one of the last two strides is 1; updated in place.
        out: ``[T, HV, V]``; the rows' tokens are written, those of padding with zeros.
        config: How to cut it.
        num_heads: H. scale: Factor on the output.
        state_v_first: Layout of ``ssm_state``.
        allow_neg_eigval: beta is doubled.
        speculative: Whether the rows are drafts.
    """
    if rows.num_seqs == 0:
        return
    HV, V = out.shape[1:]
    K = ssm_state.shape[3 if state_v_first else 2]
    token = conv.stride(0)
    state = _State.of(ssm_state, state_v_first=state_v_first)
    read = slots.write if slots.read is None else slots.read
    tile = _tile(K, V, ssm_state.element_size(), config, keys_last=state.stride_k == 1)
    recurrent_kernel[(rows.num_seqs * HV * triton.cdiv(V, tile.block_values),)](
        conv, None, None, a, b, A_log, dt_bias, out, ssm_state, ssm_state,
        rows.sequences, rows.starts, rows.cu_seqlens,
        slots.write, read, slots.has_initial_state,
        slots.num_accepted_tokens if speculative else None,
        scale, ssm_state.shape[0], slots.pad_slot, slots.write.shape[-1],
        token, K, token, K, token, V, *a.stride(), *b.stride(), *out.stride()[:2],
        *state, *state, *_slot_strides(slots.write), *_slot_strides(read),
        H=num_heads, HV=HV, K=K, V=V,
        X=tile.X, G=tile.G, C=tile.C, KEYS_LAST=state.stride_k == 1,
        ONE_TOKEN=not speculative and rows.max_seqlen <= 1, SPECULATIVE=speculative,
        RAW_GATE=True, BETA_LOGIT=True, NEG_EIGVAL=allow_neg_eigval, L2NORM=True,
        num_warps=tile.num_warps,
    )  # fmt: skip


def recurrent_sequences(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    rows: Rows,
    out: torch.Tensor,
    config: StepConfig,
    *,
    scale: float,
    initial_state: torch.Tensor | None,
    final_state: torch.Tensor | None,
    state_v_first: bool,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    use_qk_l2norm: bool = False,
    beta_is_logit: bool = False,
    allow_neg_eigval: bool = False,
) -> None:
    """The recurrence alone, over packed sequences; one launch.

    Args:
        q, k: ``[T, H, K]``. v: ``[T, HV, V]``. Last stride 1, the others free.
        g: ``[T, HV]`` natural-log decay, <= 0, may be -inf; the raw gate where ``A_log`` is given.
        beta: ``[T, HV]`` write strength, or its logit with ``beta_is_logit``.
        rows: The sequences; row i has state i, or ``sequences[i]`` where that is given.
        out: ``[T, HV, V]``, last stride 1; written.
        config: How to cut it.
        scale: Factor on the output.
        initial_state: ``[n, HV, V, K]`` with ``state_v_first``, else ``[n, HV, K, V]``, or None.
        final_state: The same, or None: not wanted. A sequence of no tokens gets its initial state.
        state_v_first: Layout of both states.
        A_log, dt_bias: ``[HV]``: the decay is -exp(A_log) softplus(g + dt_bias).
        use_qk_l2norm: Normalise q and k.
        beta_is_logit: See ``beta``. allow_neg_eigval: beta is doubled.
    """
    if rows.num_seqs == 0:
        return
    H, K = k.shape[1:]
    HV, V = v.shape[1:]
    model = final_state if final_state is not None else initial_state
    keys_last = (
        state_v_first if model is None else _State.of(model, state_v_first=state_v_first)[3] == 1
    )
    nowhere = _State(0, 0, 0, 0)
    source = nowhere if initial_state is None else _State.of(initial_state, state_v_first)
    target = nowhere if final_state is None else _State.of(final_state, state_v_first)
    size = 4 if model is None else model.element_size()
    tile = _tile(K, V, size, config, keys_last=keys_last)
    recurrent_kernel[(rows.num_seqs * HV * triton.cdiv(V, tile.block_values),)](
        q, k, v, g, beta, A_log, dt_bias, out, initial_state, final_state,
        rows.sequences, rows.starts, rows.cu_seqlens, None, None, None, None,
        scale, rows.num_seqs, -1, 1,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *g.stride(), *beta.stride(),
        *out.stride()[:2], *source, *target, 0, 0, 0, 0,
        H=H, HV=HV, K=K, V=V, X=tile.X, G=tile.G, C=tile.C, KEYS_LAST=keys_last,
        ONE_TOKEN=False, SPECULATIVE=False,
        RAW_GATE=A_log is not None, BETA_LOGIT=beta_is_logit, NEG_EIGVAL=allow_neg_eigval,
        L2NORM=use_qk_l2norm, num_warps=tile.num_warps,
    )  # fmt: skip


class _State(NamedTuple):
    """Strides of slot, head, value and key."""

    slot: int
    head: int
    stride_v: int
    stride_k: int

    @classmethod
    def of(cls, state: torch.Tensor, state_v_first: bool) -> _State:
        slot, head, first, last = state.stride()
        return cls(slot, head, first, last) if state_v_first else cls(slot, head, last, first)


class _Tile(NamedTuple):
    """Shape of a program's part of the state: see ``steps_kernel``."""

    X: int
    G: int
    C: int
    block_values: int
    num_warps: int


def _tile(K: int, V: int, element_size: int, config: StepConfig, *, keys_last: bool) -> _Tile:
    """Cut a head's state: no element in two threads, and no more in one than it has registers."""
    if not keys_last and config.values_last is not None:
        config = config.values_last
    keys = _power_of_two(K)
    values = min(config.block_values, _power_of_two(V))
    width = _BYTES_PER_LOAD // element_size
    warps = config.num_warps
    while warps < 8 and keys * values > 32 * warps * _MOST_PER_THREAD:
        warps *= 2
    while warps > 1 and keys * values < 32 * warps * width:
        warps //= 2
    if keys_last:
        line = min(keys, config.lanes * width)
        return _Tile(values, keys // line, line, values, warps)
    across = min(keys, max(1, 32 * warps * width // values))
    return _Tile(across, keys // across, values, values, warps)


def _slot_strides(slots: torch.Tensor) -> tuple[int, int]:
    return (slots.stride(0), slots.stride(1)) if slots.ndim == 2 else (slots.stride(0), 0)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
