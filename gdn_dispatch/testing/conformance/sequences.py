"""Packed sequences: the same as one by one, as in pieces, and never in each other's way."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from gdn_dispatch import build_chunk_meta, plan_batch
from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.accuracy import assert_close, packed_case
from gdn_dispatch.testing.conformance.base import Conformance, forms, layer_test, needs
from gdn_dispatch.testing.layer_inputs import Tokens, random_layer, random_tokens
from gdn_dispatch.testing.numbers import relative_error, same_bits
from gdn_dispatch.testing.poison import with_poisoned_memory
from gdn_dispatch.testing.rule_inputs import (
    RuleInputs,
    cu_seqlens,
    oracle,
    random_inputs,
    random_states,
    sequences,
    starts_of,
)

LENGTHS = (3, 0, 40, 8, 70)
COMPANY = [(1, 70), (70, 1, 40), (40, 0, 1, 70, 3), (3,) * 9 + (70,)]


class SequenceTests(Conformance):
    """Which tokens belong together."""

    @forms
    @needs(Feature.VARLEN)
    def test_packed_equals_one_by_one(self, subject, form):
        inputs, states = packed_case(subject)
        output, final = subject.rule(form, inputs, LENGTHS, initial_state=states)
        starts = starts_of(LENGTHS)
        for n, one in enumerate(sequences(inputs, LENGTHS)):
            if not LENGTHS[n]:
                continue
            alone, state = subject.rule(form, one.packed(), initial_state=states[n : n + 1])
            got = output[:, starts[n] : starts[n + 1]]
            assert relative_error(got, alone) <= subject.tolerance()
            assert relative_error(final[n], state[0]) <= subject.tolerance()

    @forms
    @pytest.mark.parametrize("B", [1, 3])
    @pytest.mark.parametrize("T", [1, 9, 31, 32, 33, 64, 65])
    def test_dense_batch(self, subject, form, B, T):
        lengths = (T,) * B
        inputs, states = packed_case(subject, lengths=lengths)
        dense = inputs.map(lambda x: x.unflatten(0, (B, T)))
        output, final = subject.rule(form, dense, initial_state=states)
        assert output.shape[:2] == (B, T)
        got = output.flatten(0, 1).unsqueeze(0), final
        assert_close(got, oracle(inputs, lengths, states), lengths, subject.tolerance())

    @forms
    @pytest.mark.parametrize("cut", [1, 32, 40, 64, 127])
    @needs(Feature.VARLEN)
    def test_whole_equals_in_pieces(self, subject, form, cut):
        inputs, _ = packed_case(subject, lengths=(128,))
        whole, final = subject.rule(form, inputs, (128,))
        first, state = subject.rule(form, inputs.rows(0, cut), (cut,))
        second, last = subject.rule(
            form, inputs.rows(cut, 128), (128 - cut,), initial_state=state.to(subject.state_dtype)
        )
        limit = 2 * max(subject.tolerance(), subject.tolerance(subject.state_dtype))
        assert relative_error(torch.cat([first, second], dim=1), whole) <= limit
        assert relative_error(last, final) <= limit

    @forms
    @pytest.mark.parametrize("lengths", COMPANY, ids=str)
    @needs(Feature.VARLEN, Feature.BATCH_INVARIANT)
    def test_batch_invariance_of_the_rule(self, subject, form, lengths):
        """Bit for bit the same whatever else is in the batch and wherever a sequence stands."""
        parts = [packed_case(subject, lengths=(n,), seed=i) for i, n in enumerate(lengths)]
        inputs = RuleInputs(*map(torch.cat, zip(*(x for x, _ in parts), strict=True)))
        states = torch.cat([state for _, state in parts])
        output, final = subject.rule(form, inputs, lengths, initial_state=states)
        starts = starts_of(lengths)
        for n, ((alone, state), (a, b)) in enumerate(zip(parts, pairwise(starts), strict=True)):
            if a < b:
                expected, last = subject.rule(form, alone, (b - a,), initial_state=state)
                assert same_bits(output[:, a:b], expected), f"output of {lengths[n]} tokens"
                assert same_bits(final[n], last[0]), f"state after {lengths[n]} tokens"

    @pytest.mark.parametrize("lengths", [*COMPANY, (1,) * 9], ids=str)
    @layer_test(Feature.BATCH_INVARIANT)
    def test_batch_invariance_of_the_layer(self, subject, lengths):
        # sizes that leave every vector unit a rest: there, functions may have other bits
        dims = subject.layer_dims(H=1, HV=3, K=8, V=7)
        layer = random_layer(dims, dtype=subject.dtype)
        tokens = [random_tokens(n, dims, dtype=subject.dtype, rng=i) for i, n in enumerate(lengths)]
        step = Tokens(*(torch.cat(x) for x in zip(*(t.arguments.values() for t in tokens),
                                                  strict=True)))  # fmt: skip
        slots = list(reversed(range(len(lengths))))
        no_state = [False] * len(lengths)
        pools = subject.pools(len(lengths), dims)
        output = subject.serve(
            pools, layer, step, lengths, state_indices=slots, has_initial_state=no_state
        )
        for n, (a, b) in enumerate(pairwise(starts_of(lengths))):
            if a == b:
                continue
            alone = subject.pools(1, dims)
            expected = subject.serve(
                alone, layer, tokens[n], (b - a,), state_indices=[0], has_initial_state=[False]
            )
            assert same_bits(output[a:b], expected), f"output of {lengths[n]} tokens"
            assert same_bits(pools.state(slots[n]), alone.state(0)), f"state of {lengths[n]} tokens"

    @forms
    @pytest.mark.parametrize("lengths", [(0,), (0, 0, 0), (0, 5, 0, 0, 33, 0)], ids=str)
    @needs(Feature.VARLEN)
    def test_empty_sequences_keep_their_state(self, subject, form, lengths):
        inputs, states = packed_case(subject, lengths=lengths)
        _, final = subject.rule(form, inputs, lengths, initial_state=states)
        for n, length in enumerate(lengths):
            assert torch.equal(final[n], states[n].float()) == (length == 0)
        _, final = subject.rule(form, inputs, lengths)
        for n, length in enumerate(lengths):
            assert bool(final[n].any()) == (length > 0)

    @forms
    @pytest.mark.parametrize("with_state", [False, True])
    def test_no_tokens(self, subject, form, with_state):
        dims = subject.dims()
        states = random_states(2, dims).to(subject.state_dtype) if with_state else None
        inputs = random_inputs(0, dims).map(lambda x: x.unsqueeze(0).expand(2, *x.shape))
        output, final = subject.rule(form, inputs.to(subject.dtype), initial_state=states)
        assert output.shape == (2, 0, dims.HV, dims.V)
        expected = torch.zeros_like(final) if states is None else states.float()
        assert torch.equal(final, expected)

    @forms
    @pytest.mark.parametrize("T", [0, 5])
    @needs(Feature.VARLEN)
    def test_no_sequences(self, subject, form, T):
        dims = subject.dims()
        output, final = subject.rule(form, random_inputs(T, dims).to(subject.dtype), ())
        assert output.shape == (1, T, dims.HV, dims.V)
        assert not output.any()
        assert final.shape == (0, dims.HV, dims.K, dims.V)

    @forms
    @pytest.mark.parametrize("rows", [1, 40])
    @needs(Feature.VARLEN)
    def test_rows_past_the_last_sequence_are_zero(self, subject, form, rows):
        inputs, _ = packed_case(subject)
        padded = inputs.map(lambda x: torch.cat([x, x.new_full((rows, *x.shape[1:]), math.nan)]))
        output, final = with_poisoned_memory(lambda: subject.rule(form, padded, LENGTHS))
        assert output.shape[1] == sum(LENGTHS) + rows
        exact = oracle(inputs, LENGTHS)
        assert_close((output, final), exact, LENGTHS, subject.tolerance())

    @forms
    @needs(Feature.VARLEN)
    def test_nan_in_one_sequence_stays_there(self, subject, form):
        inputs, _ = packed_case(subject)
        starts = starts_of(LENGTHS)
        healthy = subject.rule(form, inputs, LENGTHS)
        for sick in (0, 2, 4):
            spoilt = inputs.map(torch.clone)
            for x in spoilt:
                x[starts[sick] : starts[sick + 1]] = math.nan
            output, final = subject.rule(form, spoilt, LENGTHS)
            for n in set(range(len(LENGTHS))) - {sick}:
                rows = slice(starts[n], starts[n + 1])
                assert same_bits(output[:, rows], healthy[0][:, rows])
                assert same_bits(final[n], healthy[1][n])

    @forms
    @needs(Feature.VARLEN)
    def test_every_way_to_give_the_lengths_is_the_same(self, subject, form):
        inputs, states = packed_case(subject)
        starts = cu_seqlens(LENGTHS)
        meta = build_chunk_meta(plan_batch(starts), subject.device)
        ways = [
            {"cu_seqlens": starts.long(), "cu_seqlens_cpu": starts.tolist()},
            {"cu_seqlens_cpu": starts.numpy()},
            {"meta": meta},
            {"meta": meta, "cu_seqlens": starts, "cu_seqlens_cpu": starts},
        ]
        expected = subject.rule(form, inputs, LENGTHS, initial_state=states)
        for way in ways:
            got = subject.rule(form, inputs.packed(), initial_state=states, **way)
            assert all(map(same_bits, got, expected)), list(way)
