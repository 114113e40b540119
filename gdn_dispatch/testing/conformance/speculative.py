"""Speculative decode: a state for every draft token, and going on from any of them."""

from __future__ import annotations

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.base import Conformance, layer_test
from gdn_dispatch.testing.layer_inputs import random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits

S = 4
PROMPT = 20


class SpeculativeTests(Conformance):
    """Rows of draft tokens."""

    def prompted(self, subject, tokens, layer, dims):
        """Pools of one request whose prompt is in column 0's slot; its four slots."""
        pools = subject.pools(6, dims, extra_columns=S - 1)
        slots = [5, 1, 4, 2]
        subject.serve(
            pools, layer, tokens.rows(0, PROMPT), (PROMPT,), state_indices=[slots],
            has_initial_state=[False],
        )  # fmt: skip
        return pools, slots

    def case(self, subject, total):
        dims = subject.layer_dims()
        layer = random_layer(dims, dtype=subject.dtype)
        return dims, layer, random_tokens(total, dims, dtype=subject.dtype)

    @pytest.mark.parametrize("length", range(1, S + 1))
    @layer_test(Feature.SPECULATIVE)
    def test_state_after_every_draft_token(self, subject, length):
        dims, layer, tokens = self.case(subject, PROMPT + length)
        pools, slots = self.prompted(subject, tokens, layer, dims)
        output = subject.serve(
            pools, layer, tokens.rows(PROMPT, PROMPT + length), (length,), state_indices=[slots],
            speculative=[True], num_accepted_tokens=[1],
        )  # fmt: skip
        expected, _, _ = layer.reference(tokens)
        assert relative_error(output, expected[PROMPT:]) <= subject.tolerance()
        columns = dims.W - 1
        for t in range(length):
            _, history, state = layer.reference(tokens.rows(0, PROMPT + t + 1))
            assert relative_error(pools.state(slots[t]), state) <= subject.tolerance(), f"draft {t}"
            line = pools.conv[slots[0], :, t : t + columns].cpu()
            assert torch.equal(line.double(), history.double()), f"line after draft {t}"

    @pytest.mark.parametrize("accepted", range(1, S + 1))
    @layer_test(Feature.SPECULATIVE)
    def test_goes_on_from_the_last_accepted_token(self, subject, accepted):
        dims, layer, tokens = self.case(subject, PROMPT + S)
        pools, slots = self.prompted(subject, tokens, layer, dims)
        draft = {"state_indices": [slots], "speculative": [True]}
        subject.serve(
            pools, layer, tokens.rows(PROMPT, PROMPT + S), (S,), **draft, num_accepted_tokens=[1]
        )
        more = random_tokens(2, dims, dtype=subject.dtype, rng=9)
        output = subject.serve(pools, layer, more, (2,), **draft, num_accepted_tokens=[accepted])
        _, history, state = layer.reference(tokens.rows(0, PROMPT + accepted))
        expected, _, final = layer.reference(more, history, state)
        limit = 2 * subject.tolerance()
        assert relative_error(output, expected) <= limit
        assert relative_error(pools.state(slots[1]), final) <= limit

    @layer_test(Feature.SPECULATIVE)
    def test_drafts_beside_prefill_and_decode(self, subject):
        dims, layer, tokens = self.case(subject, PROMPT + 3)
        alone, slots = self.prompted(subject, tokens, layer, dims)
        mixed, _ = self.prompted(subject, tokens, layer, dims)
        rows = tokens.rows(PROMPT, PROMPT + 3)
        expected = subject.serve(
            alone, layer, rows, (3,), state_indices=[slots], speculative=[True],
            num_accepted_tokens=[1],
        )  # fmt: skip
        prompt = random_tokens(33, dims, dtype=subject.dtype, rng=5)
        step = type(rows)(*(torch.cat(x) for x in zip(
            prompt.arguments.values(), rows.arguments.values(), strict=True)))  # fmt: skip
        output = subject.serve(
            mixed, layer, step, (33, 3), state_indices=[[0, -1, -1, -1], slots],
            has_initial_state=[False, True], speculative=[False, True], num_accepted_tokens=[1, 1],
        )  # fmt: skip
        assert relative_error(output[33:], expected) <= subject.tolerance()
        for t in range(3):
            got, one = mixed.state(slots[t]), alone.state(slots[t])
            assert relative_error(got, one) <= subject.tolerance()

    @layer_test(Feature.SPECULATIVE)
    def test_slots_of_tokens_that_are_not_there_are_left_alone(self, subject):
        dims, layer, tokens = self.case(subject, PROMPT + 2)
        pools, slots = self.prompted(subject, tokens, layer, dims)
        before = pools.ssm.clone()
        subject.serve(
            pools, layer, tokens.rows(PROMPT, PROMPT + 2), (2,), state_indices=[slots],
            speculative=[True], num_accepted_tokens=[1],
        )  # fmt: skip
        for slot in set(range(6)) - set(slots[:2]):
            assert same_bits(pools.ssm[slot], before[slot]), f"slot {slot}"
