"""Inputs of the recurrence: the gates of real models, and the hard cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from gdn_dispatch.testing.numbers import generator
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule

Gates = Callable[[int, int, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Dims:
    """Sizes of the recurrence."""

    H: int
    HV: int
    K: int
    V: int


@dataclass(frozen=True)
class RuleInputs:
    """The five inputs, ``[T, ...]`` or ``[B, T, ...]``; keys are normalised."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> RuleInputs:
        """The same with ``change`` done to all five."""
        return RuleInputs(*(change(x) for x in self))

    def to(self, dtype: torch.dtype) -> RuleInputs:
        """q, k and v in ``dtype``; gates stay fp32."""
        return replace(self, q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))

    def packed(self) -> RuleInputs:
        """``[1, T, ...]``, as a packed call takes them."""
        return self.map(lambda x: x.unsqueeze(0))

    def rows(self, start: int, end: int) -> RuleInputs:
        """Tokens ``start`` to ``end``."""
        return self.map(lambda x: x[start:end])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (getattr(self, field.name) for field in fields(self))


def mamba_gates(T: int, HV: int, rng: torch.Generator) -> torch.Tensor:
    """A ~ U(1, 16); softplus(dt_bias) log-uniform in 1e-3 .. 1e-1."""
    A = torch.rand(HV, generator=rng) * 15 + 1
    dt = torch.exp(torch.rand(HV, generator=rng) * math.log(100) + math.log(1e-3))
    dt_bias = dt + torch.log(-torch.expm1(-dt))
    a = torch.randn(T, HV, generator=rng) * 0.5
    return -A * F.softplus(a + dt_bias)


def hf_gates(T: int, HV: int, rng: torch.Generator) -> torch.Tensor:
    """dt_bias = 1, A ~ U(0, 16), as transformers initialises the layer."""
    A = torch.rand(HV, generator=rng) * 16
    return -A * F.softplus(torch.randn(T, HV, generator=rng) + 1.0)


def strong_gates(T: int, HV: int, rng: torch.Generator) -> torch.Tensor:
    """Decay by e^-5 and more a token: nothing is remembered for long."""
    return -5 - 45 * torch.rand(T, HV, generator=rng)


def weak_gates(T: int, HV: int, rng: torch.Generator) -> torch.Tensor:
    """Hardly any decay: errors add up over thousands of tokens."""
    return -1e-3 * torch.rand(T, HV, generator=rng)


def no_gates(T: int, HV: int, rng: torch.Generator) -> torch.Tensor:
    """No decay."""
    return torch.zeros(T, HV)


def mild_gates(T: int, HV: int, rng: torch.Generator) -> torch.Tensor:
    """Decay by up to e^-1 a token."""
    return -torch.rand(T, HV, generator=rng)


def resetting_gates(value: float) -> Gates:
    """Ordinary gates, one in fifty of them ``value``: a reset."""

    def gates(T: int, HV: int, rng: torch.Generator) -> torch.Tensor:
        g = mamba_gates(T, HV, rng)
        resets = torch.rand(T, HV, generator=rng) < 0.02
        return g.masked_fill(resets, value)

    return gates


GATES: dict[str, Gates] = {
    "mamba dt init": mamba_gates,
    "HF init": hf_gates,
    "strong decay": strong_gates,
    "weak decay": weak_gates,
    "g = 0": no_gates,
    "near-identical keys": weak_gates,
    "2 % resets g=-1e4": resetting_gates(-1e4),
    "2 % resets g=-inf": resetting_gates(-math.inf),
}

NEAR_IDENTICAL = "near-identical keys"


def random_inputs(T: int, dims: Dims, *, case: str = "mamba dt init", seed: int = 0) -> RuleInputs:
    """fp32 inputs of one sequence of T tokens, of one of the cases of ``GATES``."""
    return inputs_with(GATES[case], T, dims, seed=seed, correlated=case == NEAR_IDENTICAL)


def inputs_with(
    gates: Gates, T: int, dims: Dims, *, seed: int = 0, correlated: bool = False
) -> RuleInputs:
    """Inputs of one sequence with these gates; ``correlated``: nearly the same key every time."""
    rng = generator(seed)
    q = torch.randn(T, dims.H, dims.K, generator=rng)
    k = torch.randn(T, dims.H, dims.K, generator=rng)
    beta = torch.rand(T, dims.HV, generator=rng)
    if correlated:
        k = torch.randn(dims.H, dims.K, generator=rng) + 0.05 * k
        beta = torch.full_like(beta, 0.98)
    v = torch.randn(T, dims.HV, dims.V, generator=rng)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return RuleInputs(q, k, v, gates(T, dims.HV, rng), beta)


def random_states(N: int, dims: Dims, *, seed: int = 0) -> torch.Tensor:
    """``[N, HV, K, V]`` fp32."""
    return torch.randn(N, dims.HV, dims.K, dims.V, generator=generator(1000 + seed))


def starts_of(lengths: tuple[int, ...]) -> list[int]:
    """``cu_seqlens`` of these lengths."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


def cu_seqlens(lengths: tuple[int, ...]) -> torch.Tensor:
    """``starts_of`` as an int32 tensor."""
    return torch.tensor(starts_of(lengths), dtype=torch.int32)


def sequences(inputs: RuleInputs, lengths: tuple[int, ...]) -> list[RuleInputs]:
    """The sequences packed in ``inputs``, of ``[T, ...]``."""
    starts = starts_of(lengths)
    return [inputs.rows(a, b) for a, b in pairwise(starts)]


def oracle(
    inputs: RuleInputs,
    lengths: tuple[int, ...],
    states: torch.Tensor | None = None,
    **options: Any,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(output, final state) in fp64 of every sequence packed in ``inputs``."""
    return [
        reference_gated_delta_rule(
            *sequence, initial_state=None if states is None else states[n], **options
        )
        for n, sequence in enumerate(sequences(inputs, lengths))
    ]
