"""A checkpoint is the state a truncated prompt would have left, and continues like it."""

import pytest
import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.layer_inputs import LayerDims, Tokens, random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.pools import PoolLayout, Pools
from gdn_dispatch.testing.rule_inputs import starts_of

CHUNK = 32
DIMS = LayerDims(H=1, HV=3, K=8, V=6, W=4)
LENGTHS = (200, 64, 1, 33, 0, 96)
OFFSETS = ([32, 64, 160, 192], [64], [], [32], [], [32, 96])
LAYOUTS = {
    "plain": PoolLayout(),
    "v first": PoolLayout(state_v_first=True),
    "pages": PoolLayout(channels_last=True, extra_columns=2, padding=16),
    "bf16 states": PoolLayout(state_dtype=torch.bfloat16),
}


def serve(pools, layer, tokens, lengths, **plan):
    starts = starts_of(lengths)
    meta = build_chunk_meta(plan_batch(starts, **plan), "cpu")
    return gdn_attention(**tokens.arguments, **layer.arguments, **pools.arguments, meta=meta)


def fill(pools, slots):
    """Give these slots a random state to start from."""
    for slot in slots:
        pools.conv[slot] = torch.randn(pools.conv[slot].shape)
        pools.ssm[slot] = torch.randn(pools.ssm[slot].shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("from_state", [False, True], ids=["from zero", "from a state"])
def test_checkpoint_equals_the_truncated_prompt(layout, from_state):
    layer, tokens = random_layer(DIMS), random_tokens(sum(LENGTHS), DIMS)
    N = len(LENGTHS)
    slots, kept = list(range(N)), iter(range(N, 100))
    places = [[next(kept) for _ in offsets] for offsets in OFFSETS]
    pools = Pools(N + sum(map(len, OFFSETS)), DIMS, LAYOUTS[layout])
    if from_state:
        fill(pools, slots)
    before = pools.snapshot()
    serve(
        pools, layer, tokens, LENGTHS, state_indices=slots, has_initial_state=[from_state] * N,
        checkpoint_offsets=list(OFFSETS), checkpoint_indices=places,
    )  # fmt: skip

    starts = starts_of(LENGTHS)
    for n, offsets in enumerate(OFFSETS):
        for offset, place in zip(offsets, places[n], strict=True):
            alone = Pools(pools.pages.shape[0], DIMS, LAYOUTS[layout])
            alone.pages.copy_(before)
            truncated = tokens.rows(starts[n], starts[n] + offset)
            serve(
                alone, layer, truncated, (offset,), state_indices=[n],
                has_initial_state=[from_state],
            )  # fmt: skip
            assert same_bits(pools.state(place), alone.state(n))
            assert same_bits(pools.line(place, DIMS.W - 1), alone.line(n, DIMS.W - 1))


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


def test_checkpoint_at_the_end_is_the_final_state():
    layer, tokens = random_layer(DIMS), random_tokens(CHUNK, DIMS)
    pools = Pools(2, DIMS, PoolLayout())
    serve(
        pools, layer, tokens, (CHUNK,), state_indices=[0], has_initial_state=[False],
        checkpoint_offsets=[[CHUNK]], checkpoint_indices=[[1]],
    )  # fmt: skip
    assert same_bits(pools.pages[0], pools.pages[1])
    _, history, state = layer.reference(tokens)
    assert torch.equal(pools.line(1, DIMS.W - 1), history)
    assert relative_error(pools.state(1), state) < 1e-6


def test_checkpoint_in_a_padding_slot_is_dropped():
    layer, tokens = random_layer(DIMS), random_tokens(70, DIMS)
    pools = Pools(3, DIMS, PoolLayout())
    serve(
        pools, layer, tokens, (70,), state_indices=[1], has_initial_state=[False], pad_slot=0,
        checkpoint_offsets=[[32, 64]], checkpoint_indices=[[0, -1]],
    )  # fmt: skip
    untouched = Pools(3, DIMS, PoolLayout()).pages
    assert torch.equal(pools.pages[[0, 2]], untouched[[0, 2]])


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
