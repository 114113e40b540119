"""The two public forms of the rule, called alike."""

from __future__ import annotations

import pytest

from gdn_dispatch import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from gdn_dispatch.testing.rule_inputs import RuleInputs, cu_seqlens


def chunk(q, k, v, g, beta, **options):
    return chunk_gated_delta_rule(q, k, v, g, beta, **options)


def recurrent(q, k, v, g, beta, **options):
    return fused_recurrent_gated_delta_rule(q, k, v, g, beta=beta, **options)


forms = pytest.mark.parametrize("form", [chunk, recurrent])


def run_packed(form, inputs: RuleInputs, lengths: tuple[int, ...], **options):
    """Output ``[1, T, HV, V]`` and final states of sequences packed in ``inputs`` [T, ...]."""
    return form(
        *inputs.packed(), cu_seqlens=cu_seqlens(lengths), output_final_state=True, **options
    )
