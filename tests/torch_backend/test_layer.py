"""What the layer core keeps beyond the conformance kit."""

import pytest
import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.layer_inputs import LayerDims, random_layer, random_tokens
from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.poison import with_poisoned_memory
from gdn_dispatch.testing.pools import PoolLayout, Pools
from gdn_dispatch.testing.trace import Setting, Trace
from tests.support import public_calls

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


def test_a_shorter_step_ignores_the_rest_of_the_engines_buffers():
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
