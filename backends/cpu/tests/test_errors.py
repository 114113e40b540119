"""Errors against the fp64 recurrence, path by path: the table of the README, on fewer tokens."""

from functools import cache

import pytest
import torch
from gdn_dispatch_cpu.kernels import rule
from gdn_dispatch_cpu.kernels.library import PATHS, load_library
from gdn_dispatch_cpu.kernels.options import Options

from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.rule_inputs import (
    GATES,
    NEAR_IDENTICAL,
    Dims,
    RuleInputs,
    oracle,
    random_inputs,
)
from gdn_dispatch.types import RuleRequest

T, DIMS = 1000, Dims(H=2, HV=4, K=128, V=128)
FP32, FP32_NEAR_IDENTICAL = 1e-6, 2e-6
PAIRS_OUTPUT, PAIRS_STATE, PAIRS_NEAR_IDENTICAL = 3.5e-3, 3e-3, 1e-2


@cache
def inputs_of(case, dtype):
    x = random_inputs(T, DIMS, case=case)
    return RuleInputs(x.q.to(dtype), x.k.to(dtype), x.v.to(dtype), x.g, x.beta)


@cache
def exact_of(case, dtype):
    return oracle(RuleInputs(*(x.float() for x in inputs_of(case, dtype))), (T,))[0]


def errors(case, options, recurrent=False, dtype=torch.float32):
    inputs = inputs_of(case, dtype)
    q, k, v, g, beta = inputs.packed()
    request = RuleRequest(
        q, k, v, g, beta, DIMS.K**-0.5, None, True, False, False, False, False, None, None, None,
        recurrent,
    )  # fmt: skip
    output, state = rule.gated_delta_rule(request, options)
    exact, exact_state = exact_of(case, dtype)
    return relative_error(output[0], exact), relative_error(state[0], exact_state)


@pytest.mark.parametrize("case", GATES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("recurrent", [False, True], ids=["chunk", "recurrent"])
def test_fp32(case, path, recurrent):
    if path not in load_library().paths:
        pytest.skip(f"no {path} on this machine")
    limit = FP32_NEAR_IDENTICAL if case == NEAR_IDENTICAL else FP32
    assert max(errors(case, Options(PATHS[path]), recurrent)) <= limit


@pytest.mark.parametrize("case", GATES)
def test_bf16_products(case):
    if "avx512_bf16" not in load_library().paths:
        pytest.skip("no bf16 products on this machine")
    output, state = errors(case, Options(), dtype=torch.bfloat16)
    assert output <= PAIRS_OUTPUT
    assert state <= (PAIRS_NEAR_IDENTICAL if case == NEAR_IDENTICAL else PAIRS_STATE)
    _, exact_state = errors(case, Options(exact=True), dtype=torch.bfloat16)
    assert exact_state <= FP32_NEAR_IDENTICAL


def test_every_16_bit_number_is_read_as_it_is():
    """Subnormal ones too; by way of a decode step that changes nothing."""
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
        states = bits.view(dtype).view(1, 1, 256, 256).float().nan_to_num(0, 0, 0).to(dtype)
        zeros = torch.zeros(1, 1, 1, 256)
        gate = torch.zeros(1, 1, 1)
        request = RuleRequest(
            zeros, zeros, zeros, gate, gate, 1.0, states, True, False, False, False, False, None,
            None, None, True,
        )  # fmt: skip
        for path in load_library().paths:
            _, final = rule.gated_delta_rule(request, Options(PATHS[path]))
            assert torch.equal(final, states.float()), f"{dtype} on {path}"
