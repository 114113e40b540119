"""A layer and the recurrence alone, on the kernels of this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gdn_dispatch.layer import run_layer
from gdn_dispatch.triton_kernels.capture import is_capturing
from gdn_dispatch.triton_kernels.dense import dense_rows
from gdn_dispatch.triton_kernels.rows import Rows, Slots
from gdn_dispatch.triton_kernels.rule_tensors import (
    PrefillInputs,
    States,
    final_state,
    flat_tokens,
)
from gdn_dispatch.types import GDNOutput
from gdn_dispatch_ascend.kernels.conv import conv_prefill, conv_update
from gdn_dispatch_ascend.kernels.prefill import chunk_rule
from gdn_dispatch_ascend.kernels.steps import recurrent_rule
from gdn_dispatch_ascend.kernels.tiling import DEFAULT, cores_of

if TYPE_CHECKING:
    from gdn_dispatch.meta import SequenceGroup
    from gdn_dispatch.types import GDNRequest, RuleRequest
    from gdn_dispatch_ascend.kernels.tiling import Cores, Tiling

__all__ = ["gated_delta_rule", "gdn_attention"]


def gdn_attention(
    request: GDNRequest, cores: Cores | None = None, tiling: Tiling = DEFAULT
) -> GDNOutput:
    """Run a validated request: four launches for a prefill group, two for any other.

    Nothing is gathered, cast, masked or scattered around them, and nothing of the device is read on
    the host.

    Args:
        request: See ``gdn_dispatch.hookspecs``.
        cores: Of the device; None: what the driver says.
        tiling: How much a program holds at a time.
    """
    cores = cores_of(request.out.device) if cores is None else cores
    if is_capturing(request.out.device):
        # A replayed graph may have fewer tokens than the captured step; whose they are is known on
        # the device alone.
        request.out.zero_()
    with torch.no_grad():
        return run_layer(request, _Kernels(Slots.of(request.meta), cores, tiling))


@dataclass(frozen=True, slots=True)
class _Kernels:
    """``LayerKernels``; the heads are views, and the gates are taken raw by the rules."""

    slots: Slots
    cores: Cores
    tiling: Tiling

    def conv_prefill(
        self, x: torch.Tensor, conv: torch.Tensor, group: SequenceGroup, request: GDNRequest
    ) -> None:
        conv_prefill(
            x, conv, Rows.of(request.meta, group), self.slots, request.conv_state,
            request.conv_weight, request.conv_bias, request.activation, self.cores, self.tiling,
        )  # fmt: skip

    def conv_update(
        self, x: torch.Tensor, conv: torch.Tensor, group: SequenceGroup, request: GDNRequest
    ) -> None:
        conv_update(
            x, conv, Rows.of(request.meta, group), self.slots, request.conv_state,
            request.conv_weight, request.conv_bias, request.activation, self.cores, self.tiling,
            speculative=group is request.meta.speculative,
        )  # fmt: skip

    def heads_and_gates(
        self, conv: torch.Tensor, a: torch.Tensor, b: torch.Tensor, request: GDNRequest
    ) -> PrefillInputs:
        T, H, K = conv.shape[0], request.num_heads, request.head_dim_k
        q, k, v = conv.split((H * K, H * K, conv.shape[1] - 2 * H * K), dim=1)
        return PrefillInputs(
            q=q.view(T, H, K),
            k=k.view(T, H, K),
            v=v.view(T, request.num_v_heads, request.head_dim_v),
            g=a,
            beta=b,
            A_log=request.A_log,
            dt_bias=request.dt_bias,
            scale=request.scale,
            l2norm=True,
            beta_is_logit=True,
            allow_neg_eigval=request.allow_neg_eigval,
        )

    def chunk_rule(self, heads: PrefillInputs, group: SequenceGroup, request: GDNRequest) -> None:
        rows = Rows.of(request.meta, group)
        chunk_rule(heads, rows, self._states(request), request.out, self.cores, self.tiling)

    def recurrent_rule(
        self, heads: PrefillInputs, group: SequenceGroup, request: GDNRequest
    ) -> None:
        recurrent_rule(
            heads, Rows.of(request.meta, group), self._states(request), request.out, self.cores,
            self.tiling, speculative=group is request.meta.speculative,
        )  # fmt: skip

    def _states(self, request: GDNRequest) -> States:
        pool = request.ssm_state
        return States(pool, pool, request.state_v_first, self.slots)


def gated_delta_rule(
    request: RuleRequest, cores: Cores | None = None, tiling: Tiling = DEFAULT
) -> GDNOutput:
    """Run a validated request; metadata, where there is some, has chunks of ``CHUNK_SIZE``.

    Tokens are addressed by one stride. q, k and v whose last stride is not 1, or whose batch rows
    do not follow each other at the stride of tokens times T, are copied first.

    Args:
        request: See ``gdn_dispatch.hookspecs``.
        cores: Of the device; None: what the driver says.
        tiling: How much a program holds at a time.
    """
    B, T = request.q.shape[:2]
    HV, V = request.v.shape[2:]
    meta, device = request.meta, request.v.device
    cores = cores_of(device) if cores is None else cores
    with torch.no_grad():
        q, k, v = (flat_tokens(x) for x in (request.q, request.k, request.v))
        g, beta = (x.flatten(0, 1) for x in (request.g, request.beta))
        out = torch.empty(B, T, HV, V, dtype=request.v.dtype, device=device)
        if meta is None:
            rows, lived = dense_rows(B, T, device, chunked=not request.recurrent), B * T
        elif meta.prefill is None:  # no sequences
            rows, lived = dense_rows(0, 0, device, chunked=not request.recurrent), 0
        else:
            rows, lived = Rows.of(meta, meta.prefill), meta.plan.num_tokens
        flat = out.flatten(0, 1)
        if lived < B * T:
            flat[lived:].zero_()
        inputs = PrefillInputs(
            q, k, v, g, beta,
            A_log=request.A_log,
            dt_bias=request.dt_bias,
            scale=request.scale,
            l2norm=request.use_qk_l2norm_in_kernel,
            beta_is_logit=request.use_beta_sigmoid_in_kernel,
            allow_neg_eigval=request.allow_neg_eigval,
        )  # fmt: skip
        final = final_state(request, rows.num_seqs)
        states = States(request.initial_state, final, request.state_v_first)
        rule = recurrent_rule if request.recurrent else chunk_rule
        rule(inputs, rows, states, flat, cores, tiling)
    return GDNOutput(out, final)
