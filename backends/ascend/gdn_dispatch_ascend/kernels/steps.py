"""Launches of the recurrence token by token: decodes, drafts, and plain sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton

from gdn_dispatch_ascend.kernels.prefill import state_strides
from gdn_dispatch_ascend.kernels.steps_kernel import recurrent_kernel
from gdn_dispatch_ascend.kernels.tiling import DEFAULT, grid, padded

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.triton_kernels.rows import Rows
    from gdn_dispatch.triton_kernels.rule_tensors import PrefillInputs, States
    from gdn_dispatch_ascend.kernels.tiling import Cores, Tiling

__all__ = ["recurrent_rule"]


def recurrent_rule(
    inputs: PrefillInputs,
    rows: Rows,
    states: States,
    out: torch.Tensor,
    cores: Cores,
    tiling: Tiling = DEFAULT,
    *,
    speculative: bool = False,
) -> None:
    """The recurrence on decode or speculative rows, or over packed sequences; one launch.

    A draft reads the state of column A-1 of its slots, A = ``num_accepted_tokens`` (anything
    outside 1..S counts as the nearest), and leaves the state after token t in column t.

    Args:
        inputs: Over all tokens of the step.
        rows: Rows may have any number of tokens. A padding row's output is zero.
        states: Its tensors are written in place; both lie the same way in memory.
        out: ``[T, HV, V]``, last stride 1; only tokens of ``rows`` are written.
        cores: Of the device.
        tiling: How much a program holds at a time.
        speculative: Whether the rows are drafts.
    """
    if rows.num_seqs == 0:
        return
    q, k, v = inputs.q, inputs.k, inputs.v
    H, K = k.shape[1:]
    HV, V = v.shape[1:]
    initial, final, slots = states.initial, states.final, states.slots
    from_strides, to_strides = state_strides(states, initial), state_strides(states, final)
    model = from_strides if final is None else to_strides
    write = None if slots is None else slots.write
    read = write if slots is None or slots.read is None else slots.read
    block = min(tiling.step_values, padded(V))
    recurrent_kernel[grid(rows.num_seqs * HV * triton.cdiv(V, block), cores.vector)](
        q, k, v, inputs.g, inputs.beta, inputs.A_log, inputs.dt_bias, out, initial, final,
        rows.sequences, rows.starts, rows.cu_seqlens,
        write, read, None if slots is None else slots.has_initial_state,
        slots.num_accepted_tokens if slots is not None and speculative else None,
        inputs.scale, rows.num_seqs, H, HV,
        0 if initial is None else initial.shape[0],
        -1 if slots is None else slots.pad_slot, 1 if write is None else write.shape[-1],
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        *inputs.g.stride(), *inputs.beta.stride(), *out.stride()[:2],
        *from_strides, *to_strides, *_slot_strides(write), *_slot_strides(read),
        K=K, V=V, BK=padded(K), BV=block, KEYS_LAST=model[3] == 1, SPECULATIVE=speculative,
        RAW_GATE=inputs.A_log is not None, BETA_LOGIT=inputs.beta_is_logit,
        NEG_EIGVAL=inputs.allow_neg_eigval, L2NORM=inputs.l2norm,
    )  # fmt: skip


def _slot_strides(slots: torch.Tensor | None) -> tuple[int, int]:
    if slots is None:
        return 0, 0
    return (slots.stride(0), slots.stride(1)) if slots.ndim == 2 else (slots.stride(0), 0)
