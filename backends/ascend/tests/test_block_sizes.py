"""The attention block on Ascend is vllm-ascend's, found here by counting instead of dividing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from gdn_dispatch_ascend.meta import BLOCK_SIZE_MULTIPLE, CHUNK_SIZE
from gdn_dispatch_ascend.plugin import backend_info

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.plan.block_ascend import vllm_ascend_block_size
from gdn_dispatch.plan.block_sizes import AttentionShape, StateShape

# H, HV, key-value heads, state: as in Qwen3-Next and the sizes of Qwen3.5; K = V = 128
FAMILY = [
    (16, 32, 2, "bfloat16"),
    (16, 32, 4, "float32"),
    (16, 32, 2, "float32"),
    (16, 48, 4, "float32"),
    (16, 64, 2, "float32"),
]


def counted(state, keys_per_token):
    """The first multiple of 128 tokens whose keys fill a state; None where none does exactly."""
    tokens = 128
    while tokens * keys_per_token < state:
        tokens += 128
    return tokens if tokens * keys_per_token == state else None


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize(("H", "HV", "kv_heads", "dtype"), FAMILY)
def test_the_family(H, HV, kv_heads, dtype, tp):
    state = HV // tp * 128 * 128 * (4 if dtype == "float32" else 2)
    keys = max(1, kv_heads // tp) * 256 * 2
    conv = 3 * (2 * H * 128 + HV * 128) // tp * 2
    shapes = StateShape(H, HV, 128, 128, state_dtype=dtype), AttentionShape(kv_heads, 256)
    block = counted(state, keys)
    if block is None:
        with pytest.raises(InvalidArgumentError, match="a multiple of"):
            vllm_ascend_block_size(*shapes, tp=tp)
        return
    sizes = vllm_ascend_block_size(*shapes, tp=tp)
    assert (sizes.block_size, sizes.page_bytes) == (block, block * 2 * keys + conv)
    assert sizes.block_size % BLOCK_SIZE_MULTIPLE == 0


def test_random_shapes():
    rng = random.Random(0)
    found = set()
    for _ in range(3000):
        tp = rng.choice([1, 2, 4])
        heads, times = tp * rng.choice([1, 2, 4, 8]), rng.choice([1, 2, 3, 4])
        K, V = rng.choice([64, 96, 128]), rng.choice([64, 128, 256])
        kv_heads, head_dim = rng.choice([1, 2, 4, 8]), rng.choice([64, 128, 256])
        drafts = rng.choice([0, 1, 3])
        state = heads * times // tp * K * V * 2
        keys = max(1, kv_heads // tp) * head_dim * 2
        shapes = StateShape(heads, heads * times, K, V), AttentionShape(kv_heads, head_dim)
        block = counted(state, keys)
        found.add(block is None)
        if block is None:
            with pytest.raises(InvalidArgumentError):
                vllm_ascend_block_size(*shapes, tp=tp, num_speculative_tokens=drafts)
            continue
        sizes = vllm_ascend_block_size(*shapes, tp=tp, num_speculative_tokens=drafts)
        conv = (3 + drafts) * (2 * heads * K + heads * times * V) // tp * 2
        assert (sizes.block_size, sizes.page_bytes) == (block, block * 2 * keys + conv)
        assert sizes.steps[-2].name == "page"
    assert found == {True, False}


def test_what_is_declared():
    """A block is whole chunks, so that a state kept at its end is one the chunk rule has."""
    assert backend_info().block_size_multiple == BLOCK_SIZE_MULTIPLE == 128
    assert BLOCK_SIZE_MULTIPLE % CHUNK_SIZE == 0


def test_another_multiple_is_kept_to():
    shapes = StateShape(16, 32, 128, 128), AttentionShape(2, 256)
    assert vllm_ascend_block_size(*shapes, backend_multiple=256).block_size == 1024
    small = replace(shapes[0], num_heads=2, num_v_heads=4)
    assert vllm_ascend_block_size(small, shapes[1]).block_size == 128
    with pytest.raises(InvalidArgumentError, match="256 tokens"):
        vllm_ascend_block_size(small, shapes[1], backend_multiple=256)
