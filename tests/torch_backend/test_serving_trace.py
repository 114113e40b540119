"""Random serving, step after step, against the oracle of every request alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdn_dispatch.testing.conformance.serving import run
from gdn_dispatch.testing.layer_inputs import LayerDims
from gdn_dispatch.testing.pools import PoolLayout
from gdn_dispatch.testing.trace import Setting

FULL = Setting(
    dims=LayerDims(H=2, HV=4, K=8, V=12, W=4),
    layout=PoolLayout(extra_columns=4, channels_last=True, padding=24),
    columns=4,
    slots=48,
    pad_slot=0,
)
EVERYTHING = {"decode", "draft", "prefill", "checkpointed", "checkpoint", "resumed", "left",
              "moved", "padding", "empty"}  # fmt: skip


def test_two_thousand_steps():
    trace = run(FULL, seed=2024, steps=2000)
    assert set(trace.counts) == EVERYTHING
    assert min(trace.counts.values()) > 50, trace.counts


SMALL = LayerDims(H=1, HV=2, K=8, V=8, W=4)
WIDE = PoolLayout(extra_columns=3)
LOW = {"tolerance": 3e-2}
SETTINGS = {
    "plain": Setting(),
    "drafts": Setting(layout=WIDE, columns=4),
    "state_v_first": Setting(layout=PoolLayout(state_v_first=True, extra_columns=3), columns=3),
    "channels last, pages": Setting(
        layout=PoolLayout(channels_last=True, padding=40, extra_columns=2), columns=3
    ),
    "channels first, pages": Setting(layout=PoolLayout(padding=8, extra_columns=5), columns=2),
    "slots on the device": Setting(layout=WIDE, columns=4, on_device=True),
    "slots on the device, one column": Setting(on_device=True, pad_slot=0),
    "pad_slot 0": Setting(pad_slot=0, layout=WIDE, columns=4),
    "flat projections": Setting(projections="flat", dims=LayerDims(H=2, HV=6, K=8, V=8, W=4)),
    "interleaved projections": Setting(
        projections="interleaved", dims=LayerDims(H=2, HV=6, K=8, V=12, W=4)
    ),
    "no bias, no activation": Setting(bias=False, options={"activation": None}),
    "swish, scale, negative eigenvalues": Setting(
        options={"activation": "swish", "scale": 0.5, "allow_neg_eigval": True}
    ),
    "bf16 pool": Setting(
        layout=PoolLayout(state_dtype=torch.bfloat16, extra_columns=3), columns=4, **LOW
    ),
    "bf16 pool, v first": Setting(
        layout=PoolLayout(state_dtype=torch.bfloat16, state_v_first=True), **LOW
    ),
    "fp16 pool": Setting(layout=PoolLayout(state_dtype=torch.float16), **LOW),
    "bf16": Setting(layout=PoolLayout(dtype=torch.bfloat16, extra_columns=3), columns=4, **LOW),
    "fp16, bf16 pool": Setting(
        layout=PoolLayout(dtype=torch.float16, state_dtype=torch.bfloat16), **LOW
    ),
    **{
        f"W={W}": Setting(
            dims=LayerDims(H=1, HV=2, K=8, V=8, W=W),
            layout=PoolLayout(extra_columns=3, channels_last=W % 2 == 0), columns=4,
        )
        for W in (1, 2, 3, 5)
    },
    "one key head for three": Setting(dims=LayerDims(H=1, HV=3, K=7, V=5, W=4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", [1, 2])
def test_setting(name, seed):
    run(SETTINGS[name], seed, steps=40)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(SETTINGS)),
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 30),
)
def test_any_short_trace(name, seed, steps):
    run(SETTINGS[name], seed, steps)
