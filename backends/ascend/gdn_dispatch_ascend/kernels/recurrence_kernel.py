"""The recurrence over chunks and its output; the state is held from a row's first to its last."""

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.slots_kernel import live_slot, row_number, starts_from_zero


@triton.jit
def load_state(at, values, keys, stride_v, stride_k, BV: tl.constexpr, BK: tl.constexpr,
               KEYS_LAST: tl.constexpr):  # fmt: skip
    """A head's state [BK, BV] as fp32, read along memory; zero from ``values`` and ``keys`` on."""
    v, k = tl.arange(0, BV), tl.arange(0, BK)
    if KEYS_LAST:
        mask = (v < values)[:, None] & (k < keys)[None, :]
        tile = tl.load(at + (v[:, None] * stride_v + k[None, :] * stride_k), mask=mask, other=0.0)
        state = tl.trans(tile.to(tl.float32))
    else:
        mask = (k < keys)[:, None] & (v < values)[None, :]
        tile = tl.load(at + (k[:, None] * stride_k + v[None, :] * stride_v), mask=mask, other=0.0)
        state = tile.to(tl.float32)
    return state


@triton.jit
def keep_state(at, state, values, keys, stride_v, stride_k, BV: tl.constexpr, BK: tl.constexpr,
               KEYS_LAST: tl.constexpr):  # fmt: skip
    """The reverse of ``load_state``."""
    v, k = tl.arange(0, BV), tl.arange(0, BK)
    tile = state.to(at.dtype.element_ty)
    if KEYS_LAST:
        mask = (v < values)[:, None] & (k < keys)[None, :]
        tl.store(at + (v[:, None] * stride_v + k[None, :] * stride_k), tl.trans(tile), mask=mask)
    else:
        mask = (k < keys)[:, None] & (v < values)[None, :]
        tl.store(at + (k[:, None] * stride_k + v[None, :] * stride_v), tile, mask=mask)


@triton.jit
def first_checkpoint(checkpoint_sequences, number, num_checkpoints):
    """How many checkpoints belong to rows before ``number``: they are sorted by row."""
    before = number * 0
    for base in range(0, num_checkpoints, 64):
        i = tl.arange(0, 64)
        of = tl.load(checkpoint_sequences + base + i, mask=i < num_checkpoints - base, other=-1)
        of = of.to(tl.float32)
        earlier = (of >= 0.0) & (of < number.to(tl.float32))
        before += tl.sum(tl.where(earlier, 1.0, 0.0), axis=0).to(tl.int32)
    return before


@triton.jit
def next_checkpoint(checkpoint_sequences, checkpoint_offsets, which, number, num_checkpoints):
    """Offset of checkpoint ``which``, or -1 where it is not one of row ``number``."""
    there = tl.minimum(which, num_checkpoints - 1)
    mine = (tl.load(checkpoint_sequences + there) == number) & (which < num_checkpoints)
    return tl.where(mine, tl.load(checkpoint_offsets + there), -1)


@triton.jit(do_not_specialize=[
    "num_rows", "chunks", "num_checkpoints", "pad_slot", "initial_slots", "final_slots", "HV", "H",
    "q_token", "q_head", "k_token", "k_head", "v_token", "v_head", "write_stride", "read_stride",
    "initial_slot", "initial_head", "final_slot", "final_head",
])  # fmt: skip
def recurrence_kernel(
    q, k, v, transform, attention, factors, out, initial, final,
    sequences, starts, cu_seqlens, chunk_offsets,
    write, read, has_initial_state,
    checkpoint_sequences, checkpoint_offsets, checkpoint_slots,
    num_rows, chunks, num_checkpoints, pad_slot, initial_slots, final_slots, H, HV,
    q_token, q_head, k_token, k_head, v_token, v_head, write_stride, read_stride,
    initial_slot, initial_head, initial_v, initial_k,
    final_slot, final_head, final_v, final_k,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BT: tl.constexpr, INITIAL_KEYS_LAST: tl.constexpr, FINAL_KEYS_LAST: tl.constexpr,
):  # fmt: skip
    """BV values of one value head of one row, chunk after chunk.

    With T, P and the factors of ``prepare_kernel``::

        V' = T (V - diag(e^G) K S);  O = diag(e^G) Q S + P V';  S <- e^G_last S + K^T V'

    where the last K has its rows scaled by e^(G_last - G). A row of padding is written with zeros.
    Without ``write``, row i has state i, and one of no tokens hands it on.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    DTYPE: tl.constexpr = transform.dtype.element_ty
    tasks = num_rows * HV * BLOCKS
    core = tl.program_id(0)
    t, dims, columns = tl.arange(0, BT), tl.arange(0, BK), tl.arange(0, BV)
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        block = task % BLOCKS
        head = task // BLOCKS % HV
        row = task // (BLOCKS * HV)
        number = row_number(sequences, row)
        index = tl.maximum(number, 0)
        length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
        length = tl.where(number >= 0, length, 0)
        start = tl.load(starts + row).to(tl.int64)
        values = V - block * BV

        source = index.to(tl.int64)
        target = index.to(tl.int64)
        live = number >= 0
        if write is not None:
            target = live_slot(write, index, 0, write_stride, 0, pad_slot, final_slots)
            source = target
            if read is not None:
                source = live_slot(read, index, 0, read_stride, 0, pad_slot, initial_slots)
            source = tl.where(starts_from_zero(has_initial_state, index), -1, source)
            live = live & (length > 0) & (target >= 0)
        present = live & (source >= 0)

        state = tl.zeros([BK, BV], tl.float32)
        if initial is not None:
            at = initial + source * initial_slot + head.to(tl.int64) * initial_head
            state = load_state(
                at + block * BV * initial_v, values, tl.where(present, K, 0),
                initial_v, initial_k, BV, BK, INITIAL_KEYS_LAST,
            )  # fmt: skip
        which = number * 0
        upcoming = number * 0 - 1
        if checkpoint_sequences is not None:
            which = first_checkpoint(checkpoint_sequences, number, num_checkpoints)
            upcoming = next_checkpoint(
                checkpoint_sequences, checkpoint_offsets, which, number, num_checkpoints
            )

        key_head = head // (HV // H)
        q_at = q + start * q_token + key_head * q_head
        k_at = k + start * k_token + key_head * k_head
        v_at = v + start * v_token + head * v_head + block * BV
        out_at = out + (start * HV + head) * V + block * BV
        prepared = head.to(tl.int64) * chunks + tl.load(chunk_offsets + row)
        for c in range((tl.where(live, length, 0) + BT - 1) // BT):
            token = tl.cast(c * BT, tl.int64)
            left = length - c * BT
            chunk = prepared + c
            q_mask = (t < left)[:, None] & (dims < K)[None, :]
            v_mask = (t < left)[:, None] & (columns < values)[None, :]
            keys = tl.load(
                k_at + token * k_token + (t[:, None] * k_token + dims[None, :]),
                mask=q_mask, other=0.0,
            ).to(DTYPE)  # fmt: skip
            into_keys = tl.load(factors + chunk * (4 * BT) + t)
            into_queries = tl.load(factors + chunk * (4 * BT) + BT + t)
            to_end = tl.load(factors + chunk * (4 * BT) + 2 * BT + t)
            whole = tl.load(factors + chunk * (4 * BT) + 3 * BT)
            # before the product that may overwrite the keys
            decayed = tl.trans((keys.to(tl.float32) * to_end[:, None]).to(DTYPE))
            operand = state.to(DTYPE)
            recalled = tl.dot(keys, operand, input_precision="ieee")
            value = tl.load(
                v_at + token * v_token + (t[:, None] * v_token + columns[None, :]),
                mask=v_mask, other=0.0,
            ).to(tl.float32)  # fmt: skip
            surprise = (value - recalled * into_keys[:, None]).to(DTYPE)
            tile = t[:, None] * BT + t[None, :]
            solve = tl.load(transform + chunk * (BT * BT) + tile)
            new_values = tl.dot(solve, surprise, input_precision="ieee").to(DTYPE)
            queries = tl.load(
                q_at + token * q_token + (t[:, None] * q_token + dims[None, :]),
                mask=q_mask, other=0.0,
            ).to(DTYPE)  # fmt: skip
            remembered = tl.dot(queries, operand, input_precision="ieee")
            scores = tl.load(attention + chunk * (BT * BT) + tile)
            result = tl.dot(scores, new_values, input_precision="ieee")
            result = result + remembered * into_queries[:, None]
            tl.store(
                out_at + token * (HV * V) + (t[:, None] * (HV * V) + columns[None, :]),
                result.to(out.dtype.element_ty), mask=v_mask,
            )  # fmt: skip
            state = state * whole + tl.dot(decayed, new_values, input_precision="ieee")
            if checkpoint_sequences is not None:
                hit = (c + 1) * BT == upcoming
                place = tl.minimum(which, num_checkpoints - 1)
                slot = live_slot(checkpoint_slots, place, 0, 1, 0, pad_slot, final_slots)
                at = final + slot * final_slot + head.to(tl.int64) * final_head
                keep_state(
                    at + block * BV * final_v, state, values, tl.where(hit & (slot >= 0), K, 0),
                    final_v, final_k, BV, BK, FINAL_KEYS_LAST,
                )  # fmt: skip
                which = which + tl.where(hit, 1, 0)
                upcoming = next_checkpoint(
                    checkpoint_sequences, checkpoint_offsets, which, number, num_checkpoints
                )

        padding = tl.where(live, 0, length)
        for c in range((padding + BT - 1) // BT):
            token = tl.cast(c * BT, tl.int64)
            dead = (t < padding - c * BT)[:, None] & (columns < values)[None, :]
            tl.store(
                out_at + token * (HV * V) + (t[:, None] * (HV * V) + columns[None, :]),
                tl.zeros([BT, BV], out.dtype.element_ty), mask=dead,
            )  # fmt: skip
        if final is not None:
            at = final + target * final_slot + head.to(tl.int64) * final_head
            keep_state(
                at + block * BV * final_v, state, values, tl.where(live, K, 0),
                final_v, final_k, BV, BK, FINAL_KEYS_LAST,
            )  # fmt: skip
