"""States of the recurrence-only calls: read in any layout and dtype, and left alone."""

from __future__ import annotations

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.conformance.accuracy import LENGTHS, assert_close, packed_case
from gdn_dispatch.testing.conformance.base import Conformance, forms, needs, needs_state_layout
from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.rule_inputs import oracle

STATE_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class StateTests(Conformance):
    """Initial and final states."""

    @forms
    @pytest.mark.parametrize("state_dtype", STATE_DTYPES, ids=str)
    @pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
    @needs_state_layout
    @needs(Feature.VARLEN)
    def test_initial_state_of_any_layout_is_read_and_not_written(
        self, subject, form, state_dtype, strided, v_first
    ):
        inputs, states = packed_case(subject)
        states = states.to(state_dtype)
        exact = oracle(inputs, LENGTHS, states)
        given = states.transpose(2, 3).contiguous() if v_first else states
        given = given.to(subject.device)
        if strided:
            given = torch.stack((given, torch.full_like(given, torch.nan)), dim=1)[:, 0]
        before = given.clone()
        output, final = subject.rule(
            form, inputs, LENGTHS, initial_state=given, state_v_first=v_first
        )
        if v_first:
            final = final.transpose(2, 3)
        assert same_bits(given, before)
        assert_close((output, final), exact, LENGTHS, subject.tolerance())

    @forms
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @needs(Feature.VARLEN)
    def test_final_state_is_finer_than_the_activations(self, subject, form, dtype):
        """It goes into the next call: rounded in every one, it would drift away."""
        inputs, states = packed_case(subject)
        _, final = subject.rule(form, inputs.to(dtype), LENGTHS, initial_state=states)
        for n, length in enumerate(LENGTHS):
            if length:
                assert not torch.equal(final[n], final[n].to(dtype).float()), f"{length} tokens"

    @forms
    @needs(Feature.VARLEN)
    def test_final_state_only_on_request(self, subject, form):
        inputs, states = packed_case(subject)
        output, nothing = subject.rule(
            form, inputs, LENGTHS, initial_state=states, output_final_state=False
        )
        assert nothing.numel() == 0
        assert same_bits(output, subject.rule(form, inputs, LENGTHS, initial_state=states)[0])

    @needs(Feature.VARLEN, Feature.RECURRENT_RULE)
    @pytest.mark.parametrize("donated", [False, True])
    def test_donated_state_gives_the_same_numbers(self, subject, donated):
        inputs, states = packed_case(subject)
        expected = subject.rule("recurrent", inputs, LENGTHS, initial_state=states)
        given = states.to(subject.device, copy=True)
        got = subject.rule(
            "recurrent", inputs, LENGTHS, initial_state=given, donate_initial_state=donated
        )
        assert all(map(same_bits, got, expected))
        assert donated or same_bits(given.cpu(), states)
