"""The chunked gated delta rule over packed sequences: two kernels, on the caller's state tensors.

The form is that of Yang et al., "Gated Delta Networks" (arXiv 2412.06464). What needs no state is
computed for all chunks at once (``prepare_kernel``); then each row runs through its chunks with its
state in registers and writes its output (``recurrence_kernel``). Between the two, device memory
holds two C x C matrices and four numbers per token and value head; no state, and neither W, U nor
the new values. Where a few long rows would leave the device idle, they are cut into segments that
run side by side (``segments``), exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton

from gdn_dispatch.triton_kernels.prepare_kernel import prepare_kernel
from gdn_dispatch.triton_kernels.recurrence_kernel import recurrence_kernel
from gdn_dispatch.triton_kernels.rule_tensors import CHUNK, PrefillInputs, States
from gdn_dispatch.triton_kernels.segments import (
    Prepared,
    SegmentConfig,
    block_of,
    portable_pass,
    size_of_segments,
    split_into_segments,
)
from gdn_dispatch.triton_kernels.tiles import Tiles, tiles_of

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.rows import Rows
    from gdn_dispatch.triton_kernels.specialized_config import SpecializedConfig

__all__ = ["PrefillConfig", "chunk_rule"]

# With 8 warps, Triton 3.6 compiles the gather in the inverse to wrong numbers (seen on sm_90).
_PREPARE_WARPS = 4


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How to launch; the numbers change the speed, and only the precisions the error.

    Attributes:
        block_v: Value channels per program of the recurrence: a power of two >= 16. Tensor cores
            of Hopper want 64 or more.
        num_warps, num_stages: Of the recurrence.
        use_descriptors: Read whole chunks through tensor descriptors (the copy engine of Hopper)
            where strides and alignment allow.
        prepare_registers: Of the preparation; a cap on registers lets more programs share a
            multiprocessor, and spills.
        prepare_programs: Programs of the preparation that fill the device.
        prepare_columns: Columns of q and k that the preparation multiplies at a time, a power of
            two >= 16; None: all. Fewer take fewer registers, and longer.
        parts: Parts of K, a power of two, that warps of the recurrence share out among themselves,
            so that none has to hold operands of all of K. More than one: no descriptors, and
            fp16 or fp32 inputs.
        late_reads: In the chunk that descriptors cannot read, a row's last, q and the scores are
            read after the products of k, which takes fewer registers, and longer.
        precision: Of products of fp32 operands, as Triton names it: "tf32", "tf32x3", "ieee".
            bf16 inputs have bf16 operands; fp16 inputs are widened, since a state may exceed fp16.
        inverse_precision: The same for the inverse, whose operands are fp32 whatever the inputs;
            also "fp16" (operands rounded to fp16; for bf16 and fp16 inputs; the fastest) and
            "bf16x3" (slower, 16 bits). fp32 inputs want "tf32x3".
        specialized: How to launch Hopper's kernels of specialised warps, or None: never. They take
            the calls they can (``specialized.can_specialize``).
        segments: How to cut rows into segments, or None: never. What a row is given then does not
            depend on the rows beside it.
    """

    block_v: int = 64
    num_warps: int = 4
    num_stages: int = 3
    use_descriptors: bool = True
    prepare_registers: int | None = None
    prepare_programs: int = 1056
    prepare_columns: int | None = None
    parts: int = 1
    late_reads: bool = False
    precision: str = "tf32x3"
    inverse_precision: str = "bf16x3"
    specialized: SpecializedConfig | None = None
    segments: SegmentConfig | None = None


def _cap(registers: int | None) -> dict[str, int]:
    """The launch option, where it is wanted: code generators but NVIDIA's do not know it."""
    return {} if registers is None else {"maxnreg": registers}


def chunk_rule(
    inputs: PrefillInputs,
    rows: Rows,
    states: States,
    out: torch.Tensor,
    config: PrefillConfig,
) -> None:
    """Run the rows of a prefill group: their outputs into ``out``, their states to their slots.

    Args:
        inputs: Over all tokens of the step.
        rows: With ``chunks`` of ``CHUNK`` tokens. A padding row's output is zero.
        states: Its tensors are written in place.
        out: ``[T, HV, V]`` contiguous, activation dtype; only tokens of ``rows`` are written.
        config: How to launch.
    """
    chunks = rows.chunks
    if chunks is None or chunks.size != CHUNK:
        raise ValueError(f"chunk_rule takes rows with chunks of {CHUNK} tokens")
    if rows.num_seqs == 0 or (chunks.count == 0 and states.slots is not None):
        return
    if config.specialized is not None and chunks.count:
        # not with the module: not every Triton has Gluon
        from gdn_dispatch.triton_kernels.specialized import can_specialize, specialized_chunk_rule

        if can_specialize(inputs, out):
            specialized_chunk_rule(inputs, rows, chunks, states, out, config)
            return
    q, k, v = inputs.q, inputs.k, inputs.v
    H, K = q.shape[1:]
    HV, V = v.shape[1:]
    group = HV // H
    padded_k = max(16, triton.next_power_of_2(K))
    operand = torch.bfloat16 if v.dtype == torch.bfloat16 else torch.float32
    matrices = torch.empty(2, HV, chunks.count, CHUNK, CHUNK, dtype=operand, device=v.device)
    transform, attention = matrices.unbind(0)
    factors = torch.empty(HV, chunks.count, 5, CHUNK, dtype=torch.float32, device=v.device)
    if chunks.count:
        # value heads share products of their key head, unless that leaves too few programs
        heads = group if chunks.count * H >= config.prepare_programs else 1
        prepare_kernel[(chunks.count * HV // heads,)](
            q,
            k,
            inputs.g,
            inputs.beta,
            inputs.A_log,
            inputs.dt_bias,
            transform,
            attention,
            factors,
            chunks.indices,
            chunks.nonempty,
            rows.starts,
            rows.cu_seqlens,
            chunks.count,
            inputs.scale,
            *q.stride()[:2],
            *k.stride()[:2],
            *inputs.g.stride(),
            *inputs.beta.stride(),
            H,
            K=K,
            BK=padded_k,
            BT=CHUNK,
            COLUMNS=min(config.prepare_columns or padded_k, padded_k),
            GROUP=group,
            HEADS=heads,
            L2NORM=inputs.l2norm,
            BETA_IS_LOGIT=inputs.beta_is_logit,
            NEG_EIGVAL=inputs.allow_neg_eigval,
            PRECISION=config.precision,
            INVERSE_PRECISION=config.inverse_precision,
            num_warps=_PREPARE_WARPS,
            **_cap(config.prepare_registers),
        )

    block_v = block_of(config.block_v, V)
    programs = triton.cdiv(V, block_v) * HV
    tiles = None
    if config.use_descriptors and config.parts == 1 and operand == v.dtype:
        tiles = tiles_of(
            inputs.q, inputs.k, inputs.v, transform, attention, factors, block_v=block_v
        )
    cut = None
    how = config.segments
    if how is not None and (size := size_of_segments(inputs, rows, how, block_v)):
        prepared = Prepared(transform, factors, chunks.offsets, tiles)
        run_pass = portable_pass(inputs, rows, states, prepared, config, size)
        cut = split_into_segments(inputs, rows, how, size, run_pass)
    segments = 1 if cut is None else cut.count
    if cut is None:
        initial, initial_strides = states.initial, states.strides(states.initial)
    else:
        initial, initial_strides = cut.states, (HV * V * K, V * K, K, 1)
    recurrence_kernel[(programs * rows.num_seqs * segments,)](
        q,
        k,
        v,
        transform,
        attention,
        *(tiles or (None,) * len(Tiles._fields)),
        factors,
        out,
        initial,
        states.final,
        rows.sequences,
        rows.starts,
        rows.cu_seqlens,
        chunks.offsets,
        *states.slot_arguments(),
        0 if initial is None else initial.shape[0],
        0 if states.final is None else states.final.shape[0],
        chunks.count,
        0 if cut is None else cut.tokens,
        segments,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *states.slot_strides(),
        *initial_strides,
        *states.strides(states.final),
        HV,
        GROUP=group,
        K=K,
        V=V,
        BK=padded_k,
        BV=block_v,
        BT=CHUNK,
        SEGMENTED=cut is not None,
        PARTS=min(config.parts, padded_k // 16) if operand == torch.float32 else 1,
        LATE=config.late_reads,
        PRECISION=config.precision,
        DESCRIPTORS=tiles is not None,
        STAGES=config.num_stages,
        # after descriptors, at most one chunk of each row is left
        TAIL_STAGES=config.num_stages if tiles is None else 1,
        num_warps=config.num_warps,
    )
