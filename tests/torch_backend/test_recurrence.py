"""Both forms of the rule against the fp64 oracle: accuracy over gates and lengths."""

from functools import cache

import pytest
import torch

from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.rule_inputs import (
    GATES,
    NEAR_IDENTICAL,
    Dims,
    oracle,
    random_inputs,
    random_states,
    starts_of,
)
from tests.support.rule_calls import forms, run_packed

FP32 = 1e-6
LENGTHS = (0, 1, 31, 32, 33, 0, 63, 64, 65, 1000, 0)
SMALL = Dims(H=2, HV=4, K=16, V=24)
MODEL = Dims(H=4, HV=8, K=128, V=128)


cases = pytest.mark.parametrize("case", GATES)
starts = pytest.mark.parametrize("from_state", [False, True], ids=["from zero", "from a state"])


def worst_errors(output, states, lengths, expected):
    """The largest error of any sequence's output and of any state."""
    starts = starts_of(lengths)
    errors = [0.0], [0.0]
    for n, (exact, exact_state) in enumerate(expected):
        errors[0].append(relative_error(output[0, starts[n] : starts[n + 1]], exact))
        errors[1].append(relative_error(states[n], exact_state))
    return max(errors[0]), max(errors[1])


@cache
def lengths_of(case, dims, from_state, dtype=torch.float64):
    """Inputs, states and what the oracle says, shared by both forms."""
    inputs = random_inputs(sum(LENGTHS), dims, case=case)
    states = random_states(len(LENGTHS), dims) if from_state else None
    return inputs, states, oracle(inputs, LENGTHS, states, dtype=dtype)


class TestAccuracy:
    @forms
    @cases
    @starts
    def test_every_length(self, form, case, from_state):
        inputs, states, exact = lengths_of(case, SMALL, from_state)
        output, final = run_packed(form, inputs, LENGTHS, initial_state=states)
        errors = worst_errors(output, final, LENGTHS, exact)
        assert max(errors) <= max(FP32, allowance(case, SMALL, from_state))

    @forms
    @cases
    def test_real_head_dims(self, form, case):
        lengths = (400,)
        inputs = random_inputs(400, MODEL, case=case)
        output, final = run_packed(form, inputs, lengths)
        errors = worst_errors(output, final, lengths, oracle(inputs, lengths))
        if case == NEAR_IDENTICAL:
            sequential = oracle(inputs, lengths, dtype=torch.float32)
            limits = worst_errors(
                sequential[0][0].unsqueeze(0), [sequential[0][1]], lengths, oracle(inputs, lengths)
            )
            assert errors[0] <= 1.5 * limits[0]
            assert errors[1] <= 1.5 * limits[1]
        else:
            assert max(errors) <= FP32

    @forms
    @pytest.mark.parametrize("case", ["mamba dt init", "weak decay", "2 % resets g=-1e4"])
    def test_error_does_not_grow_with_length(self, form, case):
        dims, lengths = Dims(H=1, HV=2, K=16, V=16), (16384,)
        inputs, exact = long_sequence(case, dims)
        errors = worst_errors(*run_packed(form, inputs, lengths), lengths, exact)
        assert max(errors) <= FP32


def allowance(case, dims, from_state):
    """For near-identical keys, 1.5 times the worst error of the sequential recurrence in fp32."""
    if case != NEAR_IDENTICAL:
        return 0.0
    _, _, exact = lengths_of(case, dims, from_state)
    _, _, sequential = lengths_of(case, dims, from_state, torch.float32)
    errors = [
        relative_error(got, expected)
        for one, other in zip(sequential, exact, strict=True)
        for got, expected in zip(one, other, strict=True)
    ]
    return 1.5 * max(errors)


@cache
def long_sequence(case, dims):
    inputs = random_inputs(16384, dims, case=case)
    return inputs, oracle(inputs, (16384,))
