"""The gated delta rule token by token, a tile of the state in the unified buffer.

Both products with the state are taken of the state as it was, which leaves one pass over it::

    m = e^g S^T k,  p = e^g S^T q;  d = beta (v - m);  S <- e^g S + k d^T;  o = scale (p + (q.k) d)

The tile lies as the state lies in memory: [values, keys] or [keys, values].
"""

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.slots_kernel import live_slot, row_number, starts_from_zero


@triton.jit
def _gates(a, b, A_log, dt_bias, head, RAW_GATE: tl.constexpr, BETA_LOGIT: tl.constexpr,
           NEG_EIGVAL: tl.constexpr):  # fmt: skip
    """``e^g`` and beta of one token, worked out as vectors: exp is the vector unit's."""
    g = tl.zeros([8], tl.float32) + tl.load(a).to(tl.float32)
    if RAW_GATE:
        if dt_bias is not None:
            g = g + tl.load(dt_bias + head).to(tl.float32)
        e = tl.exp(-tl.abs(g))
        u = 1.0 + e
        # log1p: what rounding 1 + e has lost is in the ratio of e to u - 1
        log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
        rate = tl.exp(tl.zeros([8], tl.float32) + tl.load(A_log + head).to(tl.float32))
        g = -rate * (tl.maximum(g, 0.0) + log1p)
    beta = tl.zeros([8], tl.float32) + tl.load(b).to(tl.float32)
    if BETA_LOGIT:
        beta = 1.0 / (1.0 + tl.exp(-beta))
    if NEG_EIGVAL:
        beta = 2.0 * beta
    return tl.max(tl.exp(g), axis=0), tl.max(beta, axis=0)


@triton.jit
def _step(state, q, k, v, decay, beta, scale, KEYS_LAST: tl.constexpr, L2NORM: tl.constexpr):
    """The state after a token, and the token's output over the tile's values."""
    if L2NORM:
        q = q * tl.rsqrt(tl.zeros_like(q) + (tl.sum(q * q, axis=0) + 1e-6))
        k = k * tl.rsqrt(tl.zeros_like(k) + (tl.sum(k * k, axis=0) + 1e-6))
    qk = tl.sum(q * k, axis=0)
    if KEYS_LAST:
        memory = tl.sum(state * k[None, :], axis=1)
        past = tl.sum(state * q[None, :], axis=1)
    else:
        memory = tl.sum(state * k[:, None], axis=0)
        past = tl.sum(state * q[:, None], axis=0)
    d = beta * (v - decay * memory)
    if KEYS_LAST:
        state = state * decay + d[:, None] * k[None, :]
    else:
        state = state * decay + k[:, None] * d[None, :]
    return state, scale * (decay * past + qk * d)


@triton.jit
def _tile(stride_v, stride_k, values, keys, BV: tl.constexpr, BK: tl.constexpr,
          KEYS_LAST: tl.constexpr):  # fmt: skip
    """Offsets of a head's state, and which of them exist."""
    v, k = tl.arange(0, BV), tl.arange(0, BK)
    if KEYS_LAST:
        at = v[:, None] * stride_v + k[None, :] * stride_k
        inside = (v < values)[:, None] & (k < keys)[None, :]
    else:
        at = k[:, None] * stride_k + v[None, :] * stride_v
        inside = (k < keys)[:, None] & (v < values)[None, :]
    return at, inside


@triton.jit(do_not_specialize=[
    "num_rows", "H", "HV", "pool_size", "pad_slot", "num_columns",
    "stride_q", "stride_q_head", "stride_k", "stride_k_head", "stride_v", "stride_v_head",
    "stride_a", "stride_b", "stride_out", "stride_out_head",
    "stride_initial", "stride_initial_head", "stride_final", "stride_final_head",
    "stride_write", "stride_write_column", "stride_read", "stride_read_column",
], do_not_specialize_on_alignment=["a", "b"])  # fmt: skip
def recurrent_kernel(
    q, k, v, a, b, A_log, dt_bias, out, initial, final,
    sequences, starts, cu_seqlens,
    write_slots, read_slots, has_initial_state, num_accepted_tokens,
    scale, num_rows, H, HV, pool_size, pad_slot, num_columns,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head,
    stride_a, stride_a_head, stride_b, stride_b_head, stride_out, stride_out_head,
    stride_initial, stride_initial_head, stride_initial_v, stride_initial_k,
    stride_final, stride_final_head, stride_final_v, stride_final_k,
    stride_write, stride_write_column, stride_read, stride_read_column,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KEYS_LAST: tl.constexpr, SPECULATIVE: tl.constexpr,
    RAW_GATE: tl.constexpr, BETA_LOGIT: tl.constexpr, NEG_EIGVAL: tl.constexpr,
    L2NORM: tl.constexpr,
):  # fmt: skip
    """BV values of one head of one row.

    Without ``write_slots`` row i reads ``initial[i]`` and writes ``final[i]``, where given; a row
    of no tokens hands its state on. A row of padding is written with zeros.
    """
    BLOCKS: tl.constexpr = (V + BV - 1) // BV
    tasks = num_rows * HV * BLOCKS
    core = tl.program_id(0)
    dims, columns = tl.arange(0, BK), tl.arange(0, BV)
    for i in range((tasks - core + tl.num_programs(0) - 1) // tl.num_programs(0)):
        task = core + i * tl.num_programs(0)
        first = task % BLOCKS * BV
        head = task // BLOCKS % HV
        row = task // (BLOCKS * HV)
        number = row_number(sequences, row)
        index = tl.maximum(number, 0)
        length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
        length = tl.where(number >= 0, length, 0)
        start = tl.load(starts + row).to(tl.int64)
        values = V - first

        source = index.to(tl.int64)
        target = index.to(tl.int64)
        live = number >= 0
        if write_slots is not None:
            column = number * 0
            if SPECULATIVE:
                if num_accepted_tokens is not None:
                    accepted = tl.load(num_accepted_tokens + index).to(tl.int32)
                    column = tl.minimum(tl.maximum(accepted, 1), num_columns) - 1
            target = live_slot(write_slots, index, 0, stride_write, 0, pad_slot, pool_size)
            source = live_slot(
                read_slots, index, column, stride_read, stride_read_column, pad_slot, pool_size
            )
            source = tl.where(starts_from_zero(has_initial_state, index), -1, source)
            live = live & (length > 0) & (target >= 0)
        present = live & (source >= 0)

        state = tl.zeros([BV, BK] if KEYS_LAST else [BK, BV], tl.float32)
        if initial is not None:
            at, inside = _tile(
                stride_initial_v, stride_initial_k, values, tl.where(present, K, 0),
                BV, BK, KEYS_LAST,
            )  # fmt: skip
            place = initial + source * stride_initial + head.to(tl.int64) * stride_initial_head
            state = tl.load(place + first * stride_initial_v + at, mask=inside, other=0.0).to(
                tl.float32
            )

        key_head = head // (HV // H)
        q_at = q + start * stride_q + key_head * stride_q_head
        k_at = k + start * stride_k + key_head * stride_k_head
        v_at = v + start * stride_v + head * stride_v_head + first
        a_at = a + start * stride_a + head * stride_a_head
        b_at = b + start * stride_b + head * stride_b_head
        out_at = out + start * stride_out + head * stride_out_head + first
        for t in range(tl.where(live, length, 0)):
            token = tl.cast(t, tl.int64)
            q_t = tl.load(q_at + token * stride_q + dims, mask=dims < K, other=0.0)
            k_t = tl.load(k_at + token * stride_k + dims, mask=dims < K, other=0.0)
            v_t = tl.load(v_at + token * stride_v + columns, mask=columns < values, other=0.0)
            decay, beta = _gates(
                a_at + token * stride_a, b_at + token * stride_b, A_log, dt_bias, head,
                RAW_GATE, BETA_LOGIT, NEG_EIGVAL,
            )  # fmt: skip
            state, result = _step(
                state, q_t.to(tl.float32), k_t.to(tl.float32), v_t.to(tl.float32),
                decay, beta, scale, KEYS_LAST, L2NORM,
            )  # fmt: skip
            tl.store(
                out_at + token * stride_out + columns, result.to(out.dtype.element_ty),
                mask=columns < values,
            )  # fmt: skip
            if SPECULATIVE:
                slot = live_slot(
                    write_slots, index, tl.minimum(t, num_columns - 1),
                    stride_write, stride_write_column, pad_slot, pool_size,
                )  # fmt: skip
                at, inside = _tile(
                    stride_final_v, stride_final_k, values, tl.where(slot >= 0, K, 0),
                    BV, BK, KEYS_LAST,
                )  # fmt: skip
                place = final + slot * stride_final + head.to(tl.int64) * stride_final_head
                tl.store(
                    place + first * stride_final_v + at, state.to(final.dtype.element_ty),
                    mask=inside,
                )  # fmt: skip
        for t in range(tl.where(live, 0, length)):
            token = tl.cast(t, tl.int64)
            tl.store(
                out_at + token * stride_out + columns, tl.zeros([BV], out.dtype.element_ty),
                mask=columns < values,
            )  # fmt: skip
        if not SPECULATIVE:
            if final is not None:
                at, inside = _tile(
                    stride_final_v, stride_final_k, values, tl.where(live, K, 0),
                    BV, BK, KEYS_LAST,
                )  # fmt: skip
                place = final + target * stride_final + head.to(tl.int64) * stride_final_head
                tl.store(
                    place + first * stride_final_v + at, state.to(final.dtype.element_ty),
                    mask=inside,
                )  # fmt: skip
