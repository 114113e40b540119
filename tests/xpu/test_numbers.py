"""The path through the adapter, with a reference for the operator, against the torch backend."""

from __future__ import annotations

from dataclasses import replace

import operator_reference
import pytest
import torch
from engine_steps import DIMS, DTYPE, FORMS, STEPS, call, meta_of

from gdn_dispatch import LayerSpec, warmup
from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.pools import PoolLayout
from gdn_dispatch.testing.trace import Setting, Trace

LIMIT = 2e-2


@pytest.fixture(autouse=True, scope="module")
def _bound(registered):
    with registered.running(operator_reference.run):
        yield


def both(step, form="apart", **given):
    """Outputs and pools of this backend and of torch."""
    results = []
    for backend in ("xpu", "torch"):
        meta = meta_of(step, backend=backend, **given)
        results.append(call(step, form, backend=backend, meta=meta))
    return results


def close(results):
    (ours, our_pools), (theirs, their_pools) = results
    assert relative_error(ours, theirs) <= LIMIT
    assert relative_error(our_pools.ssm, their_pools.ssm) <= LIMIT
    assert torch.equal(our_pools.conv, their_pools.conv)
    idle = ~theirs.flatten(1).any(dim=1)
    assert not ours[idle].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_the_torch_backends(name, form):
    close(both(STEPS[name], form))


def test_rows_that_read_one_slot_and_write_another():
    step = {
        "lengths": (1, 20, 3), "state_indices": [1, 2, 3],
        "initial_state_indices": [4, 2, -1], "has_initial_state": [True, False, True],
    }  # fmt: skip
    close(both(step))


def test_drafts_that_read_one_slot_and_write_another():
    close(both(STEPS["speculative"] | {
        "state_indices": [[0, 1, 2, 3], [4, 5, 6, 7], [8, -1, -1, -1]],
        "initial_state_indices": [[9, 10, 11, -1], [4, 5, 6, 7], [-1, 8, -1, -1]],
        "num_accepted_tokens": [3, 2, 2],
    }))  # fmt: skip


@pytest.mark.parametrize("name", ["mixed", "all kinds"])
def test_slots_that_the_device_alone_knows(name):
    step = {key: value for key, value in STEPS[name].items()
            if key in ("lengths", "speculative", "total_tokens")} | {"pad_slot": 0}  # fmt: skip
    slots = torch.tensor(STEPS[name]["state_indices"])
    slots = slots.where(slots != 0, -2)
    given = {"state_indices": slots}
    if "speculative" in step:
        given["num_accepted_tokens"] = torch.tensor(STEPS[name]["num_accepted_tokens"])
    close(both(step, **given))
    close(both(step, **given, initial_state_indices=slots.flip(1) if slots.ndim == 2 else slots))


@pytest.mark.parametrize("drafts", [0, 2])
def test_warming_up_runs_the_operator_and_leaves_the_pool_as_it_is(registered, drafts, monkeypatch):
    monkeypatch.setattr(registered.plugin, "casts_dt_bias", False)
    spec = LayerSpec(
        2, 4, 32, 32, DTYPE, torch.float32, dt_bias_dtype=DTYPE, num_speculative_tokens=drafts
    )
    with registered.running(operator_reference.run) as calls:
        steps = warmup(spec, "cpu", max_num_seqs=2, max_num_tokens=70, backend="xpu")
    assert len(calls) == steps > 4
    for seen in calls:
        assert not seen["ssm_state"].any()
        assert not seen["conv_state"].any()
        assert not seen["core_attn_out"].any()


WIDE = PoolLayout(state_v_first=True, channels_last=True, extra_columns=3, padding=24, dtype=DTYPE)
TRACES = {
    "projections of every kind of row": Setting(layout=WIDE, columns=4, projections="flat"),
    "interleaved": Setting(layout=WIDE, columns=4, projections="interleaved", pad_slot=0),
    "on the device": Setting(
        layout=WIDE, columns=4, on_device=True, pad_slot=0, projections="interleaved"
    ),
    "small states": Setting(layout=replace(WIDE, state_dtype=DTYPE), columns=4),
    "fp16, two taps": Setting(
        layout=replace(WIDE, dtype=torch.float16), columns=4, dims=replace(DIMS, W=2)
    ),
    "five taps, no bias": Setting(layout=WIDE, columns=4, bias=False, dims=replace(DIMS, W=5)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_random_serving(name):
    setting = TRACES[name]
    dims = DIMS if setting.dims == Setting().dims else setting.dims
    trace = Trace(replace(setting, dims=dims, chunk=64, checkpoints=False, tolerance=8e-2), seed=7)
    for _ in range(40):
        trace.step()
    assert {"draft", "prefill", "decode", "padding"} <= set(trace.counts)
