"""Pieces the adapters convert with: gates, norms, packed batches without empty sequences.

Each adapter says in its own docstring which of them it uses, and so what it copies. All of it is
tensor arithmetic on the device and arithmetic on the host's copy of the lengths; nothing here reads
a device tensor on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch.torch_backend.kernels.gates import decay_from_gate, write_strength
from gdn_dispatch.types import GDNOutput

if TYPE_CHECKING:
    from gdn_dispatch.types import RuleRequest

__all__ = ["SMALLEST_DECAY", "Batch", "decay", "initial_states", "normalised", "result", "strength"]

SMALLEST_DECAY: Final = -60.0
"""Natural log of the smallest decay handed to an operator that may subtract sums of logarithms.

-inf less -inf is NaN there, and the sum of a few -1e4 has lost what comes after it. e^-60 = 9e-27
of a state is nothing in bf16.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The sequences of a request that have tokens, packed.

    Attributes:
        num_seqs: N, all sequences.
        num_tokens: Rows of ``[B * T]`` that belong to one.
        lengths: Host lengths of the m with tokens, in order.
        seq_lens: ``[m]`` int32, the same on the device.
        nonempty: ``[m]`` int32 on the device: which of the N they are; None: all.
    """

    num_seqs: int
    num_tokens: int
    lengths: tuple[int, ...]
    seq_lens: torch.Tensor
    nonempty: torch.Tensor | None

    @classmethod
    def of(cls, request: RuleRequest) -> Batch:
        """Of a validated request."""
        B, T = request.q.shape[:2]
        meta = request.meta
        if meta is None:
            full = torch.full((B,), T, dtype=torch.int32, device=request.q.device)
            return cls(B, B * T, (T,) * B if T else (), full, None)
        lengths = tuple(n for n in meta.plan.seq_lens.tolist() if n)
        m = len(lengths)
        kept = meta.cu_seqlens_nonempty[: m + 1]
        nonempty = None if m == meta.plan.num_seqs else meta.nonempty[:m]
        return cls(meta.plan.num_seqs, sum(lengths), lengths, kept[1:] - kept[:-1], nonempty)

    def sequence_of_token(self) -> torch.Tensor:
        """``[num_tokens]`` int32: which of the m sequences a token is of."""
        m = len(self.lengths)
        numbers = torch.arange(m, dtype=torch.int32, device=self.seq_lens.device)
        return numbers.repeat_interleave(self.seq_lens, output_size=self.num_tokens)


def decay(request: RuleRequest) -> torch.Tensor:
    """``[B*T, HV]`` fp32 natural-log decay, from the raw gate where the request has one."""
    if request.A_log is None:
        return request.g.float().flatten(0, 1)
    return decay_from_gate(request.g, request.A_log, request.dt_bias).flatten(0, 1)


def strength(request: RuleRequest) -> torch.Tensor:
    """``[B*T, HV]`` fp32 write strength, from its logit where the request has one."""
    return write_strength(
        request.beta,
        is_logit=request.use_beta_sigmoid_in_kernel,
        allow_neg_eigval=request.allow_neg_eigval,
    ).flatten(0, 1)


def normalised(x: torch.Tensor, wanted: bool) -> torch.Tensor:
    """``[B*T, H, K]`` x / sqrt(sum x^2 + 1e-6) over the last dimension, in fp32, in x's dtype."""
    x = x.flatten(0, 1)
    if not wanted:
        return x
    y = x.float()
    return (y * (y.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def initial_states(request: RuleRequest, batch: Batch) -> torch.Tensor:
    """New ``[m, HV, V, K]`` states of the sequences with tokens, bf16, contiguous; zeros if none.

    Always new: operators write into what they are given.
    """
    state = request.initial_state
    HV, V = request.v.shape[2:]
    if state is None:
        shape = (len(batch.lengths), HV, V, request.k.shape[3])
        return request.v.new_zeros(shape, dtype=torch.bfloat16)
    if not request.state_v_first:
        state = state.transpose(2, 3)
    if batch.nonempty is not None:
        return state.index_select(0, batch.nonempty).contiguous()
    return state.clone(memory_format=torch.contiguous_format)


def result(
    request: RuleRequest, batch: Batch, output: torch.Tensor | None, final: torch.Tensor | None
) -> GDNOutput:
    """What the contract wants, of what an operator returned.

    Args:
        request: The request.
        batch: Its sequences.
        output: ``[num_tokens, HV, V]``, or None: no sequence has tokens.
        final: ``[m, HV, V, K]`` states of the sequences with tokens, or None, likewise.
    """
    v = request.v
    rows = v.shape[0] * v.shape[1]
    if output is None:
        output = v.new_zeros(0, *v.shape[2:])
    if output.shape[0] < rows:
        output = torch.cat([output, output.new_zeros(rows - output.shape[0], *v.shape[2:])])
    output = output.to(v.dtype).view(v.shape)
    if not request.output_final_state:
        return GDNOutput(output, None)
    if final is not None and not request.state_v_first:
        final = final.transpose(2, 3)
    if final is None or batch.nonempty is not None:
        kept = _kept_states(request, batch)
        if final is not None and batch.nonempty is not None:
            kept.index_copy_(0, batch.nonempty.long(), final.float())
        return GDNOutput(output, kept)
    return GDNOutput(output, final.to(torch.float32, memory_format=torch.contiguous_format))


def _kept_states(request: RuleRequest, batch: Batch) -> torch.Tensor:
    """New fp32 states as they were before the call: those of empty sequences stay so."""
    state = request.initial_state
    if state is not None:
        return state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    HV, V = request.v.shape[2:]
    K = request.k.shape[3]
    shape = (HV, V, K) if request.state_v_first else (HV, K, V)
    return request.v.new_zeros(batch.num_seqs, *shape, dtype=torch.float32)
