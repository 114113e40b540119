"""Which operator is here is told by its schema: those of older releases are known and named."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from engine_steps import STEPS, call
from gdn_dispatch_xpu.providers import checks, schema

HEAD = (
    "_xpu_C::gdn_attention(Tensor(a!) core_attn_out, Tensor(b!) z, Tensor projected_states_qkvz, "
    "Tensor projected_states_ba, int num_k_heads, int num_v_heads, int head_k_dim, "
    "int head_v_dim, Tensor(c!) conv_state, Tensor(d!) ssm_state, Tensor conv_weights, "
    "Tensor? conv_bias, str activation, Tensor A_log, Tensor dt_bias, int num_prefills, "
    "int num_decodes, "
)
ORDINARY = (
    "Tensor? has_initial_state, Tensor non_spec_query_start_loc, "
    "Tensor non_spec_state_indices_tensor, int num_actual_tokens, int tp_size"
)
OF_0_1_3 = f"{HEAD}{ORDINARY}) -> ()"
OF_0_1_4 = f"{HEAD}{ORDINARY}, bool reorder_input) -> ()"
OF_0_1_9 = (
    f"{HEAD}int num_spec_decodes, Tensor? has_initial_state, Tensor? non_spec_query_start_loc, "
    "Tensor? non_spec_token_indx, Tensor? non_spec_state_indices_tensor, "
    "Tensor? spec_query_start_loc, Tensor? spec_token_indx, Tensor? spec_state_indices_tensor, "
    "Tensor? num_accepted_tokens, int num_actual_tokens, int tp_size, bool reorder_input) -> ()"
)


def names(text):
    return [argument.name for argument in torch._C.parse_schema(text).arguments]


def test_the_first_one_of_22_arguments_is_named_and_refused():
    assert len(names(OF_0_1_3)) == 22
    reason = schema.judge(names(OF_0_1_3))
    assert "takes 22 arguments, as in 0.1.3" in reason
    assert "vllm-xpu-kernels>=0.1.16" in reason


def test_the_second_one_of_23_arguments_is_named_and_refused():
    assert "takes 23 arguments, as in 0.1.4 to 0.1.8" in schema.judge(names(OF_0_1_4))


def test_29_arguments_are_served():
    assert len(names(OF_0_1_9)) == 29
    assert schema.judge(names(OF_0_1_9)) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: [*n, "workspace"], "30 arguments .*has workspace"),
        (lambda n: n[:-1], "lacks reorder_input"),
        (lambda n: [n[1], n[0], *n[2:]], "another order"),
    ],
)
def test_an_unknown_one_is_refused_with_what_differs(change, words):
    reason = schema.judge(change(names(OF_0_1_9)))
    assert re.search(words, reason), reason


def reasons(kernel, step, operator):
    with kernel.running(lambda *arguments: None):
        call(STEPS[step])
    request = kernel.plugin.request
    return checks.problems(request, request.meta.op_step, operator)


def test_an_operator_of_29_arguments_from_before_drafts_were_ragged_runs_the_other_rows(registered):
    older = schema.described(None, beside=())
    assert not older.packed
    assert not older.speculative
    for step in ("prefill", "continued", "decode", "mixed"):
        assert reasons(registered, step, older) == ()
    (reason,) = reasons(registered, "speculative", older)
    assert "drafts: before 0.1.16" in reason
    (reason,) = reasons(registered, "padded", older)
    assert "rows left out in the middle of a step" in reason


def test_one_that_was_split_but_knows_no_ragged_drafts(registered):
    split = schema.described(None, beside=("gated_delta_rule_non_spec",))
    assert reasons(registered, "padded", split) == ()
    (reason,) = reasons(registered, "all kinds", split)
    assert "gated_delta_rule_spec_recoverssm" in reason


def test_a_wheel_that_cannot_be_loaded_says_what_is_missing():
    """As it is on this machine without the stubs: oneAPI's loader of drivers is not there."""
    code = "from gdn_dispatch_xpu.providers import schema; print(schema.operator())"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "vllm-xpu-kernels 0.1.16.2 cannot be loaded: ImportError: lib" in result.stdout
    assert "it needs torch's XPU build and oneAPI's runtime" in result.stdout
