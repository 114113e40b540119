"""Decode, speculative decode and the plain recurrence, against the fp64 recurrence."""

import math

import pytest
import torch

from gdn_dispatch.testing.conformance.serving import run
from gdn_dispatch.testing.layer_inputs import LayerDims
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.testing.pools import PoolLayout
from gdn_dispatch.testing.rule_inputs import (
    Dims,
    inputs_with,
    mild_gates,
    oracle,
    random_states,
)
from gdn_dispatch.testing.trace import Setting
from gdn_dispatch.torch_backend.reference import (
    reference_gated_delta_rule,
    reference_gates,
    reference_gdn_layer,
)
from gdn_dispatch.triton_kernels.steps import StepConfig, recurrent_rule, recurrent_sequences
from tests.triton.step_inputs import DEVICE, STEP, rows_of, slots_of, steps_backend

__all__ = ["steps_backend"]
WIDE = PoolLayout(extra_columns=3)
LOW = {"tolerance": 3e-2}
SETTINGS = {
    "plain": Setting(chunk=16, checkpoints=False),
    "drafts, pad_slot 0": Setting(
        layout=WIDE, columns=4, pad_slot=0, chunk=16, checkpoints=False
    ),
    "slots on the device": Setting(
        layout=WIDE, columns=4, on_device=True, chunk=16, checkpoints=False
    ),
    "v first, channels last, pages": Setting(
        dims=LayerDims(H=1, HV=3, K=7, V=5, W=5),
        layout=PoolLayout(state_v_first=True, channels_last=True, padding=40, extra_columns=2),
        columns=3, chunk=16, checkpoints=False,
    ),
    "W=2, fp16": Setting(
        dims=LayerDims(H=1, HV=2, K=8, V=8, W=2), options={"allow_neg_eigval": True},
        layout=PoolLayout(dtype=torch.float16, state_dtype=torch.bfloat16, extra_columns=3),
        columns=4, chunk=16, checkpoints=False, **LOW,
    ),
    "bf16": Setting(
        dims=LayerDims(H=1, HV=2, K=8, V=8, W=4), layout=PoolLayout(
            dtype=torch.bfloat16, state_dtype=torch.bfloat16, state_v_first=True, extra_columns=3
        ), columns=4, chunk=16, checkpoints=False, **LOW,
    ),
    "W=3, fp16 pool, no bias": Setting(
        dims=LayerDims(H=2, HV=2, K=16, V=12, W=3), bias=False, options={"activation": None},
        layout=PoolLayout(state_dtype=torch.float16, state_v_first=True), chunk=16,
        checkpoints=False, **LOW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.usefixtures("steps_backend")
def test_random_serving(name):
    setting = SETTINGS[name]
    steps = 10 if DEVICE.type == "cpu" else 60
    run(Setting(**{**vars(setting), "device": DEVICE}), 1, steps)


DIMS = {
    "one to one": Dims(2, 2, 16, 16),
    "one for three, odd": Dims(1, 3, 7, 13),
    "one for eight": Dims(1, 8, 32, 8),
    "wide keys": Dims(1, 2, 100, 40),
}


def sequences(inputs, lengths, config=STEP, **options):
    q, k, v, g, beta = (x.to(DEVICE) for x in inputs)
    out = torch.full(v.shape, torch.nan, dtype=v.dtype, device=DEVICE)
    options = {"scale": k.shape[-1] ** -0.5, "initial_state": None, "final_state": None,
               "state_v_first": False, **options}  # fmt: skip
    recurrent_sequences(q, k, v, g, beta, rows_of(lengths), out, config, **options)
    return out


@pytest.mark.parametrize("v_first", [False, True])
@pytest.mark.parametrize("name", DIMS)
def test_sequences(name, v_first):
    dims, lengths = DIMS[name], (2, 0, 3, 1, 0)
    inputs = inputs_with(mild_gates, sum(lengths), dims, seed=3)
    inputs.g[3, 0], inputs.g[4] = -1e4, -math.inf
    states = random_states(len(lengths), dims)
    given = states.transpose(2, 3).contiguous() if v_first else states.clone()
    final = torch.full_like(given, torch.nan).to(DEVICE)
    for config in (StepConfig(4, 1, values_last=StepConfig(16, 1)), StepConfig(32, 2, 4)):
        out = sequences(
            inputs, lengths, config, initial_state=given.to(DEVICE), final_state=final,
            state_v_first=v_first,
        ).cpu()  # fmt: skip
        got = final.cpu().transpose(2, 3) if v_first else final.cpu()
        expected = oracle(inputs, lengths, states)
        assert relative_error(out, torch.cat([o for o, _ in expected])) < 2e-6
        assert relative_error(got, torch.stack([s for _, s in expected])) < 2e-6


def test_sequences_from_zero_without_final_state_fp16():
    dims, lengths = Dims(1, 2, 16, 16), (4, 2)
    inputs = inputs_with(mild_gates, 6, dims).to(torch.float16)
    expected = torch.cat([o for o, _ in oracle(inputs, lengths)])
    assert relative_error(sequences(inputs, lengths).cpu(), expected) < 1e-3


def test_sequences_raw_gates_strides_and_norm():
    T, rng = 5, generator(5)
    fused = torch.randn(T, 2 * 2 * 16 + 4 * 8 + 8, generator=rng).to(DEVICE)
    q, k = (fused[:, i * 32 : (i + 1) * 32].view(T, 2, 16) for i in (0, 1))
    v, raw, logit = fused[:, 64:96].view(T, 4, 8), fused[:, 96:100], fused[:, 100:104]
    A_log, dt_bias = torch.rand(4, generator=rng), torch.randn(4, generator=rng)
    raw[3] = 300.0
    out = torch.full((T, 4, 8), torch.nan, device=DEVICE)
    final = torch.full((1, 4, 8, 16), torch.nan, device=DEVICE)
    recurrent_sequences(
        q, k, v, raw, logit, rows_of((T,)), out, StepConfig(8, 1), scale=0.3, initial_state=None,
        final_state=final, state_v_first=True, A_log=A_log.to(DEVICE), dt_bias=dt_bias.to(DEVICE),
        use_qk_l2norm=True, beta_is_logit=True, allow_neg_eigval=True,
    )  # fmt: skip
    g, beta = reference_gates(raw.cpu(), logit.cpu(), A_log, dt_bias, allow_neg_eigval=True)
    expected, state = reference_gated_delta_rule(
        q.cpu(), k.cpu(), v.cpu(), g, beta, scale=0.3, use_qk_l2norm=True
    )
    assert relative_error(out.cpu(), expected) < 2e-6
    assert relative_error(final[0].cpu().transpose(1, 2), state) < 2e-6


def layer(T, dims, dtype, seed=0):
    """conv, a, b, A_log, dt_bias, on the CPU."""
    rng = generator(seed)
    return (
        *(torch.randn(T, n, generator=rng).to(dtype)
          for n in (2 * dims.H * dims.K + dims.HV * dims.V, dims.HV, dims.HV)),
        torch.rand(dims.HV, generator=rng),
        torch.randn(dims.HV, generator=rng),
    )  # fmt: skip


def alone(inputs, dims, token, state):
    """Output and state of one token, by the oracle; the convolution changes nothing."""
    conv, a, b, A_log, dt_bias = inputs
    out, _, after = reference_gdn_layer(
        conv[token : token + 1], a[token : token + 1], b[token : token + 1],
        conv_weight=torch.ones(conv.shape[1], 1), conv_bias=None, A_log=A_log, dt_bias=dt_bias,
        num_heads=dims.H, head_dim_k=dims.K, head_dim_v=dims.V,
        initial_state=state, activation=None,
    )  # fmt: skip
    return out, after


@pytest.mark.parametrize("pool_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("v_first", [False, True])
def test_decode_rows_of_all_kinds(v_first, pool_dtype):
    """Wide tiles; padding that holds NaN; read and write apart; int64 slots of a wider table."""
    dims = Dims(1, 2, 64, 64)
    dtype = torch.float32 if pool_dtype == torch.float32 else torch.float16
    inputs = layer(8, dims, dtype)
    pool = torch.randn(10, 2, 64, 64, generator=generator(9)).to(pool_dtype)
    before = pool.clone()
    pool = (pool.transpose(2, 3).contiguous() if v_first else pool).to(DEVICE)
    #        plain  apart  zero  pads  read pads  no tokens, pool's end, beyond it
    writes = [3, 4, 5, -1, 6, 7, 9, 10]
    reads = [3, 8, 5, 1, 0, 7, 9, 1]
    has = [True, True, False, True, True, True, True, True]
    table = torch.full((8, 5), 77, dtype=torch.int64, device=DEVICE)
    table[:, 0] = torch.tensor(writes)
    for x in inputs[:3]:
        x[3] = x[7] = torch.nan
    lengths = [1, 1, 1, 1, 1, 0, 1, 1]
    rows = rows_of(lengths, starts=list(range(8)), tail=2)
    slots = slots_of(table[:, :1], [[r, 55] for r in reads], has=has, pad_slot=0)
    out = torch.full((8, 2, 64), torch.nan, dtype=dtype, device=DEVICE)
    recurrent_rule(
        *(x.to(DEVICE) for x in inputs), rows, slots, pool, out, StepConfig(32, 2),
        num_heads=1, scale=64**-0.5, state_v_first=v_first,
    )  # fmt: skip
    out, after = out.cpu(), (pool.transpose(2, 3) if v_first else pool).cpu()
    close = 2e-6 if dtype == torch.float32 else 2e-3
    live = {0: 3, 1: 8, 2: None, 4: None, 6: 9}
    for row, source in live.items():
        expected, state = alone(inputs, dims, row, None if source is None else before[source])
        assert relative_error(out[row], expected[0]) < close, row
        assert relative_error(after[writes[row]], state) < close, row
        before[writes[row]] = after[writes[row]]
    assert not out[[3, 7]].any()
    assert out[5].isnan().all()
    assert torch.equal(before, after)


def test_drafts_keep_the_state_after_every_token():
    dims = Dims(1, 2, 16, 16)
    inputs = layer(7, dims, torch.float32)
    pool = torch.randn(12, 2, 16, 16, generator=generator(2))
    before, pool = pool.clone(), pool.to(DEVICE)
    slots = slots_of([[1, 2, 3], [4, -1, 5], [-1, 6, 7]], [[8, 9, 10], [4, 5, 6], [1, 2, 3]],
                     accepted=[2, 99, 1])  # fmt: skip
    out = torch.full((7, 2, 16), torch.nan, device=DEVICE)
    recurrent_rule(
        *(x.to(DEVICE) for x in inputs), rows_of([3, 3, 1]), slots, pool, out, StepConfig(8, 1),
        num_heads=1, scale=0.25, state_v_first=False, speculative=True,
    )  # fmt: skip
    out, after = out.cpu(), pool.cpu()
    for first, source, writes in ((0, 9, (1, 2, 3)), (3, 6, (4, -1, 5))):
        state = before[source].double()
        for t, slot in enumerate(writes):
            expected, state = alone(inputs, dims, first + t, state)
            assert relative_error(out[first + t], expected[0]) < 2e-6
            if slot >= 0:
                assert relative_error(after[slot], state) < 2e-6
    assert not out[6].any()
    unchanged = [0, 6, 7, 8, 9, 10, 11]
    assert torch.equal(after[unchanged], before[unchanged])


def test_nothing_to_do():
    dims = Dims(1, 2, 16, 16)
    inputs = layer(0, dims, torch.float32)
    pool = torch.ones(2, 2, 16, 16, device=DEVICE)
    out = torch.empty(0, 2, 16, device=DEVICE)
    for rows in (rows_of([]), rows_of([0, 0])):
        recurrent_rule(
            *(x.to(DEVICE) for x in inputs), rows, slots_of([0, 1]), pool, out, StepConfig(8, 1),
            num_heads=1, scale=1.0, state_v_first=False,
        )  # fmt: skip
    assert (pool == 1).all()
