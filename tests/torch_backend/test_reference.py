"""The oracle itself, against loops over single numbers that share no code with it."""

import math

import pytest
import torch

from gdn_dispatch.testing.layer_inputs import LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.rule_inputs import GATES, Dims, random_inputs, random_states
from gdn_dispatch.torch_backend.reference import (
    reference_conv,
    reference_gated_delta_rule,
    reference_gates,
    reference_gdn_layer,
)

EXACT = 1e-13


def by_numbers(inputs, scale, state):
    """The recurrence in Python floats: one value head, one channel, one key at a time."""
    q, k, v, g, beta = (x.double().tolist() for x in inputs)
    S = state.double().tolist()
    T, H, HV, K, V = len(q), len(q[0]), len(v[0]), len(q[0][0]), len(v[0][0])
    output = [[[0.0] * V for _ in range(HV)] for _ in range(T)]
    for t in range(T):
        for j in range(HV):
            key, query = k[t][j // (HV // H)], q[t][j // (HV // H)]
            decay = math.exp(g[t][j])
            for c in range(V):
                column = [decay * S[j][i][c] for i in range(K)]
                d = beta[t][j] * (v[t][j][c] - sum(s * x for s, x in zip(column, key, strict=True)))
                for i in range(K):
                    S[j][i][c] = column[i] + key[i] * d
                    output[t][j][c] += scale * S[j][i][c] * query[i]
    return torch.tensor(output, dtype=torch.float64), torch.tensor(S, dtype=torch.float64)


@pytest.mark.parametrize("case", GATES)
def test_recurrence_equals_a_loop_over_numbers(case):
    dims = Dims(H=2, HV=6, K=5, V=3)
    inputs, state = random_inputs(40, dims, case=case), random_states(1, dims)[0]
    output, final = reference_gated_delta_rule(*inputs, scale=0.3, initial_state=state)
    expected, expected_final = by_numbers(inputs, 0.3, state)
    assert relative_error(output, expected) < EXACT
    assert relative_error(final, expected_final) < EXACT


def test_default_scale_and_state():
    dims = Dims(H=1, HV=1, K=4, V=2)
    inputs = random_inputs(7, dims)
    output, _ = reference_gated_delta_rule(*inputs)
    expected, _ = by_numbers(inputs, 0.5, torch.zeros(1, 4, 2))
    assert relative_error(output, expected) < EXACT


def test_l2norm_divides_by_the_root_of_the_sum_and_epsilon():
    inputs = random_inputs(9, Dims(H=1, HV=2, K=4, V=2))
    tiny = 1e-3  # so small that the epsilon shows
    scaled = [inputs.q * tiny, inputs.k * tiny, inputs.v, inputs.g, inputs.beta]
    norm = [x / torch.sqrt((x.double() ** 2).sum(-1, keepdim=True) + 1e-6) for x in scaled[:2]]
    got, _ = reference_gated_delta_rule(*scaled, use_qk_l2norm=True)
    expected, _ = reference_gated_delta_rule(*norm, *scaled[2:])
    assert relative_error(got, expected) < EXACT


def test_gates_equal_the_formulas():
    a, b, A_log, dt_bias = torch.randn(4, 5, 3).double().unbind(0)
    A_log, dt_bias = A_log[0], dt_bias[0]
    g, beta = reference_gates(a, b, A_log, dt_bias)
    for t in range(5):
        for j in range(3):
            softplus = math.log1p(math.exp(a[t, j] + dt_bias[j]))
            assert g[t, j] == pytest.approx(-math.exp(A_log[j]) * softplus, rel=1e-14)
            assert beta[t, j] == pytest.approx(1 / (1 + math.exp(-b[t, j])), rel=1e-14)
    doubled = reference_gates(a, b, A_log, dt_bias, allow_neg_eigval=True)[1]
    assert torch.equal(doubled, 2 * beta)


@pytest.mark.parametrize("W", [1, 2, 4, 5])
@pytest.mark.parametrize("activation", ["silu", None])
def test_conv_equals_a_loop_over_numbers(W, activation):
    T, D = 6, 3
    x, weight, bias = torch.randn(T, D), torch.randn(D, W), torch.randn(D)
    history = torch.randn(D, W - 1)
    got, h = reference_conv(x, weight, bias, history, activation)
    line = torch.cat([history, x.t()], dim=1).double()
    assert torch.equal(h.double(), line.t())
    for t in range(T):
        for c in range(D):
            total = float(bias[c])
            for i in range(W):
                total += float(weight[c, i]) * float(line[c, t + i])
            expected = total / (1 + math.exp(-total)) if activation else total
            assert got[t, c] == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_layer_of_two_pieces_equals_the_whole():
    dims = LayerDims(H=2, HV=4, K=4, V=3, W=4)
    layer, tokens = random_layer(dims), random_tokens(11, dims)
    whole, history, state = layer.reference(tokens)
    first, middle_history, middle_state = layer.reference(tokens.rows(0, 5))
    second, last_history, last_state = layer.reference(
        tokens.rows(5, 11), middle_history, middle_state
    )
    assert relative_error(torch.cat([first, second]), whole) < EXACT
    assert torch.equal(last_history, history)
    assert relative_error(last_state, state) < EXACT


def test_layer_equals_its_parts():
    dims = LayerDims(H=1, HV=2, K=4, V=3, W=3)
    layer, tokens = random_layer(dims), random_tokens(9, dims)
    conv, _ = reference_conv(tokens.mixed_qkv, layer.conv_weight, layer.conv_bias, None, "silu")
    q, k, v = conv.float().split((4, 4, 6), dim=1)
    g, beta = reference_gates(tokens.a, tokens.b, layer.A_log, layer.dt_bias)
    expected, state = reference_gated_delta_rule(
        q.view(9, 1, 4), k.view(9, 1, 4), v.view(9, 2, 3), g, beta, use_qk_l2norm=True
    )
    output, _, final = reference_gdn_layer(
        tokens.mixed_qkv, tokens.a, tokens.b, num_heads=1, head_dim_k=4, head_dim_v=3,
        conv_weight=layer.conv_weight, conv_bias=layer.conv_bias, A_log=layer.A_log,
        dt_bias=layer.dt_bias,
    )  # fmt: skip
    assert torch.equal(output, expected)
    assert torch.equal(final, state)
