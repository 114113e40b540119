"""Whole layers in Triton's interpreter, at the head dims of real models, against fp64.

The relative error is that of fp32 throughout: 1e-5 of outputs and states, and histories to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import plugins
import pytest
import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.conformance.serving import run
from gdn_dispatch.testing.layer_inputs import LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.testing.pools import PoolLayout, Pools
from gdn_dispatch.testing.trace import Setting

LIMIT = 1e-5
DIMS = LayerDims(H=1, HV=2, K=128, V=128, W=4)
SMALL = LayerDims(H=2, HV=4, K=64, V=64, W=4)


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with plugins.registered(plugins.interpreted(plugins.DEFAULT)):
        yield


@dataclass
class Row:
    """A row of a step: its tokens, whether its slot holds a state, and its drafts."""

    length: int
    continued: bool = False
    accepted: int = 0  # of the last step; 0: not speculative
    padding: bool = False


def serve(rows, *, dims=DIMS, state_v_first=True, extra=0, seed=0):
    """One step over pools of random states; every row is compared with its own oracle."""
    columns = 4
    layout = PoolLayout(
        state_v_first=state_v_first, channels_last=True, extra_columns=columns - 1, padding=40
    )
    rng, n = generator(seed), len(rows)
    layer = random_layer(dims, seed=seed)
    pools = Pools(n * columns + 1, dims, layout)
    pools.ssm.copy_(torch.randn(pools.ssm.shape, generator=rng))
    pools.conv.copy_(torch.randn(pools.conv.shape, generator=rng))
    before = pools.ssm.clone(), pools.conv.clone()
    slots = [[-1] * columns if row.padding else [1 + i * columns + j for j in range(columns)]
             for i, row in enumerate(rows)]  # fmt: skip
    total = sum(row.length for row in rows)
    tokens = random_tokens(total + extra, dims, rng=rng)
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + row.length)
    speculative = any(row.accepted for row in rows)
    plan = plan_batch(
        starts,
        state_indices=torch.tensor(slots, dtype=torch.int32).view(n, columns),
        has_initial_state=[row.continued for row in rows],
        speculative=[row.accepted > 0 for row in rows] if speculative else None,
        num_accepted_tokens=[max(row.accepted, 1) for row in rows] if speculative else None,
        total_tokens=total + extra,
    )
    out = torch.full((total + extra, dims.HV, dims.V), torch.nan)
    gdn_attention(
        **tokens.arguments, **layer.arguments, **pools.arguments,
        meta=build_chunk_meta(plan, "cpu"), out=out,
    )  # fmt: skip

    touched = set()
    for row, mine, start in zip(rows, slots, starts, strict=False):
        got = out[start : start + row.length]
        if row.padding or not row.length:
            assert not got.any()
            continue
        first = max(row.accepted, 1) - 1
        history, state = None, None
        if row.continued:
            history = before[1][mine[0], :, first : first + dims.W - 1]
            state = before[0][mine[first]]
            state = state.transpose(1, 2) if state_v_first else state
        stops = range(1, row.length + 1) if row.accepted else [row.length]
        for stop in stops:
            output, line, after = layer.reference(tokens.rows(start, start + stop), history, state)
            slot = mine[stop - 1] if row.accepted else mine[0]
            assert relative_error(pools.state(slot), after) <= LIMIT
            at = stop - 1 if row.accepted else 0
            assert torch.equal(pools.conv[mine[0], :, at : at + dims.W - 1], line)
            touched.add(slot)
        assert relative_error(got, output) <= LIMIT
    assert not out[total:].any()
    for slot in set(range(pools.ssm.shape[0])) - touched:
        assert torch.equal(pools.ssm[slot], before[0][slot])


@pytest.mark.parametrize("state_v_first", [True, False])
def test_packed(state_v_first):
    lengths = (70, 2, 130, 64, 33)
    serve([Row(n, i % 2 == 1) for i, n in enumerate(lengths)], state_v_first=state_v_first)


def test_mixed():
    serve(
        [Row(1, True), Row(66), Row(0, True), Row(1, True), Row(3, padding=True), Row(3, True),
         Row(1, padding=True), Row(0)],
        extra=5,
    )  # fmt: skip


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0), (0, 5, 0), (5, 0, 0, 67)], ids=str)
def test_empty(lengths):
    serve([Row(n, True) for n in lengths], extra=2)


@pytest.mark.parametrize("dims", [DIMS, SMALL], ids=["K = 128", "K = 64"])
def test_long(dims):
    serve([Row(700, True)], dims=dims)


def test_many_value_heads():
    serve([Row(70, True), Row(1, True)], dims=LayerDims(H=2, HV=8, K=64, V=64, W=4))


@pytest.mark.parametrize("state_v_first", [True, False])
def test_speculative(state_v_first):
    serve(
        [Row(4, True, accepted=1), Row(1, True), Row(2, True, accepted=4), Row(3, accepted=1),
         Row(4, padding=True, accepted=2), Row(65), Row(1, True, accepted=3)],
        state_v_first=state_v_first, extra=1,
    )  # fmt: skip


@pytest.mark.parametrize("W", [2, 3, 5, 8])
def test_widths_of_the_convolution(W):
    dims = LayerDims(H=1, HV=2, K=64, V=64, W=W)
    serve([Row(n, True) for n in (1, 2, W - 1, W, 70)] + [Row(2, True, accepted=2)], dims=dims)


def test_random_serving():
    layout = PoolLayout(state_v_first=True, channels_last=True, padding=40, extra_columns=3)
    run(Setting(layout=layout, columns=4, chunk=64, pad_slot=0, tolerance=1e-5), 7, 12)
