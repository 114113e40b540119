"""The same bits for a sequence, whatever the threads and whatever else is in the call."""

import pytest
import torch
from gdn_dispatch_cpu.kernels import rule
from gdn_dispatch_cpu.kernels.options import Options

from gdn_dispatch import plan_batch
from gdn_dispatch.meta import build
from gdn_dispatch.meta.parts import MetaSpec
from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.rule_inputs import Dims, random_inputs, random_states, starts_of
from gdn_dispatch.types import MetaRequest, RuleRequest

DIMS = [Dims(H=1, HV=2, K=128, V=128), Dims(H=2, HV=6, K=48, V=80)]
DTYPES = [torch.float32, torch.bfloat16]


def run(inputs, lengths, states, recurrent, threads):
    plan = plan_batch(starts_of(lengths))
    meta = build(MetaRequest(plan, torch.device("cpu")), MetaSpec(64), backend="cpu")
    q, k, v, g, beta = inputs.packed()
    request = RuleRequest(
        q, k, v, g, beta, 0.1, states, True, True, False, False, False, None, None, meta, recurrent
    )
    result = rule.gated_delta_rule(request, Options(num_threads=threads))
    return result.output[0], result.final_state


@pytest.mark.parametrize("recurrent", [False, True], ids=["chunk", "recurrent"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=lambda d: f"K={d.K}, V={d.V}")
def test_threads_do_not_change_a_bit(dims, dtype, recurrent):
    """With many threads a single sequence is cut into column panels."""
    lengths = (333, 1, 8, 65)
    inputs = random_inputs(sum(lengths), dims).to(dtype)
    states = random_states(len(lengths), dims)
    expected = run(inputs, lengths, states, recurrent, 1)
    for threads in (2, 3, 7):
        got = run(inputs, lengths, states, recurrent, threads)
        assert all(map(same_bits, got, expected)), f"{threads} threads"


@pytest.mark.parametrize("recurrent", [False, True], ids=["chunk", "recurrent"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=lambda d: f"K={d.K}, V={d.V}")
def test_company_does_not_change_a_bit(dims, dtype, recurrent):
    lengths = (40, 200, 3, 9)
    inputs = random_inputs(sum(lengths), dims).to(dtype)
    states = random_states(len(lengths), dims)
    output, final = run(inputs, lengths, states, recurrent, 3)
    starts = starts_of(lengths)
    for n, length in enumerate(lengths):
        one = inputs.rows(starts[n], starts[n] + length)
        alone, last = run(one, (length,), states[n : n + 1], recurrent, 3)
        assert same_bits(output[starts[n] : starts[n] + length], alone)
        assert same_bits(final[n], last[0])


@pytest.mark.parametrize("v_first", [False, True], ids=["K first", "V first"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_heads_that_step_together_do_not_change_a_bit(tokens, v_first):
    """How many key heads a thread prepares at a time depends on the batch and on the threads."""
    dims = Dims(H=8, HV=16, K=128, V=128)
    lengths = (tokens,) * 5
    inputs = random_inputs(sum(lengths), dims).to(torch.bfloat16)
    states = random_states(len(lengths), dims)
    A_log, dt_bias = torch.linspace(-1, 1, dims.HV), torch.linspace(-2, 2, dims.HV)
    starts = starts_of(lengths)

    def step(x, pool, threads):
        plan = plan_batch(starts_of((tokens,) * len(pool)))
        meta = build(MetaRequest(plan, torch.device("cpu")), MetaSpec(64), backend="cpu")
        q, k, v, g, beta = x.packed()
        request = RuleRequest(
            q, k, v, g, beta, 0.1, pool.clone(), True, True, True, False, v_first, A_log, dt_bias,
            meta, True, None, True,
        )  # fmt: skip
        return rule.gated_delta_rule(request, Options(num_threads=threads))

    output, final = step(inputs, states, 1)
    for threads in (2, 3, 16):
        got = step(inputs, states, threads)
        assert same_bits(got.output, output)
        assert same_bits(got.final_state, final)
    for n in range(len(lengths)):
        alone = step(inputs.rows(starts[n], starts[n] + tokens), states[n : n + 1], 2)
        assert same_bits(alone.output, output[:, starts[n] : starts[n] + tokens])
        assert same_bits(alone.final_state, final[n : n + 1])
