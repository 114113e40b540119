"""What warps of the specialised kernels do besides multiplying: copy, blank, read and keep."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from gdn_dispatch.triton_kernels.specialized_triangle_kernel import copy_lower

__all__ = [
    "blank",
    "copy_chunk",
    "copy_chunks",
    "keep_rows",
    "keep_state",
    "read_state",
    "wait_for",
]


@gluon.jit
def blank(tile, rows):
    """Zeros for the rows of a tile from ``rows`` on, which are another sequence's.

    A few rows at a time, for warps of few registers.
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
def copy_chunk(copying, i):
    """Chunk ``i`` of a row, from device memory to its stage in shared memory.

    Without queries, and decay, which only they need, where there is no descriptor of q.
    ``ready`` of the stage is told once it is there; ``landed`` instead, if the row ends within it:
    then somebody has to ``wait_for`` it. None: no row does.

    Args:
        copying: Descriptors of q, k, v, transforms, scores (or None), factors and the last two of
            these; where in shared memory they go, in stages; barriers ready, done and landed;
            first token, columns of q and k and of v, number of the first chunk, and tokens.
        i: Which chunk of these tokens.
    """
    tiles, places, barriers, whose = copying
    q_tiles, k_tiles, v_tiles, transform_tiles, attention_tiles, factor_tiles, decay_tiles = tiles
    queries, keys, values, transforms, scores, factors, decays = places
    ready, _, landed = barriers
    token, key_column, v_column, chunk, length = whose
    STAGES: gl.constexpr = keys.shape[0]
    PARTS: gl.constexpr = values.shape[0] // STAGES
    BT: gl.constexpr = keys.shape[1]
    FOR_QUERIES: gl.constexpr = (
        0 if q_tiles is None else q_tiles.block_type.nbytes + decay_tiles.block_type.nbytes
    )
    SIZE: gl.constexpr = (
        k_tiles.block_type.nbytes
        + factor_tiles.block_type.nbytes
        + v_tiles.block_type.nbytes * PARTS
        + 3 * transform_tiles.block_type.nbytes * (1 if attention_tiles is None else 2)
        + FOR_QUERIES
    )
    stage = i % STAGES
    bar = ready.index(stage)
    if landed is not None:
        if length - i * BT < BT:
            bar = landed.index(0)
    first = token + i * BT
    mbarrier.expect(bar, SIZE)
    tma.async_copy_global_to_shared(k_tiles, [first, key_column], bar, keys.index(stage))
    at = (chunk + i) * (6 * BT)
    tma.async_copy_global_to_shared(factor_tiles, [at], bar, factors.index(stage))
    for part in gl.static_range(PARTS):
        tma.async_copy_global_to_shared(
            v_tiles, [first, v_column + 64 * part], bar, values.index(stage * PARTS + part)
        )
    copy_lower(transform_tiles, chunk + i, bar, transforms, stage)
    if q_tiles is not None:
        tma.async_copy_global_to_shared(q_tiles, [first, key_column], bar, queries.index(stage))
        tma.async_copy_global_to_shared(decay_tiles, [at + 4 * BT], bar, decays.index(stage))
    if attention_tiles is not None:
        copy_lower(attention_tiles, chunk + i, bar, scores, stage)


@gluon.jit
def wait_for(copying, i):
    """Wait for chunk ``i``; a row's last one is blanked where it is another's, for everybody.

    Factors of zero do not undo a NaN.
    """
    _, places, barriers, whose = copying
    _, keys, values, _, _, _, _ = places
    ready, _, landed = barriers
    STAGES: gl.constexpr = keys.shape[0]
    PARTS: gl.constexpr = values.shape[0] // STAGES
    BT: gl.constexpr = keys.shape[1]
    stage = i % STAGES
    rows = whose[4] - i * BT
    if rows < BT:
        mbarrier.wait(landed.index(0), 0)
        blank(keys.index(stage), rows)
        for part in gl.static_range(PARTS):
            blank(values.index(stage * PARTS + part), rows)
        fence_async_shared()
        gl.thread_barrier()
        mbarrier.arrive(ready.index(stage), count=1)
    else:
        mbarrier.wait(ready.index(stage), i // STAGES & 1)


@gluon.jit
def copy_chunks(copying):
    """Chunks one after the other, as many ahead as there are stages; see ``copy_chunk``.

    With scores, nobody else waits for a row's last one.
    """
    tiles, places, barriers, whose = copying
    keys = places[1]
    done = barriers[1]
    length = whose[4]
    STAGES: gl.constexpr = keys.shape[0]
    BT: gl.constexpr = keys.shape[1]
    for i in range(gl.cdiv(length, BT)):
        mbarrier.wait(done.index(i % STAGES), (i // STAGES & 1) ^ 1)
        copy_chunk(copying, i)
        if tiles[4] is not None:
            if length - i * BT < BT:
                wait_for(copying, i)


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
