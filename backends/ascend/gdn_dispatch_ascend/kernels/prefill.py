"""The chunked gated delta rule over packed sequences: three kernels, on the caller's states.

The form is that of Yang et al., "Gated Delta Networks" (arXiv 2412.06464). Gates of all chunks come
first, turned so that a head's tokens lie side by side; then what needs no state, for all chunks at
once; then each row runs through its chunks with its state on the core. Between kernels, device
memory holds two C x C matrices and seven numbers per token and value head: no state, and neither W,
U nor the new values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton

from gdn_dispatch_ascend.kernels.prepare_kernel import gates_kernel, prepare_kernel
from gdn_dispatch_ascend.kernels.recurrence_kernel import recurrence_kernel
from gdn_dispatch_ascend.kernels.tiling import DEFAULT, grid, padded
from gdn_dispatch_ascend.meta import CHUNK_SIZE

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.rows import Rows
    from gdn_dispatch.triton_kernels.rule_tensors import PrefillInputs, States
    from gdn_dispatch_ascend.kernels.tiling import Cores, Tiling

__all__ = ["chunk_rule", "state_strides"]

_MOST_HEADS: Final = 64
"""Value heads whose gates are worked on together."""


def state_strides(states: States, state: torch.Tensor | None) -> tuple[int, int, int, int]:
    """Strides of slot, head, value and key; where there is no state, those that stride nothing."""
    return (0, 0, 1, 1) if state is None else states.strides(state)


def chunk_rule(
    inputs: PrefillInputs,
    rows: Rows,
    states: States,
    out: torch.Tensor,
    cores: Cores,
    tiling: Tiling = DEFAULT,
) -> None:
    """Run the rows of a prefill group: their outputs into ``out``, their states to their slots.

    Args:
        inputs: Over all tokens of the step.
        rows: With ``chunks`` of ``CHUNK_SIZE`` tokens. A padding row's output is zero.
        states: Its tensors are written in place.
        out: ``[T, HV, V]`` contiguous, activation dtype; only tokens of ``rows`` are written.
        cores: Of the device.
        tiling: How much a program holds at a time.
    """
    chunks = rows.chunks
    if chunks is None or chunks.size != CHUNK_SIZE:
        raise ValueError(f"chunk_rule takes rows with chunks of {CHUNK_SIZE} tokens")
    if rows.num_seqs == 0 or (chunks.count == 0 and states.slots is not None):
        return
    q, k, v = inputs.q, inputs.k, inputs.v
    H, K = k.shape[1:]
    HV, V = v.shape[1:]
    # a state may exceed fp16, so fp16 is widened
    operand = torch.bfloat16 if v.dtype == torch.bfloat16 else torch.float32
    matrices = torch.empty(2, HV, chunks.count, CHUNK_SIZE, CHUNK_SIZE, dtype=operand,
                           device=v.device)  # fmt: skip
    transform, attention = matrices.unbind(0)
    numbers = torch.empty(HV, chunks.count, 7, CHUNK_SIZE, dtype=torch.float32, device=v.device)
    flat = numbers.view(-1)
    tokens = HV * chunks.count * CHUNK_SIZE
    gates, factors = flat[: 3 * tokens], flat[3 * tokens :]
    where = (chunks.indices, chunks.nonempty, rows.starts, rows.cu_seqlens)
    if chunks.count:
        block = min(padded(HV), _MOST_HEADS)
        gates_kernel[grid(chunks.count * triton.cdiv(HV, block), cores.vector)](
            inputs.g, inputs.beta, inputs.A_log, inputs.dt_bias, gates, *where,
            chunks.count, HV, *inputs.g.stride(), *inputs.beta.stride(),
            BT=CHUNK_SIZE, BH=block,
            BETA_IS_LOGIT=inputs.beta_is_logit, NEG_EIGVAL=inputs.allow_neg_eigval,
        )  # fmt: skip
        group = HV // H
        # value heads share products of their key head, unless that leaves cores without a task
        heads = group if chunks.count * H >= cores.cube else 1
        prepare_kernel[grid(chunks.count * HV // heads, cores.cube)](
            q, k, gates, transform, attention, factors, *where,
            chunks.count, inputs.scale, H, *q.stride()[:2], *k.stride()[:2],
            K=K, BK=padded(K), BT=CHUNK_SIZE, GROUP=group, HEADS=heads, L2NORM=inputs.l2norm,
        )  # fmt: skip
    block = min(tiling.prefill_values, padded(V))
    slots, initial, final = states.slots, states.initial, states.final
    checkpoints = None if slots is None else slots.checkpoint_sequences
    from_strides, to_strides = state_strides(states, initial), state_strides(states, final)
    write = None if slots is None else slots.write
    read = None if slots is None else slots.read
    recurrence_kernel[grid(rows.num_seqs * HV * triton.cdiv(V, block), cores.cube)](
        q, k, v, transform, attention, factors, out, initial, final,
        rows.sequences, rows.starts, rows.cu_seqlens, chunks.offsets,
        write, read, None if slots is None else slots.has_initial_state,
        checkpoints,
        None if slots is None else slots.checkpoint_offsets,
        None if slots is None else slots.checkpoint_slots,
        rows.num_seqs, chunks.count, 0 if checkpoints is None else checkpoints.shape[0],
        -1 if slots is None else slots.pad_slot,
        0 if initial is None else initial.shape[0], 0 if final is None else final.shape[0], H, HV,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        0 if write is None else write.stride(0), 0 if read is None else read.stride(0),
        *from_strides, *to_strides,
        K=K, V=V, BK=padded(K), BV=block, BT=CHUNK_SIZE,
        INITIAL_KEYS_LAST=from_strides[3] == 1, FINAL_KEYS_LAST=to_strides[3] == 1,
    )  # fmt: skip
