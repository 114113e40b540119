"""torch.compile of functions that call the public ones: one graph, the same results."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from gdn_dispatch import (
    build_chunk_meta,
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    gdn_attention,
    plan_batch,
)
from gdn_dispatch.testing.layer_inputs import LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.rule_inputs import (
    Dims,
    cu_seqlens,
    random_inputs,
    random_states,
    starts_of,
)
from tests.support import public_calls
from tests.support.rule_calls import forms

DIMS = Dims(H=2, HV=4, K=16, V=8)
LAYER = LayerDims(H=2, HV=4, K=16, V=8, W=4)
LENGTHS = (40, 0, 7)
OTHER_LENGTHS = (3, 20, 24)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, *, dynamic=None):
    """The function in one graph, and how many graphs were made of it."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter, dynamic=dynamic), counter


def rule_inputs(lengths=LENGTHS, *, seed=0):
    states = random_states(len(lengths), DIMS, seed=seed)
    return list(random_inputs(sum(lengths), DIMS, seed=seed).packed()), states


def meta_of(lengths, **plan):
    return build_chunk_meta(plan_batch(starts_of(lengths), **plan), "cpu")


def assert_same(got, expected):
    assert all(map(same_bits, got, expected))


@forms
def test_dense(form):
    def function(q, k, v, g, beta, state):
        o, final = form(q * 2, k, v, g, beta, initial_state=state, output_final_state=True)
        return o + 1, final

    (q, k, v, g, beta), states = rule_inputs((33,))
    run, graphs = compiled(function)
    assert_same(run(q, k, v, g, beta, states), function(q, k, v, g, beta, states))
    assert graphs.frame_count == 1


@forms
def test_without_final_state(form):
    def function(*inputs):
        return form(*inputs)

    inputs, _ = rule_inputs((33,))
    run, _ = compiled(function)
    output, state = run(*inputs)
    assert state is None
    assert same_bits(output, function(*inputs)[0])


@forms
@pytest.mark.parametrize("way", ["cu_seqlens_cpu", "both", "list"])
def test_packed(form, way):
    starts = cu_seqlens(LENGTHS)
    given = {
        "cu_seqlens_cpu": {"cu_seqlens_cpu": starts},
        "both": {"cu_seqlens": starts, "cu_seqlens_cpu": starts},
        "list": {"cu_seqlens_cpu": starts.tolist()},
    }[way]

    def function(q, k, v, g, beta, state, **lengths):
        return form(
            q, k, v, g, beta, initial_state=state, output_final_state=True, state_v_first=False,
            **lengths,
        )  # fmt: skip

    inputs, states = rule_inputs()
    run, _ = compiled(function)
    assert_same(run(*inputs, states, **given), function(*inputs, states, **given))


@forms
def test_metadata_of_other_steps_needs_no_new_graph(form):
    def function(q, k, v, g, beta, state, meta):
        return form(q, k, v, g, beta, initial_state=state, output_final_state=True, meta=meta)

    run, graphs = compiled(function)
    for seed, lengths in enumerate((LENGTHS, OTHER_LENGTHS, LENGTHS[::-1])):
        inputs, states = rule_inputs(lengths, seed=seed)
        meta = meta_of(lengths)
        assert_same(run(*inputs, states, meta), function(*inputs, states, meta))
    assert graphs.frame_count == 1


@forms
def test_every_option(form):
    def function(q, k, v, g, beta, state, A_log, dt_bias):
        return form(
            q, k, v, g, beta, scale=0.5, initial_state=state.transpose(2, 3),
            output_final_state=True, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True,
            use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, state_v_first=True,
            A_log=A_log, dt_bias=dt_bias, backend="torch",
        )  # fmt: skip

    inputs, states = rule_inputs((33,))
    gates = torch.zeros(DIMS.HV), torch.ones(DIMS.HV)
    run, _ = compiled(function)
    assert_same(run(*inputs, states, *gates), function(*inputs, states, *gates))


@forms
def test_dynamic_shapes(form):
    def function(q, k, v, g, beta):
        return form(q, k, v, g, beta, output_final_state=True)

    run, graphs = compiled(function, dynamic=True)
    for T in (33, 40, 64, 100):
        inputs, _ = rule_inputs((T,))
        assert_same(run(*inputs), function(*inputs))
    assert graphs.frame_count == 1


@forms
def test_gradients(form):
    def function(q, k, v, g, beta, state):
        o, final = form(q, k, v, g, beta, initial_state=state, output_final_state=True)
        return (o * o).sum() + final.sum()

    inputs, states = rule_inputs((33,))
    leaves = [x.requires_grad_() for x in (*inputs, states)]
    expected = torch.autograd.grad(function(*leaves), leaves)
    run, _ = compiled(function)
    for got, exact in zip(torch.autograd.grad(run(*leaves), leaves), expected, strict=True):
        assert relative_error(got, exact) < 1e-6


# -- the layer ------------------------------------------------------------------------------------


def serve(tokens, layer, pools, meta, out=None):
    conv, ssm = pools
    result = gdn_attention(
        **tokens.arguments, **layer.arguments, meta=meta, conv_state=conv, ssm_state=ssm, out=out
    )
    return result * 2


def new_pools():
    return torch.zeros(4, LAYER.D, LAYER.W - 1), torch.zeros(4, LAYER.HV, LAYER.K, LAYER.V)


@pytest.mark.parametrize("given_out", [False, True])
def test_layer_updates_the_pools(given_out):
    layer = random_layer(LAYER)
    run, graphs = compiled(serve)
    eager_pools, pools = new_pools(), new_pools()
    steps = [((33, 0, 14), [1, 2, 0]), ((20, 20, 7), [2, 0, 3]), ((1, 45, 1), [1, 2, 0])]
    for seed, (lengths, slots) in enumerate(steps):
        tokens = random_tokens(sum(lengths), LAYER, rng=seed)
        outs = [
            torch.empty(sum(lengths), LAYER.HV, LAYER.V) if given_out else None for _ in range(2)
        ]
        meta = meta_of(lengths, state_indices=slots)
        expected = serve(tokens, layer, eager_pools, meta, outs[0])
        assert same_bits(run(tokens, layer, pools, meta, outs[1]), expected)
        assert_same(pools, eager_pools)
        if given_out:
            assert same_bits(outs[1], outs[0])
    assert graphs.frame_count == 1


def test_layer_from_projections():
    layer = random_layer(LAYER)
    tokens = random_tokens(20, LAYER)
    gate = torch.randn(20, LAYER.HV, LAYER.V)
    meta = meta_of((20,), state_indices=[1])
    inputs = tokens.projections(LAYER, gate, interleaved=True)

    def function(inputs, z, conv, ssm):
        out = gdn_attention(
            **inputs, **layer.arguments, z=z, meta=meta, conv_state=conv, ssm_state=ssm
        )
        return out + z

    run, _ = compiled(function)
    results = []
    for call in (run, function):
        z, pools = torch.zeros_like(gate), new_pools()
        results.append((call(inputs, z, *pools), z, *pools))
    assert_same(*results)
    assert torch.equal(results[0][1], gate)


def test_layer_on_views_of_one_page():
    """vLLM's pools: both are views of the same memory, of different strides."""
    layer = random_layer(LAYER)
    tokens = random_tokens(20, LAYER)
    meta = meta_of((20,), state_indices=[1])
    line, state = LAYER.D * (LAYER.W - 1), LAYER.HV * LAYER.K * LAYER.V

    def views(page):
        conv = page[:, :line].unflatten(1, (LAYER.W - 1, LAYER.D)).transpose(1, 2)
        return conv, page[:, line : line + state].unflatten(1, (LAYER.HV, LAYER.K, LAYER.V))

    pages = torch.zeros(2, 3, line + state + 5)
    run, _ = compiled(serve)
    with torch.no_grad():
        got = run(tokens, layer, views(pages[0]), meta)
        expected = serve(tokens, layer, views(pages[1]), meta)
    assert same_bits(got, expected)
    assert same_bits(pages[0], pages[1])


# -- the operators --------------------------------------------------------------------------------


def rule_operator_arguments(recurrent, *, lengths=None, meta=False, grad=False):
    inputs, states = rule_inputs(lengths or (33,))
    for x in (*inputs, states):
        x.requires_grad_(grad)
    starts = cu_seqlens(lengths) if lengths else None
    handle = meta_of(lengths) if meta else None
    options = (None, states, True, False, False, False, False)
    packed = (starts, starts) if not meta else (None, None)
    arguments = (recurrent, *inputs, *options, *packed, False, None, None)
    return (*arguments, None if handle is None else handle.handle, None), handle


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", ["dense", "packed", "meta", "dense with gradients"])
def test_opcheck_of_the_rule(recurrent, kind):
    arguments, _alive = rule_operator_arguments(
        recurrent,
        lengths=None if "dense" in kind else LENGTHS,
        meta=kind == "meta",
        grad="gradients" in kind,
    )
    torch.library.opcheck(torch.ops.gdn_dispatch.gated_delta_rule.default, arguments)


def test_opcheck_of_the_layer():
    call = public_calls.attention()
    meta = call["meta"]
    arguments = (
        call["mixed_qkv"], call["a"], call["b"], meta.handle, call["conv_state"],
        call["ssm_state"], call["conv_weight"], call["conv_bias"], call["A_log"], call["dt_bias"],
        "silu", None, False, False, call["out"], None, None, None, None, False,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.gdn_dispatch.gdn_attention.default, arguments)


def test_signatures_are_those_of_eager_calls():
    """A compiled call binds arguments by position as the eager one does."""
    inputs, states = rule_inputs((9,))
    run, _ = compiled(
        lambda *x: fused_recurrent_gated_delta_rule(*x[:4], None, None, x[4], 0.5, x[5])
    )
    expected = fused_recurrent_gated_delta_rule(*inputs[:4], None, None, inputs[4], 0.5, states)
    assert same_bits(run(*inputs, states)[0], expected[0])
    run, _ = compiled(lambda *x: chunk_gated_delta_rule(*x[:5], 0.5, x[5], True))
    assert_same(run(*inputs, states), chunk_gated_delta_rule(*inputs, 0.5, states, True))
