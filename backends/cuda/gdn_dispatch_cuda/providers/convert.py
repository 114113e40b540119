"""Pieces the adapters convert with: gates, layouts, and packed batches without empty sequences.

Each adapter says in its own docstring which of them it uses, and so what it copies. All of it is
arithmetic on the device and on the host's copy of the lengths; nothing here reads a device tensor
on the host. Heads and gates go through kernels of this package on a GPU; through torch where
gradients are wanted, and on a CPU, where the tests' stand-ins for the libraries run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakKeyDictionary

import torch

from gdn_dispatch.torch_backend.kernels.gates import decay_from_gate, write_strength
from gdn_dispatch.types import GDNOutput
from gdn_dispatch_cuda.providers.library import wants_gradients

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.plan.batch import BatchPlan
    from gdn_dispatch.types import RuleRequest

__all__ = [
    "Batch",
    "Derived",
    "aligned",
    "gates",
    "initial_states",
    "operands",
    "result",
    "without_tokens",
]

SMALLEST_DECAY: Final = -60.0
"""Natural log of the smallest decay handed to a library that subtracts sums of logarithms.

-inf less -inf is NaN there, and the sum of a few -1e4 has lost what comes after it. e^-60 = 9e-27
of a state is nothing in fp32, and 64 of them still add up to better than bf16 resolves.
"""

_ALIGNMENT = 16
"""Bytes FlashInfer assumes of what it is given; its own workspaces need more."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The sequences of a request that have tokens.

    Attributes:
        num_seqs: N, all sequences.
        num_tokens: Rows of ``[B * T]`` that belong to one.
        lengths: Host lengths of those with tokens, in order.
        nonempty: ``[m]`` int32 on the device: which of the N they are; None: all.
        meta: The request's metadata; None for a dense batch.
    """

    num_seqs: int
    num_tokens: int
    lengths: tuple[int, ...]
    nonempty: torch.Tensor | None
    meta: ChunkMeta | None

    @classmethod
    def of(cls, request: RuleRequest) -> Batch:
        """Of a validated request."""
        B, T = request.q.shape[:2]
        meta = request.meta
        if meta is None:
            return cls(B, B * T, (T,) * B if T else (), None, None)
        plan = meta.plan
        lengths = tuple(n for n in plan.seq_lens.tolist() if n)
        nonempty = None if len(lengths) == plan.num_seqs else meta.nonempty
        return cls(plan.num_seqs, plan.num_tokens, lengths, nonempty, meta)

    @property
    def starts(self) -> tuple[int, ...]:
        """Host cu_seqlens of ``lengths``."""
        found = [0]
        for length in self.lengths:
            found.append(found[-1] + length)
        return tuple(found)


ValueT = TypeVar("ValueT")


class Derived:
    """What a library wants made from a step's metadata: made once, kept as long as the metadata.

    Held by the metadata object the caller holds, never by a tensor's identity, and made anew when
    the metadata was updated in place.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[ChunkMeta, tuple[BatchPlan, dict[Hashable, object]]]
        self._kept = WeakKeyDictionary()

    def get(self, meta: ChunkMeta, key: Hashable, make: Callable[[], ValueT]) -> ValueT:
        """What ``make`` returned for this step and ``key``."""
        plan, values = self._kept.get(meta, (None, {}))
        if plan is not meta.plan:
            values = {}
            self._kept[meta] = (meta.plan, values)
        if key not in values:
            values[key] = make()
        return values[key]  # type: ignore[return-value]


def operands(
    request: RuleRequest, *, linear: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, decay and write strength as a library takes them that does nothing to them itself.

    q and k are divided by ``sqrt(sum x^2 + 1e-6)`` over K where the request asks for that, in fp32,
    and cast back to their dtype. All in one launch on a GPU.

    Args:
        request: The request.
        linear: See ``gates``.
    """
    q, k = request.q, request.k
    if not request.use_qk_l2norm_in_kernel:
        return q, k, *gates(request, linear=linear)
    if q.is_cuda and not wants_gradients(request):
        return _launched(request, linear, heads=True)
    return _unit(q), _unit(k), *gates(request, linear=linear)


def gates(request: RuleRequest, *, linear: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, T, HV]`` fp32 decay and write strength, from raw gates where the request has them.

    One launch on a GPU, which leaves alone a beta that is contiguous fp32 write strength already.

    Args:
        request: The request.
        linear: The decay as ``exp(g)``; else in natural logarithms, at least ``SMALLEST_DECAY``.
    """
    if request.g.is_cuda and not wants_gradients(request):
        return _launched(request, linear, heads=False)[2:]
    g = request.g.float()
    if request.A_log is not None:
        g = decay_from_gate(request.g, request.A_log, request.dt_bias)
    beta = write_strength(
        request.beta,
        is_logit=request.use_beta_sigmoid_in_kernel,
        allow_neg_eigval=request.allow_neg_eigval,
    )
    return g.exp() if linear else g.clamp(min=SMALLEST_DECAY), beta


def _launched(
    request: RuleRequest, linear: bool, *, heads: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from gdn_dispatch_cuda.kernels.operands import Gates, converted  # which imports Triton

    unit, decay, strength = converted(
        (request.q, request.k) if heads else None,
        Gates(
            request.g,
            request.beta,
            A_log=request.A_log,
            dt_bias=request.dt_bias,
            linear=linear,
            smallest=SMALLEST_DECAY,
            beta_is_logit=request.use_beta_sigmoid_in_kernel,
            allow_neg_eigval=request.allow_neg_eigval,
        ),
    )
    q, k = (request.q, request.k) if unit is None else unit
    return q, k, decay, strength


def _unit(x: torch.Tensor) -> torch.Tensor:
    y = x.float()
    return (y * (y.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def aligned(x: torch.Tensor) -> torch.Tensor:
    """``x`` where it is contiguous and begins on 16 bytes, else a copy that does."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % _ALIGNMENT else x


def initial_states(request: RuleRequest, batch: Batch, *, v_first: bool) -> torch.Tensor | None:
    """Contiguous fp32 states of the sequences with tokens, in the layout asked for; or None.

    No copy where the request's states are that already.
    """
    state = request.initial_state
    if state is None:
        return None
    if batch.nonempty is not None:
        state = state.index_select(0, batch.nonempty)
    if request.state_v_first != v_first:
        state = state.transpose(2, 3)
    return aligned(_fp32(state))


def _fp32(state: torch.Tensor) -> torch.Tensor:
    """Contiguous and fp32, by one copy at most."""
    if state.dtype == torch.float32:
        return state.contiguous()
    return state.to(torch.float32, memory_format=torch.contiguous_format)


def without_tokens(request: RuleRequest, batch: Batch) -> GDNOutput | None:
    """The result of a request in which no sequence has a token; None if one has."""
    if batch.lengths:
        return None
    final = _kept_states(request, batch) if request.output_final_state else None
    return GDNOutput(torch.zeros_like(request.v, memory_format=torch.contiguous_format), final)


def result(
    request: RuleRequest,
    batch: Batch,
    output: torch.Tensor,
    final: torch.Tensor | None,
    *,
    v_first: bool,
) -> GDNOutput:
    """What the contract wants, of what a library returned.

    Args:
        request: The request.
        batch: Its sequences.
        output: ``[num_tokens, HV, V]``, or ``[B, T, HV, V]`` in full.
        final: fp32 states of the sequences with tokens, or None.
        v_first: Their layout.
    """
    v = request.v
    rows = v.shape[0] * v.shape[1]
    output = output.reshape(-1, *v.shape[2:])
    if output.shape[0] < rows:
        output = torch.cat([output, output.new_zeros(rows - output.shape[0], *v.shape[2:])])
    output = output.to(v.dtype).view(v.shape)
    if not request.output_final_state or final is None:
        return GDNOutput(output, None)
    if request.state_v_first != v_first:
        final = final.transpose(2, 3)
    final = _fp32(final)
    if batch.nonempty is not None:
        final = _kept_states(request, batch).index_copy(0, batch.nonempty.long(), final)
    return GDNOutput(output, final)


def _kept_states(request: RuleRequest, batch: Batch) -> torch.Tensor:
    """New fp32 states as they were before the call: those of empty sequences stay so."""
    state = request.initial_state
    if state is not None:
        return state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    HV, V = request.v.shape[2:]
    K = request.k.shape[3]
    shape = (HV, V, K) if request.state_v_first else (HV, K, V)
    return request.v.new_zeros(batch.num_seqs, *shape, dtype=torch.float32)
