"""A checkpoint is the state a truncated prompt would have left, and continues like it."""

from __future__ import annotations

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.base import Conformance, layer_test, needs_state_layout
from gdn_dispatch.testing.layer_inputs import random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.rule_inputs import starts_of


class CheckpointTests(Conformance):
    """States kept on the way, for prefix caching."""

    def case(self, subject, total):
        dims = subject.layer_dims(H=1, HV=3, K=8, V=6)
        layer = random_layer(dims, dtype=subject.dtype)
        return dims, layer, random_tokens(total, dims, dtype=subject.dtype)

    @needs_state_layout
    @pytest.mark.parametrize("from_state", [False, True], ids=["from zero", "from a state"])
    @layer_test(Feature.CHECKPOINTS)
    def test_checkpoint_equals_the_truncated_prompt(self, subject, v_first, from_state):
        C = subject.info.chunk_size
        lengths = (6 * C + 8, 2 * C, 1, C + 1, 0, 3 * C)
        offsets = ([C, 2 * C, 5 * C, 6 * C], [2 * C], [], [C], [], [C, 3 * C])
        dims, layer, tokens = self.case(subject, sum(lengths))
        N, kept = len(lengths), iter(range(len(lengths), 100))
        places = [[next(kept) for _ in row] for row in offsets]
        pools = subject.pools(N + sum(map(len, offsets)), dims, state_v_first=v_first)
        if from_state:
            for slot in range(N):
                pools.conv[slot].normal_()
                pools.ssm[slot].normal_()
        before = pools.pages.clone()
        subject.serve(
            pools, layer, tokens, lengths, state_indices=list(range(N)),
            has_initial_state=[from_state] * N, checkpoint_offsets=list(offsets),
            checkpoint_indices=places,
        )  # fmt: skip
        starts = starts_of(lengths)
        for n, row in enumerate(offsets):
            for offset, place in zip(row, places[n], strict=True):
                alone = subject.pools(pools.pages.shape[0], dims, state_v_first=v_first)
                alone.pages.copy_(before)
                subject.serve(
                    alone, layer, tokens.rows(starts[n], starts[n] + offset), (offset,),
                    state_indices=[n], has_initial_state=[from_state],
                )  # fmt: skip
                error = relative_error(pools.state(place), alone.state(n))
                assert error <= subject.tolerance(), f"row {n}, token {offset}"
                columns = dims.W - 1
                assert same_bits(pools.line(place, columns), alone.line(n, columns))

    @layer_test(Feature.CHECKPOINTS)
    def test_prompt_resumed_from_a_checkpoint_continues_like_the_whole(self, subject):
        C = subject.info.chunk_size
        total = 4 * C + 6
        dims, layer, tokens = self.case(subject, total)
        pools = subject.pools(4, dims)
        whole = subject.serve(
            pools, layer, tokens, (total,), state_indices=[0], has_initial_state=[False],
            checkpoint_offsets=[[3 * C]], checkpoint_indices=[[1]],
        )  # fmt: skip
        rest = subject.serve(
            pools, layer, tokens.rows(3 * C, total), (total - 3 * C,), state_indices=[2],
            initial_state_indices=[1],
        )  # fmt: skip
        assert relative_error(rest, whole[3 * C :]) <= subject.tolerance()
        assert relative_error(pools.state(2), pools.state(0)) <= subject.tolerance()

    @layer_test(Feature.CHECKPOINTS)
    def test_checkpoint_in_a_padding_slot_is_dropped(self, subject):
        C = subject.info.chunk_size
        dims, layer, tokens = self.case(subject, 2 * C + 6)
        pools = subject.pools(3, dims)
        before = pools.pages.clone()
        subject.serve(
            pools, layer, tokens, (2 * C + 6,), state_indices=[1], has_initial_state=[False],
            pad_slot=0, checkpoint_offsets=[[C, 2 * C]], checkpoint_indices=[[0, -1]],
        )  # fmt: skip
        assert torch.equal(pools.pages[[0, 2]], before[[0, 2]])

    @layer_test(Feature.CHECKPOINTS)
    def test_checkpoint_at_the_end_is_the_final_state(self, subject):
        C = subject.info.chunk_size
        dims, layer, tokens = self.case(subject, C)
        pools = subject.pools(2, dims)
        subject.serve(
            pools, layer, tokens, (C,), state_indices=[0], has_initial_state=[False],
            checkpoint_offsets=[[C]], checkpoint_indices=[[1]],
        )  # fmt: skip
        assert same_bits(pools.state(0), pools.state(1))
        assert same_bits(pools.line(0, dims.W - 1), pools.line(1, dims.W - 1))
