"""The chunk rule by kernels of specialised warps: the host's part."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import triton

from gdn_dispatch.triton_kernels.rule_tensors import CHUNK, PrefillInputs, States
from gdn_dispatch.triton_kernels.segments import size_of_segments, split_into_segments
from gdn_dispatch.triton_kernels.specialized_descriptors import (
    HALF,
    factors_of_chunks,
    quarters,
    quarters_of_heads,
    tokens,
)
from gdn_dispatch.triton_kernels.specialized_kernel import specialized_recurrence_kernel
from gdn_dispatch.triton_kernels.specialized_prepare_kernel import specialized_prepare_kernel
from gdn_dispatch.triton_kernels.specialized_segments_kernel import specialized_segment_kernel

if TYPE_CHECKING:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from gdn_dispatch.triton_kernels.prefill import PrefillConfig
    from gdn_dispatch.triton_kernels.rows import Chunks, Rows
    from gdn_dispatch.triton_kernels.segments import SegmentPass, Segments
    from gdn_dispatch.triton_kernels.specialized_config import SpecializedConfig

__all__ = ["can_specialize", "specialized_chunk_rule"]

_PART = 64
"""Channels of V of a group of warps."""

_FACTORS = 6
"""Numbers per token of the preparation."""


class _Registers(NamedTuple):
    """Per thread. Hardware counts in eights; warps that copy count as four.

    With fewer for those that recur, the assembler lets a warp's products wait for each other.

    Attributes:
        recur, copy: Of warps that do that; those that come first in a kernel get the rest.
        average: Of all.
    """

    recur: int
    copy: int
    average: int


_SCORING: Final = {1: _Registers(232, 24, 136), 2: _Registers(208, 24, 128)}
_SCORED: Final = {1: _Registers(232, 40, 136), 2: _Registers(232, 40, 168)}
"""By groups of warps that recur, where others score; and where the preparation did."""
_SEGMENT_STAGES = 3
_SEGMENT_REGISTERS = 128
_SEGMENT_COPY = 40
"""Of the pass over segments, whose programs share a multiprocessor: two of eight warps each."""


class _Shared(NamedTuple):
    """What several of the kernels take.

    Attributes:
        q, k, v: Descriptors of chunks.
        transform, attention, factors: What the preparation leaves; attention may be None.
        chunks: Descriptors of a quarter of a transform, and of a chunk's factors, see
            ``factors_of_chunks``.
    """

    q: TensorDescriptor
    k: TensorDescriptor
    v: TensorDescriptor
    transform: torch.Tensor
    attention: torch.Tensor | None
    factors: torch.Tensor
    chunks: tuple[TensorDescriptor, TensorDescriptor, TensorDescriptor]


def can_specialize(inputs: PrefillInputs, out: torch.Tensor) -> bool:
    """Whether descriptors can address q, k, v and the output, and sizes are those compiled for."""
    q, k, v = inputs.q, inputs.k, inputs.v
    if v.dtype != torch.bfloat16 or k.shape[2] != 128 or v.shape[2] != 128:
        return False
    return all(
        (x.shape[1] == 1 or x.stride(1) == x.shape[2])
        and x.stride(0) * x.element_size() % 16 == 0
        and x.data_ptr() % 16 == 0
        for x in (q, k, v, out)
    )


def specialized_chunk_rule(
    inputs: PrefillInputs,
    rows: Rows,
    chunks: Chunks,
    states: States,
    out: torch.Tensor,
    config: PrefillConfig,
) -> None:
    """``chunk_rule`` of a call that ``can_specialize``, with at least one chunk."""
    how = config.specialized
    if how is None:
        raise ValueError("specialized_chunk_rule wants PrefillConfig.specialized")
    v = inputs.v
    each = (v.shape[1], chunks.count)
    transform = torch.empty(*each, 3, HALF, HALF, dtype=v.dtype, device=v.device)
    attention = None
    if v.shape[1] > how.score_group * inputs.k.shape[1]:
        attention = torch.empty_like(transform)
    factors = torch.empty(*each, _FACTORS, CHUNK, dtype=torch.float32, device=v.device)
    K = inputs.k.shape[2]
    shared = _Shared(
        tokens(inputs.q, K), tokens(inputs.k, K), tokens(v, _PART),
        transform, attention, factors, (quarters(transform), *factors_of_chunks(factors)),
    )  # fmt: skip
    _prepare(inputs, rows, chunks, shared, how)
    cut = None
    parts, segments = how.parts, config.segments
    if segments is not None and (
        size := size_of_segments(inputs, rows, segments, _PART * how.cut_parts)
    ):
        parts = how.cut_parts
        run_pass = _segment_pass(inputs, rows, chunks, states, shared, size)
        cut = split_into_segments(inputs, rows, segments, size, run_pass)
    _recur(inputs, rows, chunks, states, shared, cut, out, parts, how.stages)


def _prepare(
    inputs: PrefillInputs,
    rows: Rows,
    chunks: Chunks,
    shared: _Shared,
    config: SpecializedConfig,
) -> None:
    H, K = inputs.k.shape[1:]
    HV = inputs.v.shape[1]
    group = HV // H
    attention = shared.attention
    keys, heads = 1, min(config.prepare_heads, triton.next_power_of_2(group))
    if heads == group:  # then the value heads of several key heads lie side by side
        # with scores, queries take as much of shared memory as keys
        most = config.prepare_keys if attention is None else min(config.prepare_keys, 2)
        keys = gcd(H, most, config.prepare_heads // heads)
        heads *= keys
    parts = triton.cdiv(group * keys, heads)
    specialized_prepare_kernel[(chunks.count * (H // keys) * parts,)](
        None if attention is None else shared.q,
        shared.k,
        quarters_of_heads(shared.transform, heads, group),
        None if attention is None else quarters_of_heads(attention, heads, group),
        inputs.g,
        inputs.beta,
        inputs.A_log,
        inputs.dt_bias,
        shared.factors,
        chunks.indices,
        chunks.nonempty,
        rows.starts,
        rows.cu_seqlens,
        chunks.count,
        inputs.scale,
        *inputs.g.stride(),
        *inputs.beta.stride(),
        H,
        K=K,
        BT=CHUNK,
        GROUP=group,
        KEYS=keys,
        HEADS=heads,
        L2NORM=inputs.l2norm,
        BETA_IS_LOGIT=inputs.beta_is_logit,
        NEG_EIGVAL=inputs.allow_neg_eigval,
        num_warps=4,
        maxnreg=config.prepare_registers,
    )


def _segment_pass(
    inputs: PrefillInputs, rows: Rows, chunks: Chunks, states: States, shared: _Shared, size: int
) -> SegmentPass:
    H, K = inputs.k.shape[1:]
    HV, V = inputs.v.shape[1:]

    def run_pass(before: torch.Tensor, transfers: torch.Tensor, count: int) -> None:
        blocks = (count - 1) * (V // _PART) + (count - 2) * (K // _PART)
        specialized_segment_kernel[(blocks * HV * rows.num_seqs,)](
            shared.k,
            shared.v,
            *shared.chunks[:2],
            states.initial,
            before,
            transfers,
            rows.sequences,
            rows.starts,
            rows.cu_seqlens,
            chunks.offsets,
            *states.read_arguments(),
            chunks.count,
            size,
            count,
            rows.num_seqs,
            *states.slot_strides(),
            *states.strides(states.initial),
            HV,
            GROUP=HV // H,
            K=K,
            V=V,
            BT=CHUNK,
            STAGES=_SEGMENT_STAGES,
            COPY_REGISTERS=_SEGMENT_COPY,
            num_warps=4,
            maxnreg=_SEGMENT_REGISTERS,
        )

    return run_pass


def _recur(
    inputs: PrefillInputs,
    rows: Rows,
    chunks: Chunks,
    states: States,
    shared: _Shared,
    cut: Segments | None,
    out: torch.Tensor,
    parts: int,
    stages: int,
) -> None:
    H, K = inputs.k.shape[1:]
    HV, V = inputs.v.shape[1:]
    initial, final, final_slots = states.initial, states.final, 0
    initial_strides = states.strides(initial)
    final_strides = own_strides = (HV * V * K, V * K, K, 1)
    if final is None:
        final = shared.factors  # stands in: no kernel of its own for nothing to write
    else:
        final_slots, final_strides = final.shape[0], states.strides(final)
    if cut is not None:
        initial, initial_strides = cut.states, own_strides
    segments = 1 if cut is None else cut.count
    attention = shared.attention
    registers = (_SCORING if attention is None else _SCORED)[parts]
    specialized_recurrence_kernel[(V // (_PART * parts) * HV * rows.num_seqs * segments,)](
        shared.q,
        shared.k,
        shared.v,
        shared.chunks[0],
        None if attention is None else quarters(attention),
        *shared.chunks[1:],
        tokens(out, _PART),
        out,
        initial,
        final,
        rows.sequences,
        rows.starts,
        rows.cu_seqlens,
        chunks.offsets,
        *states.slot_arguments(),
        0 if initial is None else initial.shape[0],
        final_slots,
        chunks.count,
        inputs.scale,
        0 if cut is None else cut.tokens,
        segments,
        *states.slot_strides(),
        *initial_strides,
        *final_strides,
        HV,
        GROUP=HV // H,
        K=K,
        V=V,
        BT=CHUNK,
        PARTS=parts,
        STAGES=stages,
        L2NORM=inputs.l2norm and attention is None,
        SCORE_WIDTH=CHUNK // parts,
        RECUR_REGISTERS=registers.recur,
        COPY_REGISTERS=registers.copy,
        SEGMENTED=cut is not None,
        num_warps=4,
        maxnreg=registers.average,
    )
