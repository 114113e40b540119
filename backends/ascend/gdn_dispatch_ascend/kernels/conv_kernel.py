"""Causal depthwise convolution on a conv pool, in place; vector cores.

Most tokens of a prefill need nothing but its inputs: they are convolved in tiles [tokens,
channels]. The first W-1 tokens of a row need its history; one task does them, one token after the
other, and then leaves the row's new history. A slot's history is read and then overwritten by one
and the same task, for the channels it has, and no other task reads it.
"""

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.slots_kernel import live_slot, row_number, starts_from_zero
from gdn_dispatch_ascend.kernels.prepare_kernel import chunk_of
from gdn_dispatch_ascend.kernels.recurrence_kernel import first_checkpoint


@triton.jit
def _activate(total, SILU: tl.constexpr):
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    return total


@triton.jit
def _bias_of(bias, first, channels, BD: tl.constexpr):
    d = tl.arange(0, BD)
    offset = tl.zeros([BD], tl.float32)
    if bias is not None:
        offset = tl.load(bias + first + d, mask=d < channels, other=0.0).to(tl.float32)
    return offset


@triton.jit
def _taps_of(weight, first, channels, stride_d, stride_w, W: tl.constexpr, TAPS: tl.constexpr,
             BD: tl.constexpr):  # fmt: skip
    """Weights [TAPS, BD], read as they lie and then turned; zero from W on."""
    tap, d = tl.arange(0, TAPS), tl.arange(0, BD)
    mask = (d < channels)[:, None] & (tap < W)[None, :]
    at = weight + first * stride_d + (d[:, None] * stride_d + tap[None, :] * stride_w)
    return tl.trans(tl.load(at, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def _tap_of(taps, which, TAPS: tl.constexpr):
    """One row of ``taps``."""
    tap = tl.arange(0, TAPS).to(tl.float32)
    return tl.sum(tl.where((tap == which)[:, None], taps, 0.0), axis=0)


@triton.jit
def _first_tokens(
    x_at, conv_at, history, taps, offset, tokens, channels, known,
    stride_x, stride_conv, stride_d, stride_l,
    W: tl.constexpr, TAPS: tl.constexpr, BD: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """A row's first ``tokens``, one after the other: of [history | x], W columns each.

    The history exists for ``known`` channels: all of them or none.
    """
    d = tl.arange(0, BD)
    for t in range(tokens):
        total = offset
        missing = tl.maximum(W - 1 - t, 0)  # columns that are history
        for tap in range(tl.minimum(missing, W)):
            at = history + (t + tap) * stride_l
            old = tl.load(at + d * stride_d, mask=d < known, other=0.0).to(tl.float32)
            total = total + old * _tap_of(taps, tap, TAPS)
        for tap in range(missing, W):
            at = x_at + tl.cast(t + tap - (W - 1), tl.int64) * stride_x
            new = tl.load(at + d, mask=d < channels, other=0.0).to(tl.float32)
            total = total + new * _tap_of(taps, tap, TAPS)
        result = _activate(total, SILU).to(conv_at.dtype.element_ty)
        tl.store(conv_at + tl.cast(t, tl.int64) * stride_conv + d, result, mask=d < channels)


@triton.jit
def _tiles(
    x, conv, weight, bias, indices, nonempty, starts, cu_seqlens, sequences, write_slots,
    num_tiles, pool_size, pad_slot, D, stride_x, stride_conv, stride_weight_d, stride_weight_w,
    stride_write,
    W: tl.constexpr, TAPS: tl.constexpr, TILE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """Tokens that have W-1 others of their row before them."""
    blocks = (D + BD - 1) // BD
    pieces: tl.constexpr = TILE // BT
    tasks = num_tiles * pieces * blocks
    core = tl.program_id(0)
    t, d = tl.arange(0, BT), tl.arange(0, BD)
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        first = task % blocks * BD
        piece = task // blocks % pieces
        tile = task // (blocks * pieces)
        start, tokens = chunk_of(indices, nonempty, starts, cu_seqlens, tile, TILE)
        row = tl.maximum(tl.load(nonempty + tl.maximum(tl.load(indices + 2 * tile), 0)), 0)
        number = row_number(sequences, row)
        index = tl.maximum(number, 0)
        slot = live_slot(write_slots, index, 0, stride_write, 0, pad_slot, pool_size)
        live = (number >= 0) & (slot >= 0)
        begin = tl.load(indices + 2 * tile + 1) * TILE + piece * BT
        skipped = tl.maximum(W - 1 - begin, 0)
        until = tl.where(live, tl.minimum(tokens - piece * BT, BT), 0)
        channels = D - first
        mask = (t < until - skipped)[:, None] & (d < channels)[None, :]
        token = start + piece * BT + skipped
        total = tl.zeros([BT, BD], tl.float32) + _bias_of(bias, first, channels, BD)[None, :]
        taps = _taps_of(weight, first, channels, stride_weight_d, stride_weight_w, W, TAPS, BD)
        for tap in range(W):
            at = x + (token + (tap - (W - 1))) * stride_x + first
            value = tl.load(at + (t[:, None] * stride_x + d[None, :]), mask=mask, other=0.0)
            total = total + value.to(tl.float32) * _tap_of(taps, tap, TAPS)[None, :]
        result = _activate(total, SILU).to(conv.dtype.element_ty)
        at = conv + token * stride_conv + first
        tl.store(at + (t[:, None] * stride_conv + d[None, :]), result, mask=mask)


@triton.jit
def _keep_inputs(
    x, state, token, missing, slot, live, first, channels,
    stride_x, stride_slot, stride_d, stride_l,
    W: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write the W-1 inputs before ``token`` to columns of a slot, but for the first ``missing``."""
    d = tl.arange(0, BD)
    line = state + slot * stride_slot + tl.cast(first, tl.int64) * stride_d
    for column in range(W - 1):
        wanted = tl.where(live & (column >= missing), channels, 0)
        at = x + (token + (column - (W - 1))) * stride_x + first
        value = tl.load(at + d, mask=d < wanted, other=0.0)
        tl.store(line + column * stride_l + d * stride_d, value, mask=d < wanted)


@triton.jit(do_not_specialize=[
    "num_tiles", "num_rows", "num_checkpoints", "pool_size", "pad_slot", "D",
    "stride_x", "stride_conv", "stride_slot", "stride_write", "stride_read",
])  # fmt: skip
def conv_prefill_kernel(
    x, conv, weight, bias, state,
    sequences, starts, cu_seqlens, indices, nonempty,
    write_slots, read_slots, has_initial_state,
    checkpoint_sequences, checkpoint_offsets, checkpoint_slots,
    num_tiles, num_rows, num_checkpoints, pool_size, pad_slot, D,
    stride_x, stride_conv, stride_weight_d, stride_weight_w,
    stride_slot, stride_d, stride_l, stride_write, stride_read,
    W: tl.constexpr, TAPS: tl.constexpr, TILE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    BR: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Tiles of tokens; then the heads and histories of rows; then histories at checkpoints.

    A row's history is read before any of it is written, since the task that holds it does both.
    """
    _tiles(
        x, conv, weight, bias, indices, nonempty, starts, cu_seqlens, sequences, write_slots,
        num_tiles, pool_size, pad_slot, D,
        stride_x, stride_conv, stride_weight_d, stride_weight_w, stride_write,
        W, TAPS, TILE, BT, BD, SILU,
    )  # fmt: skip
    core = tl.program_id(0)
    d = tl.arange(0, BR)
    blocks = (D + BR - 1) // BR
    tasks = num_rows * blocks
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        first = task % blocks * BR
        row = task // blocks
        channels = D - first
        number = row_number(sequences, row)
        index = tl.maximum(number, 0)
        length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
        start = tl.load(starts + row).to(tl.int64)
        write = live_slot(write_slots, index, 0, stride_write, 0, pad_slot, pool_size)
        read = live_slot(read_slots, index, 0, stride_read, 0, pad_slot, pool_size)
        read = tl.where(starts_from_zero(has_initial_state, index), -1, read)
        live = (number >= 0) & (length > 0) & (write >= 0)
        known = tl.where(live & (read >= 0), channels, 0)
        lane = tl.cast(first, tl.int64) * stride_d
        history = state + read * stride_slot + lane
        line = state + write * stride_slot + lane
        _first_tokens(
            x + start * stride_x + first, conv + start * stride_conv + first, history,
            _taps_of(weight, first, channels, stride_weight_d, stride_weight_w, W, TAPS, BR),
            _bias_of(bias, first, channels, BR),
            tl.where(live, tl.minimum(length, W - 1), 0), channels, known,
            stride_x, stride_conv, stride_d, stride_l, W, TAPS, BR, SILU,
        )  # fmt: skip
        # what a row shorter than the window keeps of its history moves to the front, in order: a
        # column is never written before it is read
        for column in range(W - 1):
            moved = column + length
            keeps = live & (moved < W - 1)
            bound = tl.where(keeps, known, 0)
            old = tl.load(history + moved * stride_l + d * stride_d, mask=d < bound, other=0.0)
            bound = tl.where(keeps, channels, 0)
            tl.store(line + column * stride_l + d * stride_d, old, mask=d < bound)
        _keep_inputs(
            x, state, start + length, W - 1 - length, write, live, first, channels,
            stride_x, stride_slot, stride_d, stride_l, W, BR,
        )  # fmt: skip

    if checkpoint_sequences is not None:
        tasks = num_rows * blocks
        for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
            task = core + i * tl.num_programs(0)
            first = task % blocks * BR
            row = task // blocks
            number = row_number(sequences, row)
            index = tl.maximum(number, 0)
            start = tl.load(starts + row).to(tl.int64)
            own = live_slot(write_slots, index, 0, stride_write, 0, pad_slot, pool_size)
            begin = first_checkpoint(checkpoint_sequences, number, num_checkpoints)
            end = first_checkpoint(checkpoint_sequences, number + 1, num_checkpoints)
            for which in range(begin, tl.where((number >= 0) & (own >= 0), end, begin)):
                slot = live_slot(
                    checkpoint_slots, tl.cast(which, tl.int32), 0, 1, 0, pad_slot, pool_size
                )
                _keep_inputs(
                    x, state, start + tl.load(checkpoint_offsets + which), 0, slot, slot >= 0,
                    first, D - first, stride_x, stride_slot, stride_d, stride_l, W, BR,
                )  # fmt: skip


@triton.jit(do_not_specialize=[
    "num_rows", "pool_size", "pad_slot", "num_columns", "D",
    "stride_x", "stride_conv", "stride_slot", "stride_write", "stride_read",
])  # fmt: skip
def conv_update_kernel(
    x, conv, weight, bias, state,
    sequences, starts, cu_seqlens,
    write_slots, read_slots, has_initial_state, num_accepted_tokens,
    num_rows, pool_size, pad_slot, num_columns, D,
    stride_x, stride_conv, stride_weight_d, stride_weight_w,
    stride_slot, stride_d, stride_l, stride_write, stride_read,
    W: tl.constexpr, TAPS: tl.constexpr, BD: tl.constexpr, SPECULATIVE: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """One row of one token, or of a few draft tokens, for a block of channels.

    A draft's history lies at columns A-1 .. A+W-3 of its line; the line that it leaves begins with
    the second of them, so that whichever of its tokens is accepted, the history that goes with it
    is found further along.
    """
    blocks = (D + BD - 1) // BD
    tasks = num_rows * blocks
    core = tl.program_id(0)
    d = tl.arange(0, BD)
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        first = task % blocks * BD
        row = task // blocks
        channels = D - first
        number = row_number(sequences, row)
        index = tl.maximum(number, 0)
        start = tl.load(starts + row).to(tl.int64)
        length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
        begin = number * 0
        if SPECULATIVE:
            if num_accepted_tokens is not None:
                accepted = tl.load(num_accepted_tokens + index).to(tl.int32)
                begin = tl.minimum(tl.maximum(accepted, 1), num_columns) - 1
        write = live_slot(write_slots, index, 0, stride_write, 0, pad_slot, pool_size)
        read = live_slot(read_slots, index, 0, stride_read, 0, pad_slot, pool_size)
        read = tl.where(starts_from_zero(has_initial_state, index), -1, read)
        live = (number >= 0) & (length > 0) & (write >= 0)
        known = tl.where(live & (read >= 0), channels, 0)
        lane = tl.cast(first, tl.int64) * stride_d
        history = state + read * stride_slot + begin * stride_l + lane
        line = state + write * stride_slot + lane
        _first_tokens(
            x + start * stride_x + first, conv + start * stride_conv + first, history,
            _taps_of(weight, first, channels, stride_weight_d, stride_weight_w, W, TAPS, BD),
            _bias_of(bias, first, channels, BD), tl.where(live, length, 0), channels, known,
            stride_x, stride_conv, stride_d, stride_l, W, TAPS, BD, SILU,
        )  # fmt: skip

        # columns 1 .. W-2 of the history become columns 0 .. W-3 of the line, in order: where both
        # are one line, a column is never written before it is read
        for column in range(W - 2):
            at = history + (column + 1) * stride_l
            old = tl.load(at + d * stride_d, mask=d < known, other=0.0)
            bound = tl.where(live, channels, 0)
            tl.store(line + column * stride_l + d * stride_d, old, mask=d < bound)
        for t in range(tl.where(live, length, 0)):
            at = x + (start + t) * stride_x + first
            value = tl.load(at + d, mask=d < channels, other=0.0)
            place = line + (W - 2 + t) * stride_l
            tl.store(place + d * stride_d, value, mask=d < tl.where(W - 2 + t >= 0, channels, 0))
