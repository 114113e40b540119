"""The layer core: memory, captured steps, and the edges that a trace seldom meets."""

import pytest
import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from tests.support import public_calls
from gdn_dispatch.testing.layer_inputs import LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.poison import with_poisoned_memory
from gdn_dispatch.testing.pools import PoolLayout, Pools
from gdn_dispatch.testing.trace import Setting, Trace

DIMS = LayerDims(H=2, HV=4, K=8, V=6, W=4)
SETTINGS = {
    "fp32": Setting(dims=DIMS),
    "drafts, bf16 pool": Setting(
        layout=PoolLayout(extra_columns=3, state_dtype=torch.bfloat16), columns=4, tolerance=3e-2
    ),
    "bf16, v first, channels last": Setting(
        layout=PoolLayout(dtype=torch.bfloat16, state_v_first=True, channels_last=True),
        tolerance=3e-2,
    ),
    "interleaved projections": Setting(dims=DIMS, projections="interleaved"),
}


def serve(pools, layer, tokens, starts, out=None, **plan):
    meta = build_chunk_meta(plan_batch(starts, **plan), "cpu")
    return gdn_attention(
        **tokens.arguments, **layer.arguments, **pools.arguments, meta=meta, out=out
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_uninitialised_is_read(name):
    def run():
        trace = Trace(SETTINGS[name], seed=5)
        for _ in range(25):
            trace.step()

    with_poisoned_memory(run)


def test_output_is_allocated_where_none_is_given():
    layer, tokens = random_layer(DIMS), random_tokens(40, DIMS)
    first, second = (Pools(2, DIMS, PoolLayout()) for _ in range(2))
    step = {"state_indices": [1, 0], "has_initial_state": [False, False], "total_tokens": 40}
    out = torch.full((40, DIMS.HV, DIMS.V), torch.nan)
    assert serve(first, layer, tokens, [0, 30, 38], out, **step) is out
    assert same_bits(serve(second, layer, tokens, [0, 30, 38], **step), out)
    assert not out[38:].any()


def test_inference_mode_may_come_and_go():
    layer, tokens = random_layer(DIMS), random_tokens(40, DIMS)
    results = []
    for inference in (False, True, False):
        pools = Pools(1, DIMS, PoolLayout())
        with torch.inference_mode(inference):
            output = serve(
                pools, layer, tokens, [0, 40], state_indices=[0], has_initial_state=[False]
            )
        results.append(output.clone())
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_no_rows_and_no_tokens():
    layer, pools = random_layer(DIMS), Pools(2, DIMS, PoolLayout())
    before = pools.snapshot()
    assert serve(pools, layer, random_tokens(0, DIMS), [0], state_indices=[]).shape[0] == 0
    empty_rows = serve(pools, layer, random_tokens(0, DIMS), [0, 0], state_indices=[1])
    assert empty_rows.shape == (0, DIMS.HV, DIMS.V)
    no_rows = {"state_indices": [], "total_tokens": 3}
    assert not serve(pools, layer, random_tokens(3, DIMS), [0], **no_rows).any()
    assert torch.equal(pools.pages, before)


def test_a_row_may_read_one_slot_and_write_another():
    layer, tokens = random_layer(DIMS), random_tokens(41, DIMS)
    pools = Pools(4, DIMS, PoolLayout())
    serve(pools, layer, tokens.rows(0, 40), [0, 40], state_indices=[0], has_initial_state=[False])
    source = pools.pages[0].clone()
    for length, target in ((1, 1), (1, 0)):
        got = serve(
            pools, layer, tokens.rows(40, 40 + length), [0, length], state_indices=[target],
            initial_state_indices=[0],
        )  # fmt: skip
        expected, _, state = layer.reference(tokens)
        assert relative_error(got, expected[40:]) < 1e-6
        assert relative_error(pools.state(target), state) < 1e-6
        if target:
            assert torch.equal(pools.pages[0], source)


@pytest.mark.parametrize("number", ["-1", "pad_slot"])
def test_a_padding_read_slot_means_zeros(number):
    layer, tokens = random_layer(DIMS), random_tokens(35, DIMS)
    pools = Pools(3, DIMS, PoolLayout())
    read = {"-1": -1, "pad_slot": 0}[number]
    got = serve(
        pools, layer, tokens, [0, 34, 35], state_indices=[1, 2],
        initial_state_indices=[read, read], pad_slot=0,
    )  # fmt: skip
    for rows in (slice(0, 34), slice(34, 35)):
        expected, _, _ = layer.reference(tokens.rows(rows.start, rows.stop))
        assert relative_error(got[rows], expected) < 1e-6


class TestUpdatedMetadata:
    """A captured step: the same metadata object, rewritten; the engine's buffers change too."""

    def test_a_shorter_step_ignores_the_rest_of_the_engines_buffers(self):
        slots = torch.tensor([3, 1, -1, 5])
        meta = build_chunk_meta(plan_batch([0, 1, 2, 3, 4]), "cpu", state_indices=slots)
        call = public_calls.attention() | {"meta": meta}
        for name in ("mixed_qkv", "a", "b", "out"):
            call[name] = call[name][:4]
        gdn_attention(**call)
        meta.update_(plan_batch([0, 1, 2], total_tokens=4))
        slots[0], slots[1] = 0, -1
        before = call["ssm_state"].clone()
        out = gdn_attention(**call)
        assert out[0].any()
        assert not out[1:].any()
        changed = (call["ssm_state"] != before).flatten(1).any(1)
        assert changed.tolist() == [True] + [False] * 6

    def test_slots_of_an_engine_are_read_when_the_layer_runs(self):
        slots, has_state = torch.tensor([0]), torch.tensor([False])
        meta = build_chunk_meta(
            plan_batch([0, 1]), "cpu", state_indices=slots, has_initial_state=has_state
        )
        layer, tokens = random_layer(DIMS), random_tokens(1, DIMS)
        pools = Pools(2, DIMS, PoolLayout())
        for slot in (0, 1):
            slots[0] = slot
            gdn_attention(**tokens.arguments, **layer.arguments, **pools.arguments, meta=meta)
        assert torch.equal(pools.pages[0], pools.pages[1])
