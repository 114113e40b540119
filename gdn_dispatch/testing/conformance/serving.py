"""Random serving, step after step, against the oracle of every request alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.base import Conformance, layer_test
from gdn_dispatch.testing.pools import PoolLayout
from gdn_dispatch.testing.trace import Setting, Trace

WIDE = PoolLayout(extra_columns=3)
STEPS = 60
PLAIN = {
    "plain": Setting(),
    "pad_slot 0": Setting(pad_slot=0),
    "slots on the device": Setting(on_device=True),
    "channels last, pages": Setting(layout=PoolLayout(channels_last=True, padding=40)),
    "negative eigenvalues": Setting(options={"allow_neg_eigval": True, "scale": 0.5}),
}
DRAFTS = {
    "plain": Setting(layout=WIDE, columns=4),
    "slots on the device, pad_slot 0": Setting(layout=WIDE, columns=4, on_device=True, pad_slot=0),
    "pages": Setting(layout=PoolLayout(channels_last=True, padding=24, extra_columns=4), columns=4),
}


def adapted(subject, setting):
    """The setting in what the subject declares, as exact as its dtypes allow."""
    dims = setting.dims
    dims = subject.layer_dims(dims.H, dims.HV, dims.K, dims.V, dims.W)
    layout = replace(
        setting.layout, dtype=subject.dtype, state_dtype=subject.state_dtype, **subject.pool_layout
    )
    limit = max(subject.tolerance(), subject.tolerance(subject.state_dtype))
    return replace(
        setting, dims=dims, layout=layout, tolerance=4 * limit, device=subject.device,
        chunk=subject.info.chunk_size,
        checkpoints=Feature.CHECKPOINTS in subject.capability.features,
    )  # fmt: skip


def run(setting, seed, steps=STEPS):
    trace = Trace(setting, seed)
    for number in range(steps):
        try:
            trace.step()
        except AssertionError as error:
            raise AssertionError(f"step {number}: {error}") from error
    return trace


class ServingTests(Conformance):
    """The random trace."""

    @pytest.mark.parametrize("name", PLAIN)
    @pytest.mark.parametrize("seed", [1, 2])
    @layer_test()
    def test_random_serving(self, subject, name, seed):
        run(adapted(subject, PLAIN[name]), seed)

    @pytest.mark.parametrize("name", DRAFTS)
    @pytest.mark.parametrize("seed", [1, 2])
    @layer_test(Feature.SPECULATIVE)
    def test_random_serving_with_drafts(self, subject, name, seed):
        run(adapted(subject, DRAFTS[name]), seed)

    @layer_test(Feature.STATE_V_FIRST)
    def test_random_serving_with_v_first(self, subject):
        setting = adapted(subject, PLAIN["plain"])
        run(replace(setting, layout=replace(setting.layout, state_v_first=True)), seed=3)

    @pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float16], ids=str)
    @layer_test()
    def test_random_serving_with_small_states(self, subject, state_dtype):
        setting = adapted(subject, PLAIN["plain"])
        layout = replace(setting.layout, state_dtype=state_dtype)
        limit = 4 * subject.tolerance(state_dtype)
        run(replace(setting, layout=layout, tolerance=max(limit, setting.tolerance)), seed=4)

    @pytest.mark.parametrize("projections", ["flat", "interleaved"])
    @layer_test(Feature.RAW_PROJECTIONS)
    def test_random_serving_from_projections(self, subject, projections):
        run(replace(adapted(subject, PLAIN["plain"]), projections=projections), seed=5)
