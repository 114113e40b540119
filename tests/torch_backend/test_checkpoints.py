"""Checkpoints to the bit, where the conformance kit asks for closeness."""

import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.layer_inputs import LayerDims, Tokens, random_layer, random_tokens
from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.pools import PoolLayout, Pools
from gdn_dispatch.testing.rule_inputs import starts_of

DIMS = LayerDims(H=1, HV=3, K=8, V=6, W=4)


def serve(pools, layer, tokens, lengths, **plan):
    starts = starts_of(lengths)
    meta = build_chunk_meta(plan_batch(starts, **plan), "cpu")
    return gdn_attention(**tokens.arguments, **layer.arguments, **pools.arguments, meta=meta)


def test_prompt_resumed_from_a_checkpoint_continues_bit_for_bit():
    layer, tokens = random_layer(DIMS), random_tokens(150, DIMS)
    pools = Pools(4, DIMS, PoolLayout())
    whole = serve(
        pools, layer, tokens, (150,), state_indices=[0], has_initial_state=[False],
        checkpoint_offsets=[[96]], checkpoint_indices=[[1]],
    )  # fmt: skip
    rest = serve(
        pools, layer, tokens.rows(96, 150), (54,), state_indices=[2], initial_state_indices=[1]
    )
    assert same_bits(rest, whole[96:])
    assert same_bits(pools.pages[2], pools.pages[0])


def test_checkpoints_of_packed_prompts_do_not_depend_on_their_neighbours():
    layer = random_layer(DIMS)
    prompt, neighbour = random_tokens(100, DIMS), random_tokens(45, DIMS, rng=1)
    both = Tokens(*(torch.cat(x) for x in zip(
        neighbour.arguments.values(), prompt.arguments.values(), strict=True)))  # fmt: skip
    alone, packed = (Pools(5, DIMS, PoolLayout()) for _ in range(2))
    serve(
        alone, layer, prompt, (100,), state_indices=[1], has_initial_state=[False],
        checkpoint_offsets=[[32, 96]], checkpoint_indices=[[2, 3]],
    )  # fmt: skip
    serve(
        packed, layer, both, (45, 100), state_indices=[4, 1], has_initial_state=[False] * 2,
        checkpoint_offsets=[[], [32, 96]], checkpoint_indices=[[], [2, 3]],
    )  # fmt: skip
    assert torch.equal(packed.pages[1:4], alone.pages[1:4])
