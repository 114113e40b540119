"""Causal depthwise convolution on a conv pool, in place.

A slot's history is read and then overwritten by one and the same program, for the channels it
has: nobody else ever reads it, so launches need no order among their programs. Inside a program a
barrier stands between the last load from the pool and the first store to it, because the thread
that stores a column need not be the one that has loaded it.
"""

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.slots_kernel import live_slot, row_number, starts_from_zero


@triton.jit
def _activate(total, SILU: tl.constexpr):
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    return total


@triton.jit
def _row_of(sequences, number, num_rows):
    """Number in the group of the step's row ``number``; -1 where the group lacks it."""
    found = number
    if sequences is not None:
        found = -1
        for first in range(0, num_rows, 256):
            row = first + tl.arange(0, 256)
            numbers = tl.load(sequences + row, mask=row < num_rows, other=-1)
            found = tl.maximum(found, tl.max(tl.where(numbers == number, row, -1), 0))
    return found


@triton.jit
def _keep_checkpoint(
    x, state, sequences, starts, write_slots,
    checkpoint_sequences, checkpoint_offsets, checkpoint_slots,
    which, d, num_rows, pool_size, pad_slot,
    stride_x, stride_slot, stride_d, stride_l, stride_write,
    D: tl.constexpr, W: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Keep the last W-1 inputs before a checkpoint, which lies at least a tile into its row."""
    number = tl.load(checkpoint_sequences + which)
    if number >= 0:
        row = _row_of(sequences, number, num_rows)
        slot = live_slot(checkpoint_slots, which, 0, 1, 0, pad_slot, pool_size)
        own = live_slot(write_slots, number, 0, stride_write, 0, pad_slot, pool_size)
        if (row >= 0) & (slot >= 0) & (own >= 0):
            offset = tl.load(checkpoint_offsets + which)
            column = tl.arange(0, COLUMNS)
            p = offset - (W - 1) + column
            token = (tl.load(starts + row) + p).to(tl.int64)
            mask = ((column < W - 1) & (p >= 0))[:, None] & (d < D)[None, :]
            value = tl.load(x + token[:, None] * stride_x + d[None, :], mask=mask, other=0.0)
            target = state + slot * stride_slot + column[:, None] * stride_l
            tl.store(target + d[None, :].to(tl.int64) * stride_d, value, mask=mask)


@triton.jit(do_not_specialize=["num_tiles", "num_rows", "pool_size", "pad_slot"])
def conv_prefill_kernel(
    x, conv, weight, bias, state,
    sequences, starts, cu_seqlens, tiles, nonempty,
    write_slots, read_slots, has_initial_state,
    checkpoint_sequences, checkpoint_offsets, checkpoint_slots,
    num_tiles, num_rows, pool_size, pad_slot,
    stride_x, stride_conv, stride_weight_d, stride_weight_w,
    stride_slot, stride_d, stride_l, stride_write, stride_read,
    D: tl.constexpr, W: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr,
    TILE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One tile of tokens, or one checkpoint, for a block of channels.

    Only a row's first tile sees its history, which is why TILE >= W-1. The same program leaves
    the row's new history, for which it reads the row's last inputs a second time.
    """
    blocks: tl.constexpr = (D + BD - 1) // BD
    unit = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    if unit >= num_tiles:
        if checkpoint_sequences is not None:
            _keep_checkpoint(
                x, state, sequences, starts, write_slots,
                checkpoint_sequences, checkpoint_offsets, checkpoint_slots,
                unit - num_tiles, d, num_rows, pool_size, pad_slot,
                stride_x, stride_slot, stride_d, stride_l, stride_write, D, W, COLUMNS,
            )  # fmt: skip
        return
    compact = tl.load(tiles + 2 * unit)
    if compact < 0:
        return
    tile = tl.load(tiles + 2 * unit + 1)
    row = tl.load(nonempty + compact)
    number = row_number(sequences, row)
    if number < 0:
        return
    write = live_slot(write_slots, number, 0, stride_write, 0, pad_slot, pool_size)
    if write < 0:
        return
    start = tl.load(starts + row).to(tl.int64)
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
    x_row = x + start * stride_x
    in_d = d < D

    read = write
    if tile == 0:
        read = live_slot(read_slots, number, 0, stride_read, 0, pad_slot, pool_size)
        read = tl.where(starts_from_zero(has_initial_state, number), -1, read)
    channel = d.to(tl.int64) * stride_d
    history = state + read * stride_slot

    offset = tl.zeros([BD], dtype=tl.float32)
    if bias is not None:
        offset = tl.load(bias + d, mask=in_d, other=0.0).to(tl.float32)
    # A channel's taps lie side by side: loaded as they lie, then taken apart.
    tap = tl.arange(0, TAPS)[None, :]
    weights = tl.load(
        weight + d[:, None] * stride_weight_d + tap * stride_weight_w,
        mask=in_d[:, None] & (tap < W), other=0.0,
    ).to(tl.float32)  # fmt: skip
    taps = ()
    for i in tl.static_range(W):
        taps = taps + (tl.sum(tl.where(tap == i, weights, 0.0), 1),)  # noqa: RUF005 - no stars here

    before = tile * TILE
    x_tile = x_row + before.to(tl.int64) * stride_x + d
    conv_tile = conv + (start + before) * stride_conv + d
    for first in range(0, tl.minimum(TILE, length - before), BT):
        # All loads of a block before its first store, so that they are under way together; each
        # input is loaded once a block and serves W outputs from its register.
        window = ()
        for j in tl.static_range(BT + W - 1):
            p = before + first + j - (W - 1)
            value = tl.load(
                x_tile + (first + j - (W - 1)) * stride_x,
                mask=in_d & (p >= 0) & (p < length), other=0.0,
            )  # fmt: skip
            if j < W - 1:
                old = tl.load(
                    history + (p + W - 1) * stride_l + channel,
                    mask=in_d & (p < 0) & (read >= 0), other=0.0,
                )  # fmt: skip
                value = tl.where(p < 0, old, value)
            window = window + (value,)  # noqa: RUF005
        for t in tl.static_range(BT):
            total = offset
            for i in tl.static_range(W):
                total += window[t + i].to(tl.float32) * taps[i]
            result = _activate(total, SILU).to(conv.dtype.element_ty)
            target = conv_tile + (first + t) * stride_conv
            tl.store(target, result, mask=in_d & (before + first + t < length))

    if tile == 0:
        place = tl.arange(0, COLUMNS)
        moved = length + place  # column of [history | x]
        is_new = (moved >= W - 1)[:, None]
        is_place = (place < W - 1)[:, None] & in_d[None, :]
        kept = tl.load(
            history + moved[:, None] * stride_l + channel[None, :],
            mask=is_place & ~is_new & (read >= 0), other=0.0,
        )  # fmt: skip
        new = tl.load(
            x_row + (moved - (W - 1)).to(tl.int64)[:, None] * stride_x + d[None, :],
            mask=is_place & is_new, other=0.0,
        )  # fmt: skip
        tl.debug_barrier()
        line = state + write * stride_slot + place[:, None] * stride_l
        tl.store(line + channel[None, :], tl.where(is_new, new, kept), mask=is_place)


@triton.jit(do_not_specialize=["pool_size", "pad_slot", "num_columns"])
def conv_update_kernel(
    x, conv, weight, bias, state,
    sequences, starts, cu_seqlens,
    write_slots, read_slots, has_initial_state, num_accepted_tokens,
    pool_size, pad_slot, num_columns,
    stride_x, stride_conv, stride_weight_d, stride_weight_w,
    stride_slot, stride_d, stride_l, stride_write, stride_read,
    D: tl.constexpr, W: tl.constexpr, COLUMNS: tl.constexpr, BD: tl.constexpr,
    SPECULATIVE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One row of one token, or of a few draft tokens, for a block of channels.

    A draft's history lies at columns A-1 .. A+W-3 of its line; the line that it leaves begins with
    the second of them, so that whichever of its tokens is accepted, the history that goes with it
    is found further along.
    """
    blocks: tl.constexpr = (D + BD - 1) // BD
    row = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    # Masks instead of early returns: loads that do not depend on one another go out together.
    number = row_number(sequences, row)
    start = tl.load(starts + row).to(tl.int64)
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
    index = tl.maximum(number, 0)
    begin = 0
    if SPECULATIVE:
        if num_accepted_tokens is not None:
            accepted = tl.load(num_accepted_tokens + index).to(tl.int32)
            begin = tl.minimum(tl.maximum(accepted, 1), num_columns) - 1
    write = live_slot(write_slots, index, 0, stride_write, 0, pad_slot, pool_size)
    read = live_slot(read_slots, index, 0, stride_read, 0, pad_slot, pool_size)
    read = tl.where(starts_from_zero(has_initial_state, index), -1, read)
    live = (number >= 0) & (length > 0) & (write >= 0)
    if SPECULATIVE:
        steps = tl.where(live, length, 0)
    else:
        steps = 1

    in_d = d < D
    x_row = x + start * stride_x
    conv_row = conv + start * stride_conv + d
    channel = d[None, :].to(tl.int64) * stride_d
    history = state + read * stride_slot + begin * stride_l + channel
    tap = tl.arange(0, COLUMNS)[:, None]
    is_tap = (tap < W) & in_d[None, :]
    taps = tl.load(
        weight + d[None, :] * stride_weight_d + tap * stride_weight_w, mask=is_tap, other=0.0
    ).to(tl.float32)
    offset = tl.zeros([BD], dtype=tl.float32)
    if bias is not None:
        offset = tl.load(bias + d, mask=in_d, other=0.0).to(tl.float32)

    # Columns 1 .. W-2 of the history become columns 0 .. W-3 of the line.
    is_kept = (tap >= 1) & (tap < W - 1) & in_d[None, :] & live
    kept = tl.load(history + tap * stride_l, mask=is_kept & (read >= 0), other=0.0)
    for t in range(steps):
        column = t + tap  # of [history | x]
        p = column - (W - 1)
        value = tl.load(
            x_row + p.to(tl.int64) * stride_x + d[None, :],
            mask=is_tap & (p >= 0) & live, other=0.0,
        ).to(tl.float32)  # fmt: skip
        old = tl.load(
            history + column * stride_l, mask=is_tap & (p < 0) & live & (read >= 0), other=0.0
        ).to(tl.float32)
        result = _activate(tl.sum(taps * (value + old), 0) + offset, SILU)
        tl.store(conv_row, result.to(conv.dtype.element_ty), mask=in_d & live)
        conv_row += stride_conv

    tl.debug_barrier()
    line = state + write * stride_slot
    tl.store(line + channel + (tap - 1) * stride_l, kept, mask=is_kept)
    for t in range(steps):
        value = tl.load(x_row + d, mask=in_d & live, other=0.0)
        x_row += stride_x
        tl.store(
            line + (W - 2 + t) * stride_l + d.to(tl.int64) * stride_d,
            value, mask=in_d & live & (W - 2 + t >= 0),
        )  # fmt: skip
