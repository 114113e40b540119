"""The gated delta rule: the mathematics, then the hook that runs it alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from gdn_dispatch import GDNOutput, RuleRequest
from gdn_dispatch_numpy.arrays import Array, store, to_numpy


class Heads(NamedTuple):
    """Inputs of the recurrence over T tokens.

    Attributes:
        q, k: ``[T, H, K]``. v: ``[T, HV, V]``; value head j reads key head j // (HV/H).
        g: ``[T, HV]`` natural-log decay. beta: ``[T, HV]`` write strength.
    """

    q: Array
    k: Array
    v: Array
    g: Array
    beta: Array

    def rows(self, start: int, end: int) -> Heads:
        """The same over some of the tokens."""
        return Heads(*(x[start:end] for x in self))


def delta_rule(heads: Heads, scale: float, state: Array) -> tuple[Array, Array]:
    """Run one sequence, or a piece of one, token by token.

    Per token: ``S <- exp(g) S;  d = beta (v - S^T k);  S <- S + k d^T;  o = scale S^T q``.
    A decay of -inf needs no care: ``exp(g)`` is zero, and the state starts anew.

    Args:
        heads: Inputs.
        scale: Factor on the output.
        state: ``[HV, K, V]`` before the first token; not written.

    Returns:
        Output ``[T, HV, V]`` and the state after the last token.
    """
    q, k, v, g, beta = heads
    shared = v.shape[1] // k.shape[1]  # value heads of one key head
    output = np.empty(v.shape)
    for t in range(len(v)):
        key, query = np.repeat(k[t], shared, axis=0), np.repeat(q[t], shared, axis=0)
        state = np.exp(g[t])[:, None, None] * state
        d = beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", state, key))
        state = state + key[:, :, None] * d[:, None, :]
        output[t] = scale * np.einsum("hkv,hk->hv", state, query)
    return output, state


def normalise(x: Array) -> Array:
    """``x / sqrt(sum x^2 + 1e-6)`` over the last dimension."""
    norm: Array = np.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)
    return x / norm


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, without an overflow on either side."""
    return np.exp(-np.logaddexp(0.0, -x))


def decay_of(a: Array, A_log: Array, dt_bias: Array | float) -> Array:
    """Natural-log decay ``-exp(A_log) softplus(a + dt_bias)`` of a raw gate."""
    return -np.exp(A_log) * np.logaddexp(0.0, a + dt_bias)


def gated_delta_rule(request: RuleRequest) -> GDNOutput:
    """Run the recurrence alone, one sequence after the other."""
    HV, V = request.v.shape[2:]
    K = request.k.shape[3]
    sequences = list(_sequences(request))
    output = torch.zeros_like(request.v, memory_format=torch.contiguous_format)
    # fp32, or fp64 for fp64 inputs
    state_dtype = torch.promote_types(request.v.dtype, torch.float32)
    final_state = torch.empty(len(sequences), HV, K, V, dtype=state_dtype)

    initial_state = request.initial_state
    if initial_state is not None and request.state_v_first:
        initial_state = initial_state.transpose(2, 3)  # a view: the same matrix, K first

    for n, (batch, tokens) in enumerate(sequences):
        heads = _heads(request, batch, tokens)
        state = np.zeros((HV, K, V)) if initial_state is None else to_numpy(initial_state[n])
        result, state = delta_rule(heads, request.scale, state)
        store(output[batch, tokens], result)
        store(final_state[n], state)

    if not request.output_final_state:
        return GDNOutput(output)
    if request.state_v_first:
        final_state = final_state.transpose(2, 3).contiguous()
    return GDNOutput(output, final_state)


def _sequences(request: RuleRequest) -> Iterator[tuple[int, slice]]:
    """Batch row and tokens of every sequence: those of the metadata, or all T of every row."""
    B, T = request.q.shape[:2]
    if request.meta is None:
        yield from ((batch, slice(0, T)) for batch in range(B))
    else:
        starts = request.meta.cu_seqlens_host
        yield from ((0, slice(start, end)) for start, end in pairwise(starts))


def _heads(request: RuleRequest, batch: int, tokens: slice) -> Heads:
    """The inputs of one sequence, with the options of the call applied."""
    q, k, v, g, beta = (
        to_numpy(x[batch, tokens])
        for x in (request.q, request.k, request.v, request.g, request.beta)
    )
    if request.use_qk_l2norm_in_kernel:
        q, k = normalise(q), normalise(k)
    if request.A_log is not None:  # then g is the raw gate
        dt_bias = 0.0 if request.dt_bias is None else to_numpy(request.dt_bias)
        g = decay_of(g, to_numpy(request.A_log), dt_bias)
    if request.use_beta_sigmoid_in_kernel:
        beta = sigmoid(beta)
    if request.allow_neg_eigval:
        beta = 2 * beta
    return Heads(q, k, v, g, beta)
