"""Decay and write strength of a chunk, for all value heads of a program at once, for Hopper."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from gdn_dispatch.triton_kernels import dots_kernel, gates_kernel

__all__ = ["gates_of", "keep_gates"]

split_decay = gluon.jit(dots_kernel.split_decay.fn)
read_gates = gluon.jit(gates_kernel.read_gates.fn)
decay_and_strength = gluon.jit(gates_kernel.decay_and_strength.fn)


@gluon.jit
def add_pairs(a, b, c, d):
    """Sums of two scans at once."""
    return a + c, b + d


@gluon.jit
def blocks_of(numbers, LAYOUT: gl.constexpr):
    """``[heads, tokens]`` as ``[heads, 4, 16]``: as it lies in registers."""
    return gl.convert_layout(numbers.reshape([numbers.shape[0], 4, 16]), LAYOUT)


@gluon.jit
def one_of(numbers, which):
    """Of every block its one number, ``[heads, 4]``."""
    return gl.sum(gl.where(which, numbers, 0.0), axis=2)


@gluon.constexpr_function
def lines():
    """The layout of gates [heads, tokens]: a warp to a head."""
    return gl.BlockedLayout([1, 2], [1, 32], [4, 1], [1, 0])


@gluon.jit
def gates_of(
    g, beta, A_log, dt_bias, g_token, g_head, beta_token, beta_head, token, length, first_head,
    live_heads, HEADS: gl.constexpr,
):  # fmt: skip
    """What ``read_gates`` returns of a chunk, [heads, tokens]; dead heads repeat a live one."""
    t = gl.arange(0, 64, gl.SliceLayout(0, lines()))[None, :]
    head = gl.arange(0, HEADS, gl.SliceLayout(1, lines()))[:, None]
    head = first_head + gl.minimum(head, live_heads - 1)
    at = token.to(gl.int64)
    wide = head.to(gl.int64)
    return read_gates(
        g + at * g_token + (wide * g_head + t * g_token),
        beta + at * beta_token + (wide * beta_head + t * beta_token),
        A_log, dt_bias, head, (t < length) & (head >= 0),
    )  # fmt: skip


@gluon.jit
def keep_gates(
    gates, length, tables, through, RAW: gl.constexpr, BETA_IS_LOGIT: gl.constexpr,
    NEG_EIGVAL: gl.constexpr,
):  # fmt: skip
    """Keep what the decay between any two tokens of a chunk is made of, a warp to a head.

    A chunk is four blocks of 16 tokens. Between tokens of one block decay is 2 to the difference
    of cumulative sums. From token j to token i of a later block it is a product of numbers that
    are at most 1: to the end of j's block, through the blocks in between, from the start of i's;
    so there is an exponential a token, and none a pair of tokens.

    Args:
        gates: What ``gates_of`` returns.
        tables: ``[5, heads, tokens]`` of shared memory, filled with cumulative decay within the
            block (base 2: integers, fractions), decay from the start of the block up to and with
            the token, decay after the token to the end of the block, and strength.
        through: ``[heads, 4]`` of shared memory, filled with the decay of blocks.

    Returns:
        e^G, e^(G_last - G), strength and G (base 2), [heads, blocks, tokens of a block].
    """
    HEADS: gl.constexpr = tables.shape[1]
    GATES: gl.constexpr = gl.BlockedLayout([1, 1, 2], [1, 4, 8], [4, 1, 1], [2, 1, 0])
    live = gl.arange(0, 64, gl.SliceLayout(0, lines()))[None, :] < length
    decay, strength = decay_and_strength(gates, live, RAW, BETA_IS_LOGIT, NEG_EIGVAL)
    tables.index(4).store(strength)
    whole, fraction = split_decay(decay)
    whole_sum, fraction_sum = gl.associative_scan((whole, fraction), 1, add_pairs)
    whole_sum = blocks_of(whole_sum, GATES)
    fraction_sum = blocks_of(fraction_sum, GATES)
    nth = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, GATES)))[None, None, :]
    whole_start = one_of(whole_sum - blocks_of(whole, GATES), nth == 0)
    fraction_start = one_of(fraction_sum - blocks_of(fraction, GATES), nth == 0)
    whole_end = one_of(whole_sum, nth == 15)
    fraction_end = one_of(fraction_sum, nth == 15)
    through.store(gl.exp2((whole_end - whole_start) + (fraction_end - fraction_start)))
    whole = whole_sum - whole_start[:, :, None]
    fraction = fraction_sum - fraction_start[:, :, None]
    tables.index(0).store(whole.reshape([HEADS, 64]))
    tables.index(1).store(fraction.reshape([HEADS, 64]))
    tables.index(2).store(gl.exp2(whole + fraction).reshape([HEADS, 64]))
    to_end = (whole_end[:, :, None] - whole_sum) + (fraction_end[:, :, None] - fraction_sum)
    tables.index(3).store(gl.exp2(to_end).reshape([HEADS, 64]))
    last = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, GATES)))[None, :] == 3
    whole_all = gl.sum(gl.where(last, whole_end, 0.0), axis=1)[:, None, None]
    fraction_all = gl.sum(gl.where(last, fraction_end, 0.0), axis=1)[:, None, None]
    return (
        gl.exp2(whole_sum + fraction_sum),
        gl.exp2((whole_all - whole_sum) + (fraction_all - fraction_sum)),
        blocks_of(strength, GATES),
        whole_sum + fraction_sum,
    )
