"""Gradients of the recurrence-only calls, against the oracle's and against finite differences."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from gdn_dispatch import InvalidArgumentError, gdn_attention
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.testing.rule_inputs import (
    GATES,
    Dims,
    cu_seqlens,
    random_inputs,
    random_states,
    starts_of,
)
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule
from tests.support import public_calls
from tests.support.rule_calls import forms

DIMS = Dims(H=2, HV=4, K=8, V=6)
LENGTHS = (3, 0, 70, 64)
NAMES = ("q", "k", "v", "g", "beta", "initial_state", "A_log", "dt_bias")
LIMIT = 2e-5
LIMITS = {("strong decay", "g"): 1e-3}  # what is left of a gradient that decays by e^-5 a token
OPTIONS = {
    "plain": {},
    "normalised": {"use_qk_l2norm_in_kernel": True, "scale": 0.7},
    "raw": {"use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True},
    "negative eigenvalues": {"use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True},
}


def leaves(dtype, lengths=LENGTHS, case="mamba dt init", raw=False, dims=DIMS):
    """Every differentiable input by name, ``[T, ...]``; requiring grad."""
    inputs = random_inputs(sum(lengths), dims, case=case)
    found = dict(zip(NAMES, inputs, strict=False))
    found["q"], found["k"] = 3 * found["q"], 2 * found["k"]
    found["initial_state"] = random_states(len(lengths), dims)
    if raw:
        rng = generator(3)
        found["g"] = torch.randn(found["g"].shape, generator=rng)
        found["A_log"], found["dt_bias"] = torch.randn(2, dims.HV, generator=rng).unbind(0)
    return {name: x.to(dtype, copy=True).requires_grad_() for name, x in found.items()}


def oracle(tensors, lengths, options):
    """Output and states by the reference recurrence, differentiable in fp64."""
    g, beta = tensors["g"], tensors["beta"]
    if "A_log" in tensors:
        g = -tensors["A_log"].exp() * F.softplus(g + tensors["dt_bias"])
    if options.get("use_beta_sigmoid_in_kernel"):
        beta = beta.sigmoid()
    if options.get("allow_neg_eigval"):
        beta = 2 * beta
    outputs, states = [], []
    starts = starts_of(lengths)
    for n, (a, b) in enumerate(pairwise(starts)):
        output, state = reference_gated_delta_rule(
            *(x[a:b] for x in (tensors["q"], tensors["k"], tensors["v"], g, beta)),
            initial_state=tensors["initial_state"][n], scale=options.get("scale"),
            use_qk_l2norm=options.get("use_qk_l2norm_in_kernel", False),
        )  # fmt: skip
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs), torch.stack(states)


def run(form, tensors, lengths, options, *, dense=False):
    rows = [tensors[name] for name in NAMES[:5]]
    shape = (len(lengths), lengths[0]) if dense else (1, sum(lengths))
    batch = {} if dense else {"cu_seqlens": cu_seqlens(lengths)}
    gates = {name: tensors[name] for name in NAMES[6:] if name in tensors}
    output, state = form(
        *(x.unflatten(0, shape) for x in rows), initial_state=tensors["initial_state"],
        output_final_state=True, **batch, **gates, **options,
    )  # fmt: skip
    return output.flatten(0, 1), state


def gradients(results, tensors):
    rng = generator(7)
    loss = sum((x.double() * torch.randn(x.shape, generator=rng).double()).sum() for x in results)
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def assert_gradients_equal_oracle(form, lengths, options, *, case="mamba dt init", dense=False):
    raw = "use_gate_in_kernel" in options
    single = leaves(torch.float32, lengths, case, raw)
    double = leaves(torch.float64, lengths, case, raw)
    got = gradients(run(form, single, lengths, options, dense=dense), single)
    expected = gradients(oracle(double, lengths, options), double)
    for name, exact in expected.items():
        assert got[name].isfinite().all(), name
        assert relative_error(got[name], exact) < LIMITS.get((case, name), LIMIT), name


@forms
@pytest.mark.parametrize("name", OPTIONS)
def test_packed(form, name):
    assert_gradients_equal_oracle(form, LENGTHS, OPTIONS[name])


@forms
def test_dense(form):
    assert_gradients_equal_oracle(form, (65, 65), {}, dense=True)


@forms
@pytest.mark.parametrize("case", GATES)
def test_every_gate(form, case):
    assert_gradients_equal_oracle(form, (70,), {}, case=case)


@forms
def test_fp64_gradients_equal_finite_differences(form):
    dims = Dims(H=1, HV=2, K=2, V=2)
    lengths = (3, 2)
    options = OPTIONS["raw"] | {"use_qk_l2norm_in_kernel": True}
    tensors = leaves(torch.float64, lengths, raw=True, dims=dims)

    def function(*values):
        return run(form, dict(zip(tensors, values, strict=True)), lengths, options)

    # States are fp32 by contract unless the inputs are fp64.
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


@forms
def test_values_are_those_without_gradients(form):
    tensors = leaves(torch.float32)
    with_grad = run(form, tensors, LENGTHS, {})
    with torch.no_grad():
        without = run(form, tensors, LENGTHS, {})
    for a, b in zip(with_grad, without, strict=True):
        assert relative_error(a.detach(), b) < 2e-6  # each is 1e-6 from the truth at most


@forms
def test_extreme_raw_gates_have_finite_gradients(form):
    tensors = leaves(torch.float32, raw=True)
    extremes = torch.tensor([-200.0, -90.0, 0.0, 200.0]).repeat(sum(LENGTHS), 1)
    for name in ("g", "beta"):
        tensors[name] = extremes.clone().requires_grad_()
    for x in gradients(run(form, tensors, LENGTHS, OPTIONS["raw"]), tensors).values():
        assert x.isfinite().all()


@forms
def test_gradient_flows_from_the_state_alone(form):
    tensors = leaves(torch.float32)
    _, state = run(form, tensors, LENGTHS, {})
    (k_grad,) = torch.autograd.grad(state.sum(), tensors["k"])
    assert k_grad.any()


@forms
def test_nothing_before_a_reset_has_a_gradient_from_the_state(form):
    tensors = leaves(torch.float32, (10,))
    with torch.no_grad():
        tensors["g"][4] = -math.inf
    _, state = run(form, tensors, (10,), {})
    names = ("k", "v", "g", "initial_state")
    found = torch.autograd.grad(state.sum(), [tensors[name] for name in names])
    grads = dict(zip(names, found, strict=True))
    assert not grads["initial_state"].any()
    assert grads["g"][:5].abs().max() < 1e-5 * grads["g"].abs().max()
    for name in ("k", "v"):
        assert not grads[name][:4].any()
        assert grads[name][4:].isfinite().all()
    assert grads["v"][4:].any()


def test_layer_gives_no_gradients():
    arguments = public_calls.attention()
    arguments["mixed_qkv"].requires_grad_()
    with pytest.raises(InvalidArgumentError, match="requires grad"):
        gdn_attention(**arguments)
    with torch.no_grad():
        assert not gdn_attention(**arguments).requires_grad
