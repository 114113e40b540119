"""Scores of the recurrence's chunks, by warps of their own, for Hopper.

Scores need q, k and decay, which the recurrence has in shared memory anyway: to have the
preparation leave them in device memory would cost reading q once more, and writing and reading
half as much as v.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from gdn_dispatch.triton_kernels.specialized_tiles_kernel import wait_for

__all__ = ["inverse_norms", "score_chunks"]


@gluon.jit
def inverse_norms(tile):
    """``1 / sqrt(sum x^2 + 1e-6)`` of the rows of a tile."""
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    wide = tile.load(ROWS).to(gl.float32)
    return gl.rsqrt(gl.sum(wide * wide, axis=1) + 1e-6)


@gluon.jit
def power_of_two(x):
    """2^x, 0 where that is less than 2^-126: no score is told from 0 by it, and it is faster."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def score_chunks(copying, scoring, WIDTH: gl.constexpr, L2NORM: gl.constexpr):
    """Scores of the chunks of a row, as they land: q k^T with decay, and 0 above the diagonal.

    Args:
        copying: See ``copy_chunk``.
        scoring: ``[stages, tokens]``, filled with what a state's answers to q are multiplied by;
            ``[tokens]``, for this function alone; barriers of stages, told when scores are there;
            scale of q.
        WIDTH: Tokens whose keys are multiplied at a time; fewer take fewer registers.
        L2NORM: Rows of q and k are divided by their norms.
    """
    _, places, _, whose = copying
    queries, keys, _, _, scores, factors, decays = places
    into_queries, row_norms, scored, scale = scoring
    STAGES: gl.constexpr = keys.shape[0]
    BT: gl.constexpr = keys.shape[1]
    PARTS: gl.constexpr = BT // WIDTH
    SOME: gl.constexpr = 16
    CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, CHUNK)
    COLUMN: gl.constexpr = gl.SliceLayout(0, CHUNK)
    EACH: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    # the left half of an operand lies before its right one
    panels = scores._reinterpret(scores.dtype, [PARTS * STAGES, BT, WIDTH], scores.layout)
    i = gl.arange(0, BT, ROW)[:, None]
    j = gl.arange(0, WIDTH, COLUMN)[None, :]
    zero = gl.zeros([BT, WIDTH], gl.float32, CHUNK)
    for n in range(gl.cdiv(whose[4], BT)):
        stage = n % STAGES
        wait_for(copying, n)
        queries_at = queries.index(stage)
        since_start = factors.index(stage).slice(BT, BT)
        decay_at = decays.index(stage)
        decay_of_rows = decay_at.slice(0, BT).load(ROW)
        if L2NORM:
            for first in gl.static_range(0, BT, SOME):
                norms = inverse_norms(queries_at.slice(first, SOME))
                row_norms.slice(first, SOME).store(norms)
            norms = row_norms.load(EACH)
            weights = since_start.load(EACH) * (norms * scale)
        else:
            weights = since_start.load(EACH) * scale
        into_queries.index(stage).store(weights)
        for first in gl.static_range(0, BT, WIDTH):
            product = warpgroup_mma(
                queries_at, keys.index(stage).slice(first, WIDTH).permute((1, 0)), zero,
                use_acc=False, is_async=True,
            )  # fmt: skip
            # one difference, so that it is exact where it is near 0
            decay_of_columns = decay_at.slice(first, WIDTH).load(COLUMN)
            decay = power_of_two(decay_of_rows[:, None] - decay_of_columns[None, :])
            if L2NORM:
                decay = decay * decay_at.slice(BT + first, WIDTH).load(COLUMN)[None, :]
                decay = decay * (row_norms.load(ROW) * scale)[:, None]
            else:
                decay = decay * scale
            product = warpgroup_mma_wait(0, deps=(product,))
            product = product * decay
            # above the diagonal decay may be inf
            product = gl.where(i >= first + j, product, 0.0)
            panels.index(PARTS * stage + first // WIDTH).store(product.to(scores.dtype))
        fence_async_shared()
        gl.thread_barrier()
        mbarrier.arrive(scored.index(stage), count=1)
