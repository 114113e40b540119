"""What the recurrence-only calls keep beyond the conformance kit."""

import pytest
import torch

from gdn_dispatch import fused_recurrent_gated_delta_rule
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.poison import with_poisoned_memory
from gdn_dispatch.testing.rule_inputs import (
    Dims,
    RuleInputs,
    cu_seqlens,
    inputs_with,
    mild_gates,
    oracle,
    random_states,
    starts_of,
)
from tests.support.rule_calls import chunk, forms, recurrent, run_packed

FP32 = 1e-6
LENGTHS = (3, 0, 40, 8, 70)
DIMS = Dims(H=2, HV=4, K=16, V=24)
STORED = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def packed_case(dims=DIMS, lengths=LENGTHS, *, seed=0):
    inputs = inputs_with(mild_gates, sum(lengths), dims, seed=seed)
    return inputs, random_states(len(lengths), dims, seed=seed)


def assert_equals_oracle(got, exact, lengths, *, limit=FP32, state_limit=None):
    output, states = got
    starts = starts_of(lengths)
    assert states.dtype is torch.float32
    assert not output[0, starts[-1] :].any()
    for n, (expected, state) in enumerate(exact):
        assert relative_error(output[0, starts[n] : starts[n + 1]], expected) <= limit
        assert relative_error(states[n], state) <= (state_limit or limit)


@forms
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("gates_too", [False, True], ids=["fp32 gates", "gates alike"])
def test_half_precision_inputs_are_only_rounded_at_the_end(form, dtype, gates_too):
    inputs, states = packed_case()
    inputs = inputs.map(lambda x: x.to(dtype)) if gates_too else inputs.to(dtype)
    states = states.to(dtype)
    got = run_packed(form, inputs, LENGTHS, initial_state=states)
    assert got[0].dtype is dtype
    exact = oracle(inputs, LENGTHS, states)
    assert_equals_oracle(got, exact, LENGTHS, limit=STORED[dtype], state_limit=FP32)


@forms
def test_fp64_inputs_are_computed_in_fp64(form):
    inputs, states = packed_case()
    inputs, states = inputs.map(torch.Tensor.double), states.double()
    output, final = run_packed(form, inputs, LENGTHS, initial_state=states)
    exact = oracle(inputs, LENGTHS, states)
    assert output.dtype is torch.float64
    assert relative_error(output[0], torch.cat([o for o, _ in exact])) < 1e-14
    assert relative_error(final, torch.stack([s for _, s in exact])) < 1e-6


def test_recurrent_form_without_gate_or_beta():
    inputs, _ = packed_case()
    plain = RuleInputs(
        inputs.q, inputs.k, inputs.v, torch.zeros_like(inputs.g), torch.ones_like(inputs.beta)
    )
    got = fused_recurrent_gated_delta_rule(
        *list(inputs.packed())[:3], cu_seqlens=cu_seqlens(LENGTHS), output_final_state=True
    )
    assert_equals_oracle(got, oracle(plain, LENGTHS), LENGTHS)


@forms
def test_expanded_inputs(form):
    one, states = packed_case(Dims(H=1, HV=1, K=16, V=24), lengths=(50,))
    wide = {"q": 2, "k": 2, "v": 4, "g": 4, "beta": 4}
    given = [
        getattr(one, name).unsqueeze(0).expand(3, 50, heads, *getattr(one, name).shape[2:])
        for name, heads in wide.items()
    ]
    given_state = states.expand(3, 4, 16, 24)
    output, final = form(*given, initial_state=given_state, output_final_state=True)
    ((expected, state),) = oracle(one, (50,), states)
    assert relative_error(output, expected.expand(3, 50, 4, 24)) <= FP32
    assert relative_error(final, state.expand(3, 4, 16, 24)) <= FP32


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_inference_mode_may_come_first_or_last(order):
    def both_forms():
        inputs, states = packed_case()
        results = []
        for inference in order:
            with torch.inference_mode(inference):
                results += [
                    x.clone()
                    for form in (chunk, recurrent)
                    for x in run_packed(form, inputs, LENGTHS, initial_state=states)
                ]
        return results

    with_poisoned = with_poisoned_memory(both_forms)
    assert all(map(same_bits, with_poisoned[:4], with_poisoned[4:]))
