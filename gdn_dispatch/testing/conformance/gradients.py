"""Gradients of the recurrence-only calls, against those of the fp64 recurrence."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.base import Conformance, forms, needs
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.testing.rule_inputs import random_inputs, random_states, starts_of
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule

LENGTHS = (3, 0, 70, 64)
NAMES = ("q", "k", "v", "g", "beta", "initial_state")
FACTOR = 20.0
"""Gradients pass through the recurrence twice; rounding adds up along the way."""


def leaves(subject, case, dtype):
    """Every differentiable input by name, requiring grad."""
    dims = subject.dims(K=8, V=6)
    inputs = random_inputs(sum(LENGTHS), dims, case=case).to(subject.dtype)
    states = random_states(len(LENGTHS), dims).to(subject.state_dtype)
    found = dict(zip(NAMES, (*inputs, states), strict=True))
    if dtype is not None:
        found = {name: x.to(dtype) for name, x in found.items()}
    return {name: x.detach().clone().requires_grad_() for name, x in found.items()}


def gradients(results, tensors):
    rng = generator(7)
    loss = sum((x.double() * torch.randn(x.shape, generator=rng).double()).sum() for x in results)
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def exact_gradients(subject, case):
    tensors = leaves(subject, case, torch.float64)
    rows = [tensors[name] for name in NAMES[:5]]
    results = [
        reference_gated_delta_rule(*(x[a:b] for x in rows), initial_state=state)
        for (a, b), state in zip(
            pairwise(starts_of(LENGTHS)), tensors["initial_state"], strict=True
        )
    ]
    outputs, states = zip(*results, strict=True)
    return gradients((torch.cat(outputs), torch.stack(states)), tensors)


class GradientTests(Conformance):
    """Training."""

    @forms
    @pytest.mark.parametrize("case", ["mamba dt init", "g = 0", "weak decay", "2 % resets g=-1e4"])
    @needs(Feature.VARLEN, Feature.AUTOGRAD)
    def test_gradients_equal_those_of_the_oracle(self, subject, form, case):
        tensors = leaves(subject, case, None)
        q, k, v, g, beta = (tensors[name].unsqueeze(0).to(subject.device) for name in NAMES[:5])
        output, final = subject.call(
            form, q=q, k=k, v=v, g=g, beta=beta, output_final_state=True,
            initial_state=tensors["initial_state"].to(subject.device),
            cu_seqlens_cpu=starts_of(LENGTHS),
        )  # fmt: skip
        got = gradients((output.cpu()[0], final.cpu()), tensors)
        for name, exact in exact_gradients(subject, case).items():
            assert got[name].isfinite().all(), name
            assert relative_error(got[name], exact) <= FACTOR * subject.tolerance(), name
