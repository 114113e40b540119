"""Shapes, dtypes, layouts and options of the recurrence-only calls, against the oracle."""

import math

import pytest
import torch
import torch.nn.functional as F

from gdn_dispatch import build_chunk_meta, fused_recurrent_gated_delta_rule, plan_batch
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.poison import in_new_thread, with_poisoned_memory
from tests.support.rule_calls import chunk, forms, recurrent, run_packed
from gdn_dispatch.testing.rule_inputs import (
    Dims,
    RuleInputs,
    cu_seqlens,
    inputs_with,
    mild_gates,
    oracle,
    random_inputs,
    random_states,
    starts_of,
)

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
@pytest.mark.parametrize(
    "dims",
    [
        Dims(H=1, HV=1, K=1, V=1),
        Dims(H=3, HV=3, K=33, V=17),
        Dims(H=2, HV=4, K=48, V=20),
        Dims(H=1, HV=3, K=7, V=40),
        Dims(H=2, HV=8, K=64, V=32),
        Dims(H=1, HV=5, K=20, V=100),
        Dims(H=1, HV=6, K=128, V=64),
        Dims(H=2, HV=14, K=8, V=9),
        Dims(H=1, HV=8, K=24, V=128),
    ],
    ids=lambda dims: f"{dims.HV}/{dims.H} heads, K={dims.K}, V={dims.V}",
)
def test_any_head_count_and_dims(form, dims):
    inputs, states = packed_case(dims)
    got = run_packed(form, inputs, LENGTHS, initial_state=states)
    assert_equals_oracle(got, oracle(inputs, LENGTHS, states), LENGTHS)


@forms
@pytest.mark.parametrize("T", [1, 8, 9, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("B", [1, 3])
def test_dense_batch(form, T, B):
    lengths = (T,) * B
    inputs, states = packed_case(lengths=lengths)
    dense = inputs.map(lambda x: x.unflatten(0, (B, T)))
    output, final = form(*dense, initial_state=states, output_final_state=True)
    assert output.shape == (B, T, DIMS.HV, DIMS.V)
    got = output.flatten(0, 1).unsqueeze(0), final
    assert_equals_oracle(got, oracle(inputs, lengths, states), lengths)


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


@forms
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "strided", "v first"])
def test_initial_state_of_any_layout_is_read_and_never_written(form, state_dtype, layout):
    inputs, states = packed_case()
    states = states.to(state_dtype)
    exact = oracle(inputs, LENGTHS, states)
    v_first = layout == "v first"
    given = states
    if v_first:
        given = states.transpose(2, 3).contiguous()
    elif layout == "strided":
        given = torch.randn(len(LENGTHS), 2, *states.shape[1:]).to(state_dtype)[:, 1].copy_(states)
    before = given.clone()
    output, final = run_packed(form, inputs, LENGTHS, initial_state=given, state_v_first=v_first)
    if v_first:
        assert final.shape == (len(LENGTHS), DIMS.HV, DIMS.V, DIMS.K)
        assert final.is_contiguous()
        final = final.transpose(2, 3)
    assert same_bits(given, before)
    assert_equals_oracle((output, final), exact, LENGTHS)


@forms
@pytest.mark.parametrize("scale", [None, 1.0, 0.0, -2.5, 3])
def test_scale(form, scale):
    inputs, states = packed_case()
    got = run_packed(form, inputs, LENGTHS, initial_state=states, scale=scale)
    assert_equals_oracle(got, oracle(inputs, LENGTHS, states, scale=scale), LENGTHS)


@forms
@pytest.mark.parametrize("factor", [1e-4, 1.0, 50.0])
def test_l2norm_in_the_kernel(form, factor):
    inputs, states = packed_case()
    inputs = RuleInputs(inputs.q * factor, inputs.k * factor, inputs.v, inputs.g, inputs.beta)
    got = run_packed(form, inputs, LENGTHS, initial_state=states, use_qk_l2norm_in_kernel=True)
    exact = oracle(inputs, LENGTHS, states, use_qk_l2norm=True)
    assert_equals_oracle(got, exact, LENGTHS)


@forms
@pytest.mark.parametrize("bias", [True, False])
def test_raw_gates(form, bias):
    inputs, _ = packed_case()
    a = torch.linspace(-4, 30, inputs.g.numel()).view_as(inputs.g)
    A_log, dt_bias = torch.linspace(-2, 1, DIMS.HV), torch.linspace(-1, 1, DIMS.HV) * bias
    decay = -A_log.double().exp() * F.softplus(a.double() + dt_bias.double())
    exact = oracle(RuleInputs(inputs.q, inputs.k, inputs.v, decay, inputs.beta), LENGTHS)
    raw = RuleInputs(inputs.q, inputs.k, inputs.v, a, inputs.beta)
    got = run_packed(
        form, raw, LENGTHS, use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias if bias else None
    )
    assert_equals_oracle(got, exact, LENGTHS)


@forms
@pytest.mark.parametrize("negative", [False, True])
def test_beta_logits(form, negative):
    inputs, states = packed_case()
    logits = torch.linspace(-6, 6, inputs.beta.numel()).view_as(inputs.beta)
    beta = logits.double().sigmoid() * (2 if negative else 1)
    exact = oracle(RuleInputs(inputs.q, inputs.k, inputs.v, inputs.g, beta), LENGTHS, states)
    got = run_packed(
        form, RuleInputs(inputs.q, inputs.k, inputs.v, inputs.g, logits), LENGTHS,
        initial_state=states, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=negative,
    )  # fmt: skip
    assert_equals_oracle(got, exact, LENGTHS)


def test_recurrent_form_without_gate_or_beta():
    inputs, _ = packed_case()
    plain = RuleInputs(
        inputs.q, inputs.k, inputs.v, torch.zeros_like(inputs.g), torch.ones_like(inputs.beta)
    )
    got = fused_recurrent_gated_delta_rule(
        *list(inputs.packed())[:3], cu_seqlens=cu_seqlens(LENGTHS), output_final_state=True
    )
    assert_equals_oracle(got, oracle(plain, LENGTHS), LENGTHS)


def strided_layouts():
    """Ways in which the same numbers lie in memory, each over ``[B, T, ...]``."""

    def every_other_column(x):
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan)
        return wide[..., ::2].copy_(x)

    def time_outermost(x):
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    def heads_before_time(x):
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def slice_of_a_projection(x):
        wide = torch.full((*x.shape[:2], 3, *x.shape[2:]), math.nan)
        return wide[:, :, 1].copy_(x)

    def unaligned(x):
        return torch.full((x.numel() + 1,), math.nan)[1:].view_as(x).copy_(x)

    return [every_other_column, time_outermost, heads_before_time, slice_of_a_projection, unaligned]


@forms
@pytest.mark.parametrize("layout", strided_layouts(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_strides_are_free(form, layout, packed):
    B, T = (1, sum(LENGTHS)) if packed else (3, 40)
    lengths = LENGTHS if packed else (T,) * B
    inputs, states = packed_case(lengths=lengths)
    given = inputs.map(lambda x: layout(x.unflatten(0, (B, T))))
    options = {"cu_seqlens": cu_seqlens(LENGTHS)} if packed else {}
    output, final = form(*given, initial_state=states, output_final_state=True, **options)
    got = output.flatten(0, 1).unsqueeze(0), final
    assert_equals_oracle(got, oracle(inputs, lengths, states), lengths)


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


class TestEmpty:
    @forms
    @pytest.mark.parametrize("with_state", [False, True])
    def test_no_tokens(self, form, with_state):
        states = random_states(2, DIMS) if with_state else None
        inputs = random_inputs(0, DIMS).map(lambda x: x.unsqueeze(0).expand(2, *x.shape))
        output, final = form(*inputs, initial_state=states, output_final_state=True)
        assert output.shape == (2, 0, DIMS.HV, DIMS.V)
        assert torch.equal(final, states if with_state else torch.zeros_like(final))

    @forms
    @pytest.mark.parametrize("T", [0, 5])
    def test_no_sequences(self, form, T):
        output, final = form(
            *random_inputs(T, DIMS).packed(), cu_seqlens=torch.tensor([0]), output_final_state=True
        )
        assert output.shape == (1, T, DIMS.HV, DIMS.V)
        assert not output.any()
        assert final.shape == (0, DIMS.HV, DIMS.K, DIMS.V)

    @forms
    @pytest.mark.parametrize("lengths", [(0,), (0, 0, 0), (0, 5, 0, 0, 33, 0)])
    def test_empty_sequences_keep_their_state(self, form, lengths):
        inputs, states = packed_case(lengths=lengths)
        _, final = run_packed(form, inputs, lengths, initial_state=states)
        for n, length in enumerate(lengths):
            assert torch.equal(final[n], states[n]) == (length == 0)
        _, final = run_packed(form, inputs, lengths)
        for n, length in enumerate(lengths):
            assert bool(final[n].any()) == (length > 0)

    @forms
    @pytest.mark.parametrize("rows", [1, 40])
    def test_rows_past_the_last_sequence_are_zero(self, form, rows):
        inputs, _ = packed_case()
        padded = inputs.map(lambda x: torch.cat([x, x.new_full((rows, *x.shape[1:]), math.nan)]))
        output, final = run_packed(form, padded, LENGTHS)
        assert output.shape[1] == sum(LENGTHS) + rows
        assert_equals_oracle((output, final), oracle(inputs, LENGTHS), LENGTHS)

    @forms
    def test_final_state_only_on_request(self, form):
        inputs, states = packed_case()
        output, nothing = form(
            *inputs.packed(), initial_state=states, cu_seqlens=cu_seqlens(LENGTHS)
        )
        assert nothing is None
        assert same_bits(output, run_packed(form, inputs, LENGTHS, initial_state=states)[0])


class TestPackedBatch:
    @forms
    def test_every_way_to_give_the_lengths_is_the_same(self, form):
        inputs, states = packed_case()
        starts = cu_seqlens(LENGTHS)
        ways = [
            {"cu_seqlens": starts.long()},
            {"cu_seqlens": starts, "cu_seqlens_cpu": starts.tolist()},
            {"cu_seqlens_cpu": starts},
            {"cu_seqlens_cpu": starts.numpy()},
            {"meta": build_chunk_meta(plan_batch(starts), "cpu")},
            {"meta": build_chunk_meta(plan_batch(starts), "cpu"), "cu_seqlens": starts},
        ]
        expected = run_packed(form, inputs, LENGTHS, initial_state=states)
        for way in ways:
            got = form(*inputs.packed(), initial_state=states, output_final_state=True, **way)
            assert all(map(same_bits, got, expected)), way

    @forms
    def test_nan_in_one_sequence_stays_there(self, form):
        inputs, _ = packed_case()
        starts = starts_of(LENGTHS)
        for sick in (0, 2, 4):
            spoilt = inputs.map(torch.clone)
            for x in spoilt:
                x[starts[sick] : starts[sick + 1]] = math.nan
            got = run_packed(form, spoilt, LENGTHS)
            healthy = run_packed(form, inputs, LENGTHS)
            for n in set(range(len(LENGTHS))) - {sick}:
                rows = slice(starts[n], starts[n + 1])
                assert same_bits(got[0][:, rows], healthy[0][:, rows])
                assert same_bits(got[1][n], healthy[1][n])
                assert got[0][:, rows].isfinite().all()
                assert got[1][n].isfinite().all()


class TestMemory:
    @forms
    @pytest.mark.parametrize("lengths", [LENGTHS, (1,), (5, 1, 0), (32,), (300,), (0,)])
    @pytest.mark.parametrize("from_state", [False, True])
    def test_nothing_uninitialised_is_read(self, form, lengths, from_state):
        inputs, states = packed_case(lengths=lengths)
        options = {"initial_state": states} if from_state else {}
        expected = run_packed(form, inputs, lengths, **options)
        got = with_poisoned_memory(lambda: run_packed(form, inputs, lengths, **options))
        assert all(map(same_bits, got, expected))
        assert all(x.isfinite().all() for x in got)

    @forms
    def test_scratch_memory_of_the_call_before_does_not_matter(self, form):
        inputs, _ = packed_case()
        expected = in_new_thread(lambda: run_packed(form, inputs, LENGTHS))
        sick = inputs_with(mild_gates, 200, DIMS).map(lambda x: torch.full_like(x, math.nan))
        assert run_packed(form, sick, (200,))[0].isnan().all()
        assert all(map(same_bits, run_packed(form, inputs, LENGTHS), expected))

    @pytest.mark.parametrize("order", [(True, False), (False, True)])
    def test_inference_mode_may_come_first_or_last(self, order):
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

    @forms
    def test_inputs_are_never_written(self, form):
        inputs, states = packed_case()
        before = inputs.map(torch.clone)
        run_packed(
            form, inputs, LENGTHS, initial_state=states, use_qk_l2norm_in_kernel=True,
            use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, use_gate_in_kernel=True,
            A_log=torch.zeros(DIMS.HV), dt_bias=torch.zeros(DIMS.HV),
        )  # fmt: skip
        assert all(map(same_bits, inputs, before))
