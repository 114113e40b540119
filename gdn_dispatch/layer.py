"""The order of a layer: projections → conv → heads and gates → prefill | decode | speculative.

A backend that brings the five kernels of ``LayerKernels`` gets ``gdn_attention`` from
``run_layer``; one with a whole-layer op implements the hook itself and needs nothing of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from gdn_dispatch.types import GDNOutput

if TYPE_CHECKING:
    from gdn_dispatch.meta import SequenceGroup
    from gdn_dispatch.types import GDNRequest

__all__ = ["LayerKernels", "run_layer", "split_projections"]

HeadsT = TypeVar("HeadsT")


class LayerKernels(Protocol[HeadsT]):
    """The five kernels. All take the step's metadata from ``request.meta``.

    Every kernel works on the rows of one group (``request.meta.prefill``, ``.decode`` or
    ``.speculative``) and honours slots, padding and ``has_initial_state`` itself, so that nothing
    needs to be gathered, masked or scattered around it.

    Slots, with A = ``num_accepted_tokens`` of a speculative row and ``len`` its draft tokens:

        row          state: reads   state: writes                conv line: reads   writes
        ordinary     slot           slot, after the last token   columns 0 .. W-2   the same
        speculative  column A-1     column t, after token t      column 0's slot,   column 0's slot,
                     of its slots                                columns A-1 ..     columns 0 ..
                                                                 A+W-3              W-3+len

    A padding slot in column 0 makes the row padding; in a later column it means: drop that state.

    Sizes of zero reach a kernel: no tokens, no rows, rows without tokens. An eager backend takes
    lengths and checkpoints from the host's side (``group.host``, ``meta.plan``), a captured one
    from the tensors, whose tails are padded after ``ChunkMeta.update_``.
    """

    def conv_prefill(
        self, x: torch.Tensor, conv: torch.Tensor, group: SequenceGroup, request: GDNRequest
    ) -> None:
        """Convolve the group's rows of ``x`` [T, D] into ``conv``; update conv_state."""

    def conv_update(
        self, x: torch.Tensor, conv: torch.Tensor, group: SequenceGroup, request: GDNRequest
    ) -> None:
        """The same for decode and speculative rows, whose history moves by a few columns."""

    def heads_and_gates(
        self, conv: torch.Tensor, a: torch.Tensor, b: torch.Tensor, request: GDNRequest
    ) -> HeadsT:
        """Split ``conv`` into heads and compute decay and beta, for all rows of the step.

        Rows of padding and past the last sequence hold anything, NaN included; nobody reads what
        becomes of them.
        """

    def chunk_rule(self, heads: HeadsT, group: SequenceGroup, request: GDNRequest) -> None:
        """Run the group's sequences in chunks; write ``request.out`` and ``ssm_state``.

        Rows of padded sequences are written with zeros.
        """

    def recurrent_rule(self, heads: HeadsT, group: SequenceGroup, request: GDNRequest) -> None:
        """The same, token by token, for decode and speculative rows."""


def run_layer(request: GDNRequest, kernels: LayerKernels[HeadsT]) -> GDNOutput:
    """Run a whole layer core with a backend's kernels."""
    meta, out = request.meta, request.out
    if request.projected_states_qkvz is None:
        mixed_qkv, a, b = request.mixed_qkv, request.a, request.b
    else:
        mixed_qkv, a, b = split_projections(request)
    if mixed_qkv is None or a is None or b is None:  # the core has refused this
        raise TypeError("a GDNRequest holds mixed_qkv, a and b, or the projections")

    conv = torch.empty(mixed_qkv.shape, dtype=mixed_qkv.dtype, device=mixed_qkv.device)
    if meta.prefill is not None:
        kernels.conv_prefill(mixed_qkv, conv, meta.prefill, request)
    steps = [group for group in (meta.decode, meta.speculative) if group is not None]
    for group in steps:
        kernels.conv_update(mixed_qkv, conv, group, request)

    heads = kernels.heads_and_gates(conv, a, b, request)
    if meta.prefill is not None:
        kernels.chunk_rule(heads, meta.prefill, request)
    for group in steps:
        kernels.recurrent_rule(heads, group, request)
    out[meta.plan.num_tokens :].zero_()
    return GDNOutput(out)


def split_projections(request: GDNRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(mixed_qkv, a, b)`` out of an engine's fused projections; ``z`` is written.

    Per token, with r = HV/H (layouts as vllm-xpu-kernels states them):

        flat          [q H*K | k H*K | v HV*V | z HV*V]            and [b HV | a HV]
        interleaved   H times [q K | k K | v r*V | z r*V]          and H times [b r | a r]
    """
    qkvz, ba, z = request.projected_states_qkvz, request.projected_states_ba, request.z
    if qkvz is None or ba is None or z is None:  # the core has refused this
        raise TypeError("projected_states_qkvz, projected_states_ba and z come together")
    H, K, HV, V = request.num_heads, request.head_dim_k, request.num_v_heads, request.head_dim_v
    T = qkvz.shape[0]
    if not request.gqa_interleaved_layout:
        conv_dim = 2 * H * K + HV * V
        z.copy_(qkvz[:, conv_dim:].view(T, HV, V))
        return qkvz[:, :conv_dim], ba[:, HV:], ba[:, :HV]
    r = HV // H
    q, k, v, gate = qkvz.unflatten(1, (H, -1)).split((K, K, r * V, r * V), dim=2)
    z.copy_(gate.unflatten(2, (r, V)).flatten(1, 2))
    b, a = ba.unflatten(1, (H, -1)).split((r, r), dim=2)
    mixed_qkv = torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=1)
    return mixed_qkv, a.flatten(1), b.flatten(1)
