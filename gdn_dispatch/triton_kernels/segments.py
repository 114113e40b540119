"""Long rows cut into segments that run side by side, exactly.

Over a segment the state goes through ``S -> M S + L``. L is what the recurrence leaves when it
starts from zero, M what it leaves of the identity when the values are zero; both for all segments
at once, then one pass joins them into the state before each segment, from which the output of all
segments is computed at once. That is a little more than twice the arithmetic, so it pays only
where the device would otherwise stand idle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import triton

from gdn_dispatch.triton_kernels.capture import is_capturing
from gdn_dispatch.triton_kernels.rule_tensors import CHUNK
from gdn_dispatch.triton_kernels.segments_kernel import join_segments_kernel, segment_kernel

if TYPE_CHECKING:
    from gdn_dispatch.triton_kernels.prefill import PrefillConfig
    from gdn_dispatch.triton_kernels.rows import Rows
    from gdn_dispatch.triton_kernels.rule_tensors import PrefillInputs, States
    from gdn_dispatch.triton_kernels.tiles import Tiles

__all__ = [
    "Prepared",
    "SegmentConfig",
    "SegmentPass",
    "Segments",
    "block_of",
    "portable_pass",
    "segment_tokens",
    "size_of_segments",
    "split_into_segments",
]


@dataclass(frozen=True, slots=True)
class SegmentConfig:
    """When to cut rows, how, and how to launch what that takes.

    Attributes:
        programs: Programs of the recurrence that fill the device; segments are made as long as
            that allows.
        min_tokens: Shortest segment, a multiple of 64.
        price: What cutting costs in time per segment, as multiples of the time without.
        fixed_tokens: What it costs besides for every row, as the tokens that run through meanwhile.
        num_stages: Of the portable pass over segments; the rest as for the recurrence.
        join_block_v, join_warps: Of the pass that joins them.
        join_precision: Of its products, whose operands are fp32.
    """

    programs: int = 264
    min_tokens: int = 512
    price: float = 3.0
    fixed_tokens: int = 0
    num_stages: int = 3
    join_block_v: int = 16
    join_warps: int = 4
    join_precision: str = "tf32x3"


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """What the cutting gives.

    Attributes:
        tokens: Tokens per segment.
        count: Segments per row to launch for; a row of fewer tokens has fewer.
        states: ``[n * count, HV, V, K]`` fp32, the state before each segment of each row.
    """

    tokens: int
    count: int
    states: torch.Tensor


def block_of(block: int, width: int) -> int:
    """A block of at most ``block``, and no larger than ``width`` needs."""
    return min(block, max(16, int(triton.next_power_of_2(width))))


def segment_tokens(
    config: SegmentConfig, *, tokens: int, max_seqlen: int, programs: int, rows: int
) -> int:
    """Tokens per segment, or 0: not worth it.

    Args:
        config: When to cut.
        tokens: Of all rows.
        max_seqlen: Of the longest row.
        rows: How many there are.
        programs: Of the recurrence, per row.
    """
    # whole segments: one too many, however short, is waited for by all
    share = tokens // max(1, config.programs // programs)
    size = max(config.min_tokens, -(-share // CHUNK) * CHUNK)
    cost = config.price * size + config.fixed_tokens * rows
    return size if max_seqlen > cost else 0


def size_of_segments(inputs: PrefillInputs, rows: Rows, how: SegmentConfig, block_v: int) -> int:
    """Tokens per segment of the rows of a prefill group, or 0: they are not cut.

    Args:
        inputs, rows: As for ``chunk_rule``.
        how: When to cut.
        block_v: Channels of V per program of the recurrence.
    """
    T, HV, V = inputs.v.shape
    programs = triton.cdiv(V, block_v) * HV
    return segment_tokens(
        how, tokens=T, max_seqlen=rows.max_seqlen, programs=programs, rows=rows.num_seqs
    )


class SegmentPass(Protocol):
    """The pass over segments: what each leaves of a state, except the last of a row."""

    def __call__(self, states: torch.Tensor, transfers: torch.Tensor, count: int, /) -> None:
        """Write L of segment i to ``states[i + 1]`` and M to ``transfers[i]``.

        The first segment of a row starts from what the row does, which goes to ``states[i]``, and
        is not followed by an M.

        Args:
            states: ``[n * count, HV, V, K]`` fp32.
            transfers: ``[n * count, HV, K, K]`` fp32.
            count: Segments per row to launch for.
        """


def split_into_segments(
    inputs: PrefillInputs, rows: Rows, how: SegmentConfig, size: int, run_pass: SegmentPass
) -> Segments:
    """Cut the rows of a prefill group.

    Args:
        inputs, rows: As for ``chunk_rule``.
        how: How to launch what joins the segments.
        size: What ``size_of_segments`` returns, if not 0.
        run_pass: What the segments leave.
    """
    v = inputs.v
    K = inputs.k.shape[2]
    HV, V = v.shape[1:]
    longest = rows.max_seqlen
    if rows.chunks is not None and is_capturing(v.device):
        longest = max(longest, rows.chunks.count * CHUNK)  # as long as a row of a replay may be
    count = triton.cdiv(longest, size)
    n = rows.num_seqs
    states = torch.empty(n * count, HV, V, K, dtype=torch.float32, device=v.device)
    transfers = torch.empty(n * count, HV, K, K, dtype=torch.float32, device=v.device)
    run_pass(states, transfers, count)
    join_block_v = block_of(how.join_block_v, V)
    join_segments_kernel[(triton.cdiv(V, join_block_v) * HV * n,)](
        states,
        transfers,
        rows.sequences,
        rows.cu_seqlens,
        size,
        count,
        HV,
        K=K,
        V=V,
        BK=max(16, triton.next_power_of_2(K)),
        BV=join_block_v,
        PRECISION=how.join_precision,
        num_warps=how.join_warps,
    )
    return Segments(size, count, states)


class Prepared(NamedTuple):
    """What ``prepare_kernel`` leaves.

    Attributes:
        transform: ``[HV, chunks, C, C]``. factors: ``[HV, chunks, 5, C]``.
        chunk_offsets: ``[n+1]`` number of the first chunk of each row.
        tiles: Descriptors, or None.
    """

    transform: torch.Tensor
    factors: torch.Tensor
    chunk_offsets: torch.Tensor
    tiles: Tiles | None


def portable_pass(
    inputs: PrefillInputs,
    rows: Rows,
    given: States,
    prepared: Prepared,
    config: PrefillConfig,
    size: int,
) -> SegmentPass:
    """The pass by ``segment_kernel``; arguments as for ``chunk_rule``, ``given`` is only read."""
    transform, factors, chunk_offsets, tiles = prepared
    k, v = inputs.k, inputs.v
    H, K = k.shape[1:]
    HV, V = v.shape[1:]
    block_v = block_of(config.block_v, V)
    blocks = triton.cdiv(V, block_v) + triton.cdiv(K, block_v)
    how = config.segments
    if how is None:
        raise ValueError("portable_pass wants PrefillConfig.segments")

    def run_pass(states: torch.Tensor, transfers: torch.Tensor, count: int) -> None:
        segment_kernel[(blocks * HV * rows.num_seqs * count,)](
            k,
            v,
            transform,
            None if tiles is None else tiles.k,
            None if tiles is None else tiles.v,
            None if tiles is None else tiles.transform,
            None if tiles is None else tiles.factors,
            factors,
            given.initial,
            states,
            transfers,
            rows.sequences,
            rows.starts,
            rows.cu_seqlens,
            chunk_offsets,
            *given.read_arguments(),
            transform.shape[1],
            size,
            count,
            *k.stride()[:2],
            *v.stride()[:2],
            *given.slot_strides(),
            *given.strides(given.initial),
            HV,
            GROUP=HV // H,
            K=K,
            V=V,
            BK=max(16, triton.next_power_of_2(K)),
            BV=block_v,
            BT=CHUNK,
            DESCRIPTORS=tiles is not None,
            PRECISION=config.precision,
            STAGES=how.num_stages,
            num_warps=config.num_warps,
        )

    return run_pass
