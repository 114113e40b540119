"""The whole layer: ``gdn_dispatch.layer.run_layer`` and the five kernels it asks for."""

from __future__ import annotations

import numpy as np
import torch

from gdn_dispatch import GDNOutput, GDNRequest
from gdn_dispatch.layer import run_layer
from gdn_dispatch.meta import SequenceGroup
from gdn_dispatch_numpy.arrays import Array, store, to_numpy
from gdn_dispatch_numpy.conv import causal_conv
from gdn_dispatch_numpy.rows import Row, rows_of
from gdn_dispatch_numpy.rule import Heads, decay_of, delta_rule, normalise, sigmoid


def gdn_attention(request: GDNRequest) -> GDNOutput:
    """Run a whole layer core.

    The kernels look up every row's slots before ``run_layer`` starts: a call that is refused must
    have written nothing.
    """
    return run_layer(request, NumpyKernels(request))


class NumpyKernels:
    """``gdn_dispatch.layer.LayerKernels`` for one call.

    On a device, one token and many are different kernels; here both are the same loop.
    """

    def __init__(self, request: GDNRequest) -> None:
        meta = request.meta
        groups = (meta.prefill, meta.decode, meta.speculative)
        self.rows = {group: rows_of(group, request) for group in groups if group is not None}
        # [slots, HV, K, V] whatever the engine's layout: a transposed view of the same memory
        pool = request.ssm_state
        self.states = pool.transpose(2, 3) if request.state_v_first else pool

    def conv_prefill(
        self, x: torch.Tensor, conv: torch.Tensor, group: SequenceGroup, request: GDNRequest
    ) -> None:
        """Convolve the group's rows of ``x`` [T, D] into ``conv``; move their conv lines on."""
        weight = to_numpy(request.conv_weight)
        bias = None if request.conv_bias is None else to_numpy(request.conv_bias)
        for row in self.rows[group]:
            if row.is_padding:
                continue
            h = self._history_and_tokens(row, x, request)
            store(conv[row.tokens], causal_conv(h, weight, bias, request.activation))
            length = row.tokens.stop - row.tokens.start
            for after, columns, slot in row.lines_to:
                end = len(h) - length + after
                line = request.conv_state[slot, :, :columns]
                store(line, h[end - columns : end].T)

    conv_update = conv_prefill

    def heads_and_gates(
        self, conv: torch.Tensor, a: torch.Tensor, b: torch.Tensor, request: GDNRequest
    ) -> Heads:
        """Split ``conv`` into heads; decay and write strength from the raw gates."""
        H, K, V = request.num_heads, request.head_dim_k, request.head_dim_v
        T = conv.shape[0]  # 0 in a step without tokens
        q, k, v = np.split(to_numpy(conv), [H * K, 2 * H * K], axis=1)
        # Rows of padding hold anything, NaN included, and nobody reads what becomes of them.
        with np.errstate(invalid="ignore"):
            beta = sigmoid(to_numpy(b))
            return Heads(
                normalise(q.reshape(T, H, K)),
                normalise(k.reshape(T, H, K)),
                v.reshape(T, request.num_v_heads, V),
                decay_of(to_numpy(a), to_numpy(request.A_log), to_numpy(request.dt_bias)),
                2 * beta if request.allow_neg_eigval else beta,
            )

    def chunk_rule(self, heads: Heads, group: SequenceGroup, request: GDNRequest) -> None:
        """Run the group's rows; write their outputs, and their states into the pool."""
        for row in self.rows[group]:
            if row.is_padding:
                request.out[row.tokens] = 0
                continue
            state = np.zeros(self.states.shape[1:])
            if row.state_from is not None:
                state = to_numpy(self.states[row.state_from])
            start = row.tokens.start
            for after, slot in row.states_to:
                end = row.tokens.start + after
                output, state = delta_rule(heads.rows(start, end), request.scale, state)
                store(request.out[start:end], output)
                if slot is not None:
                    store(self.states[slot], state)
                start = end

    recurrent_rule = chunk_rule

    def _history_and_tokens(self, row: Row, x: torch.Tensor, request: GDNRequest) -> Array:
        """``[W-1+T, D]``: what the convolution of a row sees, oldest first."""
        W, D = request.conv_weight.shape[1], x.shape[1]
        history = np.zeros((W - 1, D))
        if row.history_from is not None:
            slot, first = row.history_from
            history = to_numpy(request.conv_state[slot, :, first : first + W - 1]).T
        return np.concatenate([history, to_numpy(x[row.tokens])])
