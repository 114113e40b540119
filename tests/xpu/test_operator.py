"""Our call of Intel's operator fits its schema and passes its checks; what would not is refused."""

from __future__ import annotations

import mmap
from dataclasses import replace

import intel_wheel
import pytest
import torch
from engine_steps import DIMS, DRAFTS, FORMS, STEPS, call, inputs_of, layer_of, meta_of, pools_of
from gdn_dispatch_xpu.kernels.calls import gdn_attention
from gdn_dispatch_xpu.providers import checks, schema

from gdn_dispatch.errors import UnsupportedRequestError
from gdn_dispatch.testing.host_reads import record_host_reads
from gdn_dispatch.testing.layer_inputs import LayerDims
from gdn_dispatch.testing.numbers import same_bits


@pytest.fixture
def intel(registered):
    return registered


def nothing(*arguments):
    """An operator that does nothing."""


def test_the_schema_is_the_one_the_adapter_is_written_for(intel):
    arguments = intel.operator._schema.arguments
    assert tuple(intel.names) == schema.ARGUMENTS
    assert len(arguments) == 29
    written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    assert written == ["core_attn_out", "z", "conv_state", "ssm_state"]
    assert not any(a.has_default_value() for a in arguments)


def test_the_wheel_takes_drafts_and_packed_rows(intel):
    found = schema.operator()
    assert isinstance(found, schema.Operator)
    assert found.packed
    assert found.speculative


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STEPS)
def test_our_call_passes_intels_own_checks(intel, name, form):
    """Its arguments are checked by Intel's code, which then stops at the device."""
    with (
        intel.running(intel.intels) as calls,
        pytest.raises(RuntimeError, match=intel_wheel.REACHED),
    ):
        call(STEPS[name], form)
    (arguments,) = calls
    assert list(arguments) == list(schema.ARGUMENTS)
    assert arguments["reorder_input"] == (form != "interleaved")


@pytest.mark.parametrize("W", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["mixed", "speculative"])
def test_other_widths_pass_them_too(intel, name, W):
    dims = replace(DIMS, W=W)
    tokens = sum(STEPS[name]["lengths"])
    changes = {"pools": pools_of(dims), "layer": layer_of(dims), **inputs_of("apart", tokens, dims)}
    with intel.running(intel.intels), pytest.raises(RuntimeError, match=intel_wheel.REACHED):
        call(STEPS[name], **changes)


@pytest.mark.parametrize(
    ("argument", "spoilt", "message"),
    [
        ("non_spec_query_start_loc", lambda x: torch.cat([x, x[-1:]]), r"num_decodes \+ 1"),
        ("non_spec_state_indices_tensor", lambda x: x.long(), "int32"),
        ("conv_state", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), "conv_state of"),
        ("z", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), "z must be contiguous"),
        ("projected_states_ba", lambda x: x[:, :-1].contiguous(), "num_v_heads"),
    ],
)
def test_intels_checks_are_really_run(intel, argument, spoilt, message):
    def spoil(*arguments):
        at = schema.ARGUMENTS.index(argument)
        intel.intels(*arguments[:at], spoilt(arguments[at]), *arguments[at + 1 :])

    with intel.running(spoil), pytest.raises(RuntimeError, match=message) as caught:
        call(STEPS["mixed"])
    assert intel_wheel.REACHED not in str(caught.value)


# -- what is refused ---------------------------------------------------------------------------


def drafts_without_slots():
    step = dict(STEPS["speculative"])
    step["state_indices"] = [[1, -1, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]]
    return {"step": step}


def on_the_device(pad_slot):
    step = {"lengths": (1, 1), "pad_slot": pad_slot}
    return {"step": step, "meta": meta_of(step, state_indices=torch.tensor([1, 2]))}


def sizes(**dims):
    dims = LayerDims(**({"H": 2, "HV": 4, "K": 32, "V": 32, "W": 4} | dims))
    return {
        "pools": pools_of(dims), "layer": layer_of(dims), **inputs_of("apart", 78, dims),
    }  # fmt: skip


def past_32_bits():
    """Address space without memory: eight slots, 2 GiB apart."""
    pools = pools_of()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = torch.frombuffer(mmap.mmap(-1, 2**34, flags=flags), dtype=pools.conv.dtype)
    far = memory.as_strided((8, *pools.conv.shape[1:]), (2**30, 1, DIMS.D))
    return {"pools": pools, "conv_state": far}


def strided(name, form="flat"):
    x = inputs_of(form, 78)[name]
    wide = x.new_empty(x.shape[0] * 2, *x.shape[1:])
    return {"form": form, name: wide[::2].copy_(x)}


MALFORMED = {
    "K first": (lambda: {"pools": pools_of(state_v_first=False)}, "state_v_first=False"),
    "channels first": (lambda: {"pools": pools_of(channels_last=False)}, "channels last"),
    "conv pool past 32 bits": (past_32_bits, "addresses them with 32 bits, which reach 2;"),
    "head dim K": (lambda: sizes(K=48), "K=48 (supports 32, 64, 128, 256)"),
    "head dim V": (lambda: sizes(V=40), "V=40 (supports 32, 64"),
    "six taps": (lambda: sizes(W=6), "W=6"),
    "value heads": (lambda: sizes(H=3, HV=6), "HV=6: a multiple of 4"),
    "fp32": (
        lambda: {
            "pools": pools_of(dtype=torch.float32),
            "layer": layer_of(dtype=torch.float32),
            **inputs_of("apart", 78, dtype=torch.float32),
        },
        "dtype float32",
    ),
    "conv_weight in fp32": (
        lambda: {"conv_weight": layer_of().conv_weight.float()}, "conv_weight of float32",
    ),
    "conv_bias in fp32": (
        lambda: {"conv_bias": layer_of().conv_bias.float()}, "conv_bias of float32",
    ),
    "no activation": (lambda: {"activation": None}, "activation=None"),
    "another scale": (lambda: {"scale": 0.5}, "scale=0.5"),
    "negative eigenvalues": (lambda: {"allow_neg_eigval": True}, "allow_neg_eigval"),
    "checkpoints": (
        lambda: {
            "step": STEPS["prefill"]
            | {"checkpoint_offsets": [[], [64], []], "checkpoint_indices": [[], [9], []]}
        },
        "state checkpoints",
    ),
    "a projection with gaps": (
        lambda: strided("projected_states_qkvz"), "projected_states_qkvz with strides",
    ),
    "z with gaps": (lambda: strided("z"), "z with strides"),
    "states with gaps": (
        lambda: {"ssm_state": pools_of().ssm.transpose(1, 2).contiguous().transpose(1, 2)},
        "ssm_state with strides",
    ),
    "slots unseen": (lambda: on_the_device(-1), "without a pad_slot"),
    "pad_slot outside": (lambda: on_the_device(12), "pad_slot=12 outside the pools of 12 slots"),
    "a draft without a slot": (drafts_without_slots, "a draft token without a slot"),
}  # fmt: skip


def test_sixteen_malformed_calls_and_more_are_known():
    assert len(MALFORMED) >= 16


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_call_is_refused_before_intels_code_sees_it(intel, name):
    make, message = MALFORMED[name]
    changes = make()
    step = changes.pop("step", STEPS["prefill"])
    pools = changes.setdefault("pools", pools_of())
    before = pools.snapshot()
    with intel.running(intel.intels) as calls, pytest.raises(UnsupportedRequestError) as caught:
        call(step, changes.pop("form", "apart"), **changes)
    assert message in str(caught.value)
    assert calls == []
    assert torch.equal(before, pools.pages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim_k": 48, "scale": 48**-0.5}, "K=48: it has kernels for 32, 64, 128, 256"),
        ({"head_dim_v": 40}, "V=40: a multiple of 32"),
        ({"conv_weight": torch.zeros(DIMS.D, 6, dtype=torch.bfloat16)}, "W=6: it does nothing"),
        ({"num_v_heads": 12, "gqa_interleaved_layout": True}, "HV/H=6 with interleaved gates"),
    ],
)
def test_without_a_provider_the_adapter_sees_what_the_core_would_let_through(
    intel, change, message
):
    """What the backend declares is more than the operator takes, because Triton takes it."""
    with intel.running(nothing):
        call(STEPS["prefill"])
    request = intel.plugin.request
    found = schema.operator()
    assert checks.problems(request, request.meta.op_step, found) == ()
    (reason,) = checks.problems(replace(request, **change), request.meta.op_step, found)
    assert message in reason


def test_without_triton_a_refusal_names_both_providers(intel):
    """The Triton here, if any, has no code generator for Intel GPUs."""
    with intel.running(nothing):
        call(STEPS["prefill"])
    request = replace(intel.plugin.request, provider=None, activation=None)
    with pytest.raises(UnsupportedRequestError, match=r"xpu/sycl: activation=None.*xpu/triton: "):
        gdn_attention(request)
    with intel.running(nothing) as calls:
        gdn_attention(replace(request, activation="silu"))
    assert len(calls) == 1


def test_the_calls_are_good_before_they_are_spoilt(intel):
    for step in (STEPS["prefill"], STEPS["speculative"]):
        with intel.running(nothing) as calls:
            call(step)
        assert len(calls) == 1


# -- copies --------------------------------------------------------------------------------------


def test_columns_of_a_projection_are_taken_as_the_projection_they_are(intel):
    given = inputs_of("columns", 78)
    with intel.running(nothing) as calls:
        call(STEPS["prefill"], **given)
    (seen,) = calls
    assert seen["projected_states_qkvz"].data_ptr() == given["mixed_qkv"].data_ptr()
    assert seen["projected_states_qkvz"].shape == (78, DIMS.D + DIMS.HV * DIMS.V)
    assert seen["projected_states_ba"].data_ptr() == given["b"].data_ptr()


@pytest.mark.parametrize("form", ["flat", "interleaved"])
def test_whole_projections_are_passed_on(intel, form):
    given = inputs_of(form, 78)
    with intel.running(nothing) as calls:
        call(STEPS["prefill"], form, **given)
    for name in ("projected_states_qkvz", "projected_states_ba", "z"):
        assert calls[0][name].data_ptr() == given[name].data_ptr()


def spoilt_columns():
    whole, alone = inputs_of("columns", 78), inputs_of("apart", 78)
    rows = torch.cat([whole["mixed_qkv"], alone["mixed_qkv"][:, :8]], dim=1)
    columns = whole["mixed_qkv"]
    cut = torch.empty(columns.stride(0) * 77 + DIMS.D, dtype=columns.dtype)
    cut = cut.as_strided(columns.shape, columns.stride()).copy_(columns)
    return {
        "rows of another width": {**alone, "mixed_qkv": rows[:, : DIMS.D]},
        "memory that ends before z": {**alone, "mixed_qkv": cut},
        "a before b": {**whole, "a": whole["b"], "b": whole["a"]},
        "a and b of two tensors": {**whole, "a": alone["a"]},
    }


@pytest.mark.parametrize("what", list(spoilt_columns()))
def test_what_only_looks_like_columns_is_packed(intel, what):
    given = spoilt_columns()[what]
    with intel.running(nothing) as calls:
        call(STEPS["prefill"], **given)
    (seen,) = calls
    qkvz, ba = seen["projected_states_qkvz"], seen["projected_states_ba"]
    assert qkvz.is_contiguous()
    assert ba.is_contiguous()
    assert torch.equal(qkvz[:, : DIMS.D], given["mixed_qkv"])
    assert torch.equal(ba, torch.cat([given["b"], given["a"]], dim=1))


def test_a_plain_step_costs_no_second_copy_and_no_new_index_tensors(intel):
    meta = meta_of(STEPS["decode"])
    assert meta.op_step.non_spec_query_start_loc.data_ptr() == meta.cu_seqlens.data_ptr()
    slots = meta.op_step.non_spec_state_indices_tensor
    assert slots.data_ptr() == meta.state_indices.data_ptr()
    assert meta.op_step.non_spec_token_indx is None
    assert meta.op_step.has_initial_state is None


def test_nothing_of_the_device_is_read_on_the_host(intel):
    step = {"lengths": (1, 40, 1), "pad_slot": 0}
    meta = meta_of(
        step, state_indices=torch.tensor([1, 2, 0]), initial_state_indices=torch.tensor([3, 2, 0]),
        has_initial_state=torch.tensor([True, False, True]),
    )  # fmt: skip
    pools, layer, given = pools_of(), layer_of(), inputs_of("apart", 42)
    with intel.running(nothing) as calls, record_host_reads() as reads:
        call(step, pools=pools, layer=layer, meta=meta, **given)
    assert len(calls) == 1
    assert not reads


# -- z -------------------------------------------------------------------------------------------


NO_ROWS = {"lengths": (), "state_indices": [], "total_tokens": 6}


@pytest.mark.parametrize("form", ["flat", "interleaved"])
@pytest.mark.parametrize("name", ["padded", "all kinds", "nothing"])
def test_z_is_defined_on_every_row_the_operator_does_not_run(intel, name, form):
    """A norm gated by z runs over all rows: those of padding, and those of a profile run."""
    step = STEPS.get(name, NO_ROWS)
    tokens = step.get("total_tokens", sum(step["lengths"]))
    given = inputs_of(form, tokens)
    gate = inputs_of("flat", tokens)["projected_states_qkvz"][:, DIMS.D :]
    with intel.running(nothing) as calls:
        out, _ = call(step, form, **given)
    run = torch.zeros(tokens, dtype=torch.bool)
    for seen in calls:
        for which in ("non_spec_token_indx", "spec_token_indx"):
            if seen[which] is not None:
                run[seen[which].long()] = True
    assert bool(calls) == (name != "nothing")
    assert torch.equal(given["z"].flatten(1)[~run], gate[~run])
    assert given["z"].flatten(1)[run].isnan().all()
    assert not out[~run].any()


def test_the_padding_slot_is_as_it_was(intel):
    def write_it(*arguments):
        arguments[schema.ARGUMENTS.index("conv_state")][0] = 7
        arguments[schema.ARGUMENTS.index("ssm_state")][0] = 7
        arguments[0].fill_(7)

    step = {"lengths": (1, 1), "pad_slot": 0}
    meta = meta_of(step, state_indices=torch.tensor([5, -3]))
    pools = pools_of()
    before = pools.snapshot()
    with intel.running(write_it) as calls:
        out, _ = call(step, meta=meta, pools=pools)
    assert calls[0]["non_spec_state_indices_tensor"].tolist() == [5, 0]
    assert same_bits(pools.pages, before)
    assert (out[0] == 7).all()
    assert not out[1].any()


def test_drafts_take_lines_as_long_as_intel_asks_for(intel):
    with intel.running(nothing) as calls:
        call(STEPS["speculative"], pools=pools_of(extra_columns=DRAFTS - 1))
    assert calls[0]["conv_state"].shape[1] == DIMS.W - 1 + DRAFTS - 1
