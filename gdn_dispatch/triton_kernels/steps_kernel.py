"""The gated delta rule token by token, a tile of the state in registers.

The state's tile has three dimensions, [X, G, C]. C runs along memory, a cache line or so of it;
Triton gives a warp's threads to C and then to X, and what is left of the keys, G, to each thread
alone: loads of 16 bytes cover whole lines, and most of a sum over keys needs no other thread. With
keys along memory: key g*C + c, value x. With values along memory: key g*X + x, value c.

Both products with the state are taken of the state as it was, which leaves one pass over it::

    m = e^g S^T k,  p = e^g S^T q;  d = beta (v - m);  S <- e^g S + k d^T;  o = scale (p + (q.k) d)
"""

import triton
import triton.language as tl

from gdn_dispatch.triton_kernels.slots_kernel import live_slot, row_number, starts_from_zero


@triton.jit
def _over_keys(x, KEYS_LAST: tl.constexpr):
    """Sum of [X, G, C] over the keys."""
    if KEYS_LAST:
        total = tl.sum(tl.sum(x, 1), 1)
    else:
        total = tl.sum(tl.sum(x, 1), 0)
    return total


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def _load_token(q, k, v, a, b, token, exists, stride_q, stride_k, stride_v, stride_a, stride_b,
                key, value, K: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """What a token brings, as it is; pointers are those of the program's heads."""
    token = token.to(tl.int64)
    return (
        tl.load(q + token * stride_q + key, mask=(key < K) & exists, other=0.0),
        tl.load(k + token * stride_k + key, mask=(key < K) & exists, other=0.0),
        tl.load(v + token * stride_v + value, mask=(value < V) & exists, other=0.0),
        tl.load(a + token * stride_a, mask=exists, other=0.0),
        tl.load(b + token * stride_b, mask=exists, other=0.0),
    )


@triton.jit
def _decay(a, A_log, dt_bias, head, RAW_GATE: tl.constexpr):
    """``e^g``, fp32, of the log decay or of the raw gate."""
    g = a.to(tl.float32)
    if RAW_GATE:
        if dt_bias is not None:
            g += tl.load(dt_bias + head).to(tl.float32)
        u = tl.exp(tl.minimum(g, 20.0))
        w = 1.0 + u
        # log1p: what rounding 1 + u has lost is in the ratio of u to w - 1
        log1p = tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
        softplus = tl.where(g > 20.0, g, log1p)
        g = -tl.exp(tl.load(A_log + head).to(tl.float32)) * softplus
    return tl.exp(g)


@triton.jit
def _strength(b, BETA_LOGIT: tl.constexpr, NEG_EIGVAL: tl.constexpr):
    beta = b.to(tl.float32)
    if BETA_LOGIT:
        beta = 1.0 / (1.0 + tl.exp(-beta))
    if NEG_EIGVAL:
        beta = 2.0 * beta
    return beta


@triton.jit
def _step(state, q, k, v, decay, beta, scale, KEYS_LAST: tl.constexpr, L2NORM: tl.constexpr):
    """The state after a token, and the token's output over the tile's values."""
    q, k = q.to(tl.float32), k.to(tl.float32)
    qk = _total(q * k)
    if L2NORM:
        q_norm = tl.rsqrt(_total(q * q) + 1e-6)
        k_norm = tl.rsqrt(_total(k * k) + 1e-6)
        q, k, qk = q * q_norm, k * k_norm, qk * q_norm * k_norm
    if KEYS_LAST:
        q, k = q[None, :, :], k[None, :, :]
    else:
        q, k = q[:, :, None], k[:, :, None]
    memory = decay * _over_keys(state * k, KEYS_LAST)
    past = decay * _over_keys(state * q, KEYS_LAST)
    d = beta * (v.to(tl.float32) - memory)
    if KEYS_LAST:
        state = state * decay + k * d[:, None, None]
    else:
        state = state * decay + k * d[None, None, :]
    return state, scale * (past + qk * d)


@triton.jit(do_not_specialize=["pool_size", "pad_slot", "num_columns"])
def recurrent_kernel(
    q, k, v, a, b, A_log, dt_bias, out, initial, final,
    sequences, starts, cu_seqlens,
    write_slots, read_slots, has_initial_state, num_accepted_tokens,
    scale, pool_size, pad_slot, num_columns,
    stride_q, stride_q_head, stride_k, stride_k_head, stride_v, stride_v_head,
    stride_a, stride_a_head, stride_b, stride_b_head, stride_out, stride_out_head,
    stride_initial, stride_initial_head, stride_initial_v, stride_initial_k,
    stride_final, stride_final_head, stride_final_v, stride_final_k,
    stride_write, stride_write_column, stride_read, stride_read_column,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    G: tl.constexpr, X: tl.constexpr, C: tl.constexpr, KEYS_LAST: tl.constexpr,
    ONE_TOKEN: tl.constexpr, SPECULATIVE: tl.constexpr,
    RAW_GATE: tl.constexpr, BETA_LOGIT: tl.constexpr, NEG_EIGVAL: tl.constexpr,
    L2NORM: tl.constexpr,
):  # fmt: skip
    """A block of values of one head of one row.

    Without k and v, q has all of a layer's channels. Without ``write_slots`` row i reads
    ``initial[i]`` and writes ``final[i]``, where given; a row of no tokens hands its state on.
    """
    BV: tl.constexpr = X if KEYS_LAST else C
    blocks: tl.constexpr = (V + BV - 1) // BV
    row = tl.program_id(0) // (HV * blocks)
    head = tl.program_id(0) // blocks % HV
    # Nothing returns early: a branch would wait for its load, and loads that do not depend on one
    # another, the token's and the slots', have to be under way together.
    number = row_number(sequences, row)
    start = tl.load(starts + row).to(tl.int64)
    length = tl.load(cu_seqlens + row + 1) - tl.load(cu_seqlens + row)
    length = tl.where(number >= 0, length, 0)
    exists = length > 0

    first = tl.program_id(0) % blocks * BV
    value = first + tl.arange(0, BV)
    # Keys as a matrix, not as a part of the tile: a load of the tile's rank would impose its own
    # layout on the state.
    if KEYS_LAST:
        key = tl.arange(0, G)[:, None] * C + tl.arange(0, C)[None, :]
        tile_key, tile_value = key[None, :, :], value[:, None, None]
    else:
        key = tl.arange(0, G)[None, :] * X + tl.arange(0, X)[:, None]
        tile_key, tile_value = key[:, :, None], value[None, None, :]
    inside = (tile_key < K) & (tile_value < V)

    index = tl.maximum(number, 0)
    live = number >= 0
    read = index.to(tl.int64)
    write = index.to(tl.int64)
    if write_slots is not None:
        column = 0
        if SPECULATIVE:
            if num_accepted_tokens is not None:
                accepted = tl.load(num_accepted_tokens + index).to(tl.int32)
                column = tl.minimum(tl.maximum(accepted, 1), num_columns) - 1
        write = live_slot(write_slots, index, 0, stride_write, 0, pad_slot, pool_size)
        read = live_slot(
            read_slots, index, column, stride_read, stride_read_column, pad_slot, pool_size
        )
        read = tl.where(starts_from_zero(has_initial_state, index), -1, read)
        live = exists & (write >= 0)

    key_head = head // (HV // H)
    if k is None:  # of the channels [q | k | v]
        k = q + H * K
        v = q + 2 * H * K
    q += start * stride_q + key_head * stride_q_head
    k += start * stride_k + key_head * stride_k_head
    v += start * stride_v + head * stride_v_head
    a += start * stride_a + head * stride_a_head
    b += start * stride_b + head * stride_b_head
    out += start * stride_out + head * stride_out_head + value
    q_t, k_t, v_t, a_t, b_t = _load_token(
        q, k, v, a, b, length * 0, exists,
        stride_q, stride_k, stride_v, stride_a, stride_b, key, value, K, V,
    )  # fmt: skip

    if initial is not None:
        source = initial + read * stride_initial + head * stride_initial_head
        state = tl.load(
            source + (tile_value * stride_initial_v + tile_key * stride_initial_k),
            mask=inside & live & (read >= 0), other=0.0, eviction_policy="evict_first",
        ).to(tl.float32)  # fmt: skip
    else:
        state = tl.zeros([X, G, C], dtype=tl.float32)

    if ONE_TOKEN:
        decay = _decay(a_t, A_log, dt_bias, head, RAW_GATE)
        beta = _strength(b_t, BETA_LOGIT, NEG_EIGVAL)
        state, result = _step(state, q_t, k_t, v_t, decay, beta, scale, KEYS_LAST, L2NORM)
        result = tl.where(live, result, 0.0)
        tl.store(out, result.to(out.dtype.element_ty), mask=exists & (value < V))
    else:
        next_slot = write
        for t in range(length):
            # A step ahead, before a store to the state: it waits for none.
            if SPECULATIVE:
                slot = next_slot
                next_slot = live_slot(
                    write_slots, index, tl.minimum(t + 1, num_columns - 1),
                    stride_write, stride_write_column, pad_slot, pool_size,
                )  # fmt: skip
            q_n, k_n, v_n, a_n, b_n = _load_token(
                q, k, v, a, b, tl.minimum(t + 1, length - 1), t + 1 < length,
                stride_q, stride_k, stride_v, stride_a, stride_b, key, value, K, V,
            )  # fmt: skip
            decay = _decay(a_t, A_log, dt_bias, head, RAW_GATE)
            beta = _strength(b_t, BETA_LOGIT, NEG_EIGVAL)
            state, result = _step(state, q_t, k_t, v_t, decay, beta, scale, KEYS_LAST, L2NORM)
            result = tl.where(live, result, 0.0)
            tl.store(out, result.to(out.dtype.element_ty), mask=value < V)
            out += stride_out
            if SPECULATIVE:
                target = final + slot * stride_final + head * stride_final_head
                tl.store(
                    target + (tile_value * stride_final_v + tile_key * stride_final_k),
                    state.to(final.dtype.element_ty),
                    mask=inside & live & (slot >= 0), eviction_policy="evict_first",
                )  # fmt: skip
            q_t, k_t, v_t, a_t, b_t = q_n, k_n, v_n, a_n, b_n
    if not SPECULATIVE:
        if final is not None:
            target = final + write * stride_final + head * stride_final_head
            tl.store(
                target + (tile_value * stride_final_v + tile_key * stride_final_k),
                state.to(final.dtype.element_ty), mask=inside & live,
                eviction_policy="evict_first",
            )  # fmt: skip
