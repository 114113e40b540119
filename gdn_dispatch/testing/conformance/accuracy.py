"""Both forms of the rule against the fp64 recurrence: gates, lengths, heads, dtypes, options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.base import Conformance, forms, needs
from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.rule_inputs import (
    GATES,
    NEAR_IDENTICAL,
    Dims,
    RuleInputs,
    inputs_with,
    mild_gates,
    oracle,
    random_inputs,
    random_states,
    starts_of,
)
from gdn_dispatch.testing.tolerances import NEAR_IDENTICAL_FACTOR

HEADS = [(1, 1), (3, 3), (2, 4), (1, 3), (2, 8), (1, 5), (2, 14), (1, 8)]
DIMS = [
    Dims(H=1, HV=2, K=K, V=V)
    for K, V in ((1, 1), (33, 17), (48, 20), (7, 40), (64, 64), (128, 128), (128, 64), (256, 256))
]
LENGTHS = (3, 0, 40, 8, 70)


def assert_close(got, exact, lengths, limit, state_limit=None):
    """Output and states within ``limit`` of the oracle's, sequence by sequence."""
    output, states = got
    starts = starts_of(lengths)
    assert states.dtype is torch.float32
    assert output.is_contiguous()
    assert not output[0, starts[-1] :].any(), "rows past the last sequence"
    for n, (expected, state) in enumerate(exact):
        error = relative_error(output[0, starts[n] : starts[n + 1]], expected)
        assert error <= limit, f"output of sequence {n}, {lengths[n]} tokens"
        error = relative_error(states[n], state)
        assert error <= (state_limit or limit), f"state of sequence {n}, {lengths[n]} tokens"


def packed_case(subject, dims=None, lengths=LENGTHS, *, seed=0):
    """Inputs in the subject's dtype, and states to start from."""
    dims = dims or subject.dims()
    inputs = inputs_with(mild_gates, sum(lengths), dims, seed=seed).to(subject.dtype)
    return inputs, random_states(len(lengths), dims, seed=seed).to(subject.state_dtype)


class AccuracyTests(Conformance):
    """The numbers of the recurrence."""

    @forms
    @pytest.mark.parametrize("case", GATES)
    @pytest.mark.parametrize("from_state", [False, True], ids=["from zero", "from a state"])
    @needs(Feature.VARLEN)
    def test_equals_the_oracle(self, subject, form, case, from_state):
        lengths, dims = subject.lengths, subject.dims()
        inputs = random_inputs(sum(lengths), dims, case=case).to(subject.dtype)
        states = None
        if from_state:
            states = random_states(len(lengths), dims).to(subject.state_dtype)
        got = subject.rule(form, inputs, lengths, initial_state=states)
        limit = subject.tolerance() * (NEAR_IDENTICAL_FACTOR if case == NEAR_IDENTICAL else 1)
        assert_close(got, oracle(inputs, lengths, states), lengths, limit)

    @forms
    @pytest.mark.parametrize("case", ["HF init", "2 % resets g=-1e4"])
    @needs(Feature.VARLEN)
    def test_real_head_dims(self, subject, form, case):
        dims = subject.dims(H=2, HV=4, K=128, V=128)
        inputs = random_inputs(300, dims, case=case).to(subject.dtype)
        got = subject.rule(form, inputs, (300,))
        assert_close(got, oracle(inputs, (300,)), (300,), subject.tolerance())

    @forms
    @needs(Feature.VARLEN)
    def test_error_does_not_grow_with_length(self, subject, form):
        dims, lengths = subject.dims(H=1, HV=1, K=16, V=16), (2500,)
        inputs = random_inputs(2500, dims, case="weak decay").to(subject.dtype)
        got = subject.rule(form, inputs, lengths)
        assert_close(got, oracle(inputs, lengths), lengths, subject.tolerance())

    @needs(Feature.VARLEN, Feature.CHUNK_RULE, Feature.RECURRENT_RULE)
    def test_chunk_form_equals_recurrent_form(self, subject):
        inputs, states = packed_case(subject)
        chunk, recurrent = (
            subject.rule(form, inputs, LENGTHS, initial_state=states)
            for form in ("chunk", "recurrent")
        )
        for got, expected in zip(chunk, recurrent, strict=True):
            assert relative_error(got, expected) <= 2 * subject.tolerance()

    @forms
    @pytest.mark.parametrize(("H", "HV"), HEADS)
    @needs(Feature.VARLEN)
    def test_head_counts(self, subject, form, H, HV):
        inputs, states = packed_case(subject, subject.dims(H, HV))
        got = subject.rule(form, inputs, LENGTHS, initial_state=states)
        assert_close(got, oracle(inputs, LENGTHS, states), LENGTHS, subject.tolerance())

    @forms
    @pytest.mark.parametrize("dims", DIMS, ids=lambda dims: f"K={dims.K}, V={dims.V}")
    @needs(Feature.VARLEN)
    def test_head_dims(self, subject, form, dims):
        inputs, states = packed_case(subject, dims)
        got = subject.rule(form, inputs, LENGTHS, initial_state=states)
        assert_close(got, oracle(inputs, LENGTHS, states), LENGTHS, subject.tolerance())

    @forms
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("gates_too", [False, True], ids=["fp32 gates", "gates alike"])
    @needs(Feature.VARLEN)
    def test_activation_dtypes(self, subject, form, dtype, gates_too):
        inputs, states = packed_case(subject)
        inputs = inputs.map(lambda x: x.to(dtype)) if gates_too else inputs.to(dtype)
        got = subject.rule(form, inputs, LENGTHS, initial_state=states)
        assert got[0].dtype is dtype
        assert_close(got, oracle(inputs, LENGTHS, states), LENGTHS, subject.tolerance(dtype))

    @forms
    @pytest.mark.parametrize("dtype", [torch.float64], ids=str)
    @needs(Feature.VARLEN)
    def test_fp64_inputs_are_computed_in_fp64(self, subject, form, dtype):
        inputs, states = packed_case(subject)
        inputs, states = inputs.map(torch.Tensor.double), states.double()
        output, final = subject.rule(form, inputs, LENGTHS, initial_state=states)
        exact = oracle(inputs, LENGTHS, states)
        assert output.dtype is dtype
        assert relative_error(output[0], torch.cat([o for o, _ in exact])) < 1e-12
        assert final.dtype is dtype
        assert relative_error(final, torch.stack([s for _, s in exact])) < 1e-12

    @forms
    @needs(Feature.VARLEN)
    def test_autocast_does_not_change_the_arithmetic(self, subject, form):
        inputs, states = packed_case(subject)
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            got = subject.rule(form, inputs, LENGTHS, initial_state=states)
        assert_close(got, oracle(inputs, LENGTHS, states), LENGTHS, subject.tolerance())

    @forms
    @pytest.mark.parametrize("scale", [None, 1.0, 0.0, -2.5, 3])
    @needs(Feature.VARLEN)
    def test_scale(self, subject, form, scale):
        inputs, states = packed_case(subject)
        got = subject.rule(form, inputs, LENGTHS, initial_state=states, scale=scale)
        exact = oracle(inputs, LENGTHS, states, scale=scale)
        assert_close(got, exact, LENGTHS, subject.tolerance())

    @forms
    @pytest.mark.parametrize("factor", [1e-2, 1.0, 50.0])
    @needs(Feature.VARLEN)
    def test_l2norm_in_the_kernel(self, subject, form, factor):
        inputs, states = packed_case(subject)
        inputs = RuleInputs(inputs.q * factor, inputs.k * factor, *list(inputs)[2:])
        got = subject.rule(
            form, inputs, LENGTHS, initial_state=states, use_qk_l2norm_in_kernel=True
        )
        exact = oracle(inputs, LENGTHS, states, use_qk_l2norm=True)
        assert_close(got, exact, LENGTHS, subject.tolerance())

    @forms
    @needs(Feature.VARLEN)
    def test_l2norm_of_zeros_is_zero(self, subject, form):
        inputs, states = packed_case(subject)
        inputs.q[5], inputs.k[5] = 0, 0
        got = subject.rule(
            form, inputs, LENGTHS, initial_state=states, use_qk_l2norm_in_kernel=True
        )
        exact = oracle(inputs, LENGTHS, states, use_qk_l2norm=True)
        assert_close(got, exact, LENGTHS, subject.tolerance())
        assert not got[0][0, 5].any()

    @forms
    @pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
    @needs(Feature.VARLEN, Feature.RAW_GATE)
    def test_raw_gates(self, subject, form, bias):
        inputs, _ = packed_case(subject)
        HV = inputs.g.shape[1]
        a = torch.linspace(-4, 30, inputs.g.numel()).view_as(inputs.g)
        A_log, dt_bias = torch.linspace(-2, 1, HV), torch.linspace(-1, 1, HV) * bias
        decay = -A_log.double().exp() * F.softplus(a.double() + dt_bias.double())
        exact = oracle(RuleInputs(*list(inputs)[:3], decay, inputs.beta), LENGTHS)
        got = subject.rule(
            form, RuleInputs(*list(inputs)[:3], a, inputs.beta), LENGTHS,
            use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias if bias else None,
        )  # fmt: skip
        assert_close(got, exact, LENGTHS, subject.tolerance())

    @forms
    @pytest.mark.parametrize("negative", [False, True], ids=["beta", "negative eigenvalues"])
    @needs(Feature.VARLEN)
    def test_beta_logits(self, subject, form, negative):
        inputs, states = packed_case(subject)
        logits = torch.linspace(-6, 6, inputs.beta.numel()).view_as(inputs.beta)
        beta = logits.double().sigmoid() * (2 if negative else 1)
        exact = oracle(RuleInputs(*list(inputs)[:4], beta), LENGTHS, states)
        got = subject.rule(
            form, RuleInputs(*list(inputs)[:4], logits), LENGTHS, initial_state=states,
            use_beta_sigmoid_in_kernel=True, allow_neg_eigval=negative,
        )  # fmt: skip
        assert_close(got, exact, LENGTHS, subject.tolerance())
