"""What warps of the specialised kernels do besides multiplying: copy, blank, read and keep."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from gdn_dispatch.triton_kernels.specialized_triangle_kernel import copy_lower

__all__ = ["blank", "copy_chunks", "keep_rows", "keep_state", "read_state"]


@gluon.jit
def blank(tile, rows):
    """Zeros for the rows of a tile from ``rows`` on, which are another sequence's.

    A few rows at a time, for a warp of few registers.
    """
    WARPS: gl.constexpr = gl.num_warps()
    ROWS: gl.constexpr = tile.shape[0]
    EACH: gl.constexpr = 8 if WARPS == 1 else 4 * WARPS
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    t = gl.arange(0, EACH, gl.SliceLayout(1, LAYOUT))
    for first in gl.static_range(0, ROWS, EACH):
        some = tile.slice(first, EACH)
        found = some.load(LAYOUT)
        some.store(gl.where((first + t < rows)[:, None], found, gl.zeros_like(found)))


@gluon.jit
def copy_chunks(
    q_tiles, k_tiles, v_tiles, transform_tiles, attention_tiles, factor_tiles, whole_tiles,
    queries, keys, values, transforms, scores, factors, wholes, ready, done, landed, token,
    key_column, v_column, chunk, length,
):  # fmt: skip
    """Chunks from device memory to shared memory, as many ahead as it holds.

    Without queries and scores where ``q_tiles`` is None.

    What the last one has of another sequence is blanked: factors of zero do not undo a NaN.
    """
    STAGES: gl.constexpr = keys.shape[0]
    PARTS: gl.constexpr = values.shape[0] // STAGES
    BT: gl.constexpr = keys.shape[1]
    # q is as large as k, and scores are as large as transforms
    MATRICES: gl.constexpr = k_tiles.block_type.nbytes + 3 * transform_tiles.block_type.nbytes
    SIZE: gl.constexpr = (
        MATRICES * (1 if q_tiles is None else 2)
        + v_tiles.block_type.nbytes * PARTS
        + factor_tiles.block_type.nbytes
        + whole_tiles.block_type.nbytes
    )
    for i in range(gl.cdiv(length, BT)):
        stage = i % STAGES
        rows = length - i * BT
        mbarrier.wait(done.index(stage), (i // STAGES & 1) ^ 1)
        bar = ready.index(stage)
        if rows < BT:
            bar = landed.index(0)
        first = token + i * BT
        mbarrier.expect(bar, SIZE)
        tma.async_copy_global_to_shared(k_tiles, [first, key_column], bar, keys.index(stage))
        tma.async_copy_global_to_shared(
            factor_tiles, [(chunk + i) * 5 * BT], bar, factors.index(stage)
        )
        tma.async_copy_global_to_shared(
            whole_tiles, [((chunk + i) * 5 + 4) * BT], bar, wholes.index(stage)
        )
        for part in gl.static_range(PARTS):
            tma.async_copy_global_to_shared(
                v_tiles, [first, v_column + 64 * part], bar, values.index(stage * PARTS + part)
            )
        copy_lower(transform_tiles, chunk + i, bar, transforms, stage)
        if q_tiles is not None:
            tma.async_copy_global_to_shared(q_tiles, [first, key_column], bar, queries.index(stage))
            copy_lower(attention_tiles, chunk + i, bar, scores, stage)
        if rows < BT:
            mbarrier.wait(bar, 0)
            blank(keys.index(stage), rows)
            for part in gl.static_range(PARTS):
                blank(values.index(stage * PARTS + part), rows)
            fence_async_shared()
            mbarrier.arrive(ready.index(stage), count=1)


@gluon.jit
def read_state(place, channel, stride_v, stride_k, K: gl.constexpr, LAYOUT: gl.constexpr):
    """The transposed state [64, K] in fp32, from its place in a head's state."""
    channels = channel + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    dims = gl.arange(0, K, gl.SliceLayout(0, LAYOUT))
    at = channels[:, None] * stride_v + dims[None, :] * stride_k
    return gl.load(place + at).to(gl.float32)


@gluon.jit
def keep_rows(place, tile, rows, stride):
    """Write the first ``rows`` rows of a tile."""
    LAYOUT: gl.constexpr = tile.type.layout
    t = gl.arange(0, tile.shape[0], gl.SliceLayout(1, LAYOUT))
    columns = gl.arange(0, tile.shape[1], gl.SliceLayout(0, LAYOUT))
    at = t.to(gl.int64)[:, None] * stride + columns[None, :]
    gl.store(place + at, tile, mask=(t < rows)[:, None])


@gluon.jit
def keep_state(place, state, channel, stride_v, stride_k):
    """Write a transposed state [64, K] to its place in a head's state."""
    LAYOUT: gl.constexpr = state.type.layout
    channels = channel + gl.arange(0, state.shape[0], gl.SliceLayout(1, LAYOUT))
    dims = gl.arange(0, state.shape[1], gl.SliceLayout(0, LAYOUT))
    gl.store(
        place + (channels[:, None] * stride_v + dims[None, :] * stride_k),
        state.to(place.dtype.element_ty),
    )
