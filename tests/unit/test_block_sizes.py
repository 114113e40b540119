"""Block sizes are vLLM's and vllm-ascend's, hold a state, and fit every kernel."""

from dataclasses import replace
from math import lcm

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.plan.block_ascend import vllm_ascend_block_size
from gdn_dispatch.plan.block_models import MODEL_TYPES, read_model
from gdn_dispatch.plan.block_sizes import (
    CACHE_MODES,
    AttentionShape,
    StateShape,
    vllm_block_size,
)

QWEN3_NEXT = StateShape(16, 32, 128, 128), AttentionShape(2, 256)
QWEN3_5 = StateShape(16, 32, 128, 128, state_dtype="float32"), AttentionShape(4, 256)
QWEN3_5_MOE = QWEN3_5[0], AttentionShape(2, 256)

# Bytes of a state's parts and their sum, and of a token; block and page on CUDA, on XPU, which are
# also those of FlashInfer with kept states, and with vllm-ascend; the block of attention in 32s;
# percent of padding on XPU. Published by the engines' logs: 528 with 0.76%, 544, 784, 1056.
WORKED = [
    # model, tp, conv, recurrent, both, token, cuda, xpu, percent, 32s, ascend
    (QWEN3_NEXT, 1, 49152, 1048576, 1097728, 2048,
     (544, 1114112), (576, 1179648), 7.46, 544, (1024, 2146304)),
    (QWEN3_NEXT, 2, 24576, 524288, 548864, 1024,
     (544, 557056), (576, 589824), 7.46, 544, (1024, 1073152)),
    (QWEN3_NEXT, 4, 12288, 262144, 274432, 1024,
     (272, 278528), (320, 327680), 19.40, 288, (512, 536576)),
    (QWEN3_NEXT, 8, 6144, 131072, 137216, 1024,
     (144, 147456), (192, 196608), 43.28, 160, (256, 268288)),
    (QWEN3_5, 1, 49152, 2097152, 2146304, 4096,
     (528, 2162688), (576, 2359296), 9.92, 544, (1024, 4243456)),
    (QWEN3_5, 2, 24576, 1048576, 1073152, 2048,
     (528, 1081344), (576, 1179648), 9.92, 544, (1024, 2121728)),
    (QWEN3_5, 4, 12288, 524288, 536576, 1024,
     (528, 540672), (576, 589824), 9.92, 544, (1024, 1060864)),
    (QWEN3_5, 8, 6144, 262144, 268288, 1024,
     (272, 278528), (320, 327680), 22.14, 288, (512, 530432)),
    (QWEN3_5_MOE, 1, 49152, 2097152, 2146304, 2048,
     (1056, 2162688), (1088, 2228224), 3.82, 1056, (2048, 4243456)),
    (QWEN3_5_MOE, 2, 24576, 1048576, 1073152, 1024,
     (1056, 1081344), (1088, 1114112), 3.82, 1056, (2048, 2121728)),
    (QWEN3_5_MOE, 4, 12288, 524288, 536576, 1024,
     (528, 540672), (576, 589824), 9.92, 544, (1024, 1060864)),
    (QWEN3_5_MOE, 8, 6144, 262144, 268288, 1024,
     (272, 278528), (320, 327680), 22.14, 288, (512, 530432)),
]  # fmt: skip
worked = pytest.mark.parametrize(
    ("model", "tp", "conv", "recurrent", "both", "token", "cuda", "xpu", "percent", "by_32", "npu"),
    WORKED,
)


def block_and_page(sizes):
    return sizes.block_size, sizes.page_bytes


def values(sizes):
    return {step.name: step.value for step in sizes.steps}


@worked
def test_worked_numbers(model, tp, conv, recurrent, both, token, cuda, xpu, percent, by_32, npu):
    on_cuda = vllm_block_size(*model, tp=tp)
    assert block_and_page(on_cuda) == cuda
    steps = values(on_cuda)
    assert (steps["convolution"], steps["recurrent"], steps["state"], steps["token"]) == (
        conv, recurrent, both, token,
    )  # fmt: skip
    assert (on_cuda.state_bytes, on_cuda.token_bytes) == (both, token)
    assert vllm_block_size(*model, tp=tp, attention_multiples=(32,)).block_size == by_32
    assert block_and_page(vllm_ascend_block_size(*model, tp=tp)) == npu

    flashinfer = vllm_block_size(*model, tp=tp, cache_mode="align", checkpoint_multiple=64)
    assert block_and_page(flashinfer) == xpu
    for attention in (16, 64):
        for mode in ("none", "align"):
            kernels = {"attention_multiples": (attention,), "backend_multiple": 64}
            on_xpu = vllm_block_size(*model, tp=tp, cache_mode=mode, **kernels)
            assert block_and_page(on_xpu) == xpu
            assert round(on_xpu.padding_percent, 2) == percent


@pytest.mark.parametrize(
    ("kv_heads", "value_heads", "cuda", "cuda_percent", "xpu", "xpu_percent"),
    [(4, 48, 784, 0.13, 832, 6.26), (2, 64, 2096, 0.58, 2112, 1.34), (4, 32, 528, 0.76, 576, 9.92)],
)
def test_larger_models(kv_heads, value_heads, cuda, cuda_percent, xpu, xpu_percent):
    model = replace(QWEN3_5[0], num_v_heads=value_heads), AttentionShape(kv_heads, 256)
    for multiple, block, percent in ((16, cuda, cuda_percent), (64, xpu, xpu_percent)):
        sizes = vllm_block_size(*model, backend_multiple=multiple)
        assert (sizes.block_size, round(sizes.padding_percent, 2)) == (block, percent)


def test_draft_tokens_lengthen_the_convolutions_history():
    sizes = vllm_block_size(*QWEN3_NEXT, num_speculative_tokens=3)
    assert values(sizes)["convolution"] == 2 * 49152
    assert sizes.block_size == 560
    assert sizes.steps[0].why == "6 columns (W - 1 + 3 drafts) x 8192 channels x 2 (bfloat16)"


def test_the_page_of_an_exact_fit_grows_with_its_block():
    fits = StateShape(16, 32, 128, 128), AttentionShape(2, 128)
    before = vllm_block_size(*fits)
    assert (before.block_size, before.padding_bytes) == (1072, 0)
    after = vllm_block_size(*fits, backend_multiple=64)
    assert (after.block_size, after.page_bytes) == (1088, 1088 * 1024)
    assert after.padding_bytes == 16 * 1024
    assert "1072 tokens were an exact fit" in after.steps[-1].why
    assert "exact fit" not in before.steps[-1].why


@pytest.mark.parametrize(
    ("asked", "block", "xpu"),
    [(16, 544, 576), (48, 576, 576), (512, 1024, 1024), (544, 544, 576), (2000, 2000, 2048)],
)
def test_what_is_asked_for_is_a_lower_bound_and_a_stride(asked, block, xpu):
    assert vllm_block_size(*QWEN3_NEXT, block_size=asked).block_size == block
    assert vllm_block_size(*QWEN3_NEXT, block_size=asked, backend_multiple=64).block_size == xpu


@pytest.mark.parametrize(
    ("asked", "multiple", "better"),
    [(512, 16, 544), (512, 64, 576), (48, 64, None), (2000, 16, None), (544, 16, None)],
)
def test_a_stride_that_wastes_is_told(asked, multiple, better):
    sizes = vllm_block_size(*QWEN3_NEXT, block_size=asked, backend_multiple=multiple)
    why = next(step.why for step in sizes.steps if step.name == "fit")
    hint = f"; block_size={better} would do" if better else ""
    assert why == f"536 tokens hold 1097728 bytes; up to a multiple of {asked}{hint}"
    if better is not None:
        then = vllm_block_size(*QWEN3_NEXT, block_size=better, backend_multiple=multiple)
        assert then.block_size == better < sizes.block_size


@pytest.mark.parametrize(
    ("default", "multiples", "start", "block"),
    [
        (16, (16,), 16, 544),
        (16, (64,), 64, 576),
        (16, (16, 32), 32, 544),
        (128, (32,), 128, 640),
        (128, (48,), 48, 576),
    ],
)
def test_where_the_engine_starts_if_nobody_asks(default, multiples, start, block):
    sizes = vllm_block_size(
        *QWEN3_NEXT, attention_multiples=multiples, default_block_size=default
    )  # fmt: skip
    assert (values(sizes)["start"], sizes.block_size) == (start, block)


@pytest.mark.parametrize(("asked", "block"), [(None, 1024), (192, 1024), (2000, 2048)])
def test_mla_takes_multiples_of_128(asked, block):
    latent = AttentionShape(1, 576, mla=True)
    sizes = vllm_block_size(QWEN3_NEXT[0], latent, block_size=asked)
    assert sizes.token_bytes == 1152
    assert sizes.block_size == block


def test_a_smaller_stride_is_replaced_by_that_of_mla():
    latent = AttentionShape(1, 576, mla=True)
    sizes = vllm_block_size(
        QWEN3_NEXT[0], latent, tp=4, num_speculative_tokens=1, block_size=48
    )  # fmt: skip
    assert (values(sizes)["stride"], sizes.block_size) == (128, 256)


def test_states_are_kept_at_the_end_of_every_block_or_not_at_all():
    kept = {
        mode: vllm_block_size(
            *QWEN3_NEXT, cache_mode=mode, checkpoint_multiple=None if mode == "none" else 64
        ).state_block_size
        for mode in CACHE_MODES
    }
    assert kept == {"none": None, "align": 576, "all": 576}


def test_bytes_of_a_token_can_be_given():
    packed = replace(QWEN3_NEXT[1], kv_dtype="turboquant_k8v4", token_bytes=784)
    sizes = vllm_block_size(QWEN3_NEXT[0], packed)
    assert (sizes.token_bytes, sizes.page_bytes) == (784, sizes.block_size * 784)
    assert vllm_block_size(QWEN3_NEXT[0], replace(QWEN3_NEXT[1], kv_dtype="fp8")).block_size == 1072


def state(**fields):
    return {"state": replace(QWEN3_NEXT[0], **fields)}


def attention(**fields):
    return {"attention": replace(QWEN3_NEXT[1], **fields)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (state(num_heads=0), "num_heads: got 0, expected an int of at least 1"),
        (state(num_v_heads=24), "num_v_heads: got 24, expected a multiple of num_heads = 16"),
        (state(head_dim_k=1.5), "head_dim_k: got 1.5"),
        (state(conv_width=True), "conv_width: got True"),
        (state(state_dtype="fp8"), "state_dtype: got 'fp8', expected one of bfloat16"),
        (attention(num_kv_heads=0), "num_kv_heads: got 0"),
        (attention(kv_dtype="int4"), "kv_dtype: got 'int4'.*pass token_bytes"),
        (attention(token_bytes=0), "token_bytes: got 0"),
        ({"tp": 3}, "tp: got 3, expected a divisor of the 16 key heads"),
        ({"tp": 0}, "tp: got 0"),
        ({"tp": 4, **attention(num_kv_heads=6)}, "tp: got 4, .* multiple of the 6 key-value heads"),
        ({"num_speculative_tokens": -1}, "num_speculative_tokens: got -1"),
        ({"attention_multiples": ()}, "attention_multiples: got none"),
        ({"attention_multiples": (16, 0)}, "attention_multiples: got 0"),
        ({"backend_multiple": 0}, "backend_multiple: got 0"),
        ({"default_block_size": 0}, "default_block_size: got 0"),
        ({"block_size": 0}, "block_size: got 0"),
        ({"block_size": 100}, "block_size: got 100, expected a multiple of 16.*pass 112"),
        ({"cache_mode": "some"}, "cache_mode: got 'some', expected one of none, align and all"),
        ({"cache_mode": "all"}, "checkpoint_multiple: got None with cache_mode 'all'"),
        ({"checkpoint_multiple": 64}, "checkpoint_multiple: got 64 with cache_mode 'none'"),
        ({"cache_mode": "align", "checkpoint_multiple": 0}, "checkpoint_multiple: got 0"),
    ],
)
def test_what_cannot_be_is_refused(change, complaint):
    request = {"state": QWEN3_NEXT[0], "attention": QWEN3_NEXT[1], **change}
    with pytest.raises(InvalidArgumentError, match=f"^{complaint}"):
        vllm_block_size(**request)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"block_size": 2048}, "block_size: got 2048, expected 1024, whose keys"),
        (state(head_dim_v=100), "state: got a recurrent state of 819200 bytes"),
        (attention(head_dim=192), "state: got .* a multiple of 98304, the keys of 128 tokens"),
        (attention(mla=True), "attention: got MLA"),
        ({"cache_mode": "some"}, "cache_mode: got 'some'"),
        ({"backend_multiple": 0}, "backend_multiple: got 0"),
    ],
)
def test_what_vllm_ascend_cannot_lay_out_is_refused(change, complaint):
    request = {"state": QWEN3_NEXT[0], "attention": QWEN3_NEXT[1], **change}
    with pytest.raises(InvalidArgumentError, match=f"^{complaint}"):
        vllm_ascend_block_size(**request)


def test_vllm_ascend_replaces_a_smaller_block():
    assert vllm_ascend_block_size(*QWEN3_NEXT, block_size=128).block_size == 1024


POWERS = st.sampled_from([1, 2, 8, 16, 32, 64, 128])
SMALL = st.integers(1, 96)


@st.composite
def requests(draw, multiples=POWERS):
    tp = draw(st.sampled_from([1, 2, 4]))
    heads = tp * draw(st.integers(1, 8))
    mode = draw(st.sampled_from(CACHE_MODES))
    dtypes = st.sampled_from(["bfloat16", "float32"])
    checkpoints = {"none": st.none(), "align": st.none() | multiples, "all": multiples}
    return {
        "state": StateShape(
            heads, heads * draw(st.integers(1, 4)), draw(st.integers(1, 256)),
            draw(st.integers(1, 256)), draw(st.integers(1, 5)), draw(dtypes), draw(dtypes),
        ),
        "attention": AttentionShape(
            draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([64, 96, 128, 256])),
            draw(st.sampled_from(["bfloat16", "float32", "fp8"])), draw(st.booleans()),
        ),
        "attention_multiples": tuple(draw(st.lists(multiples, min_size=1, max_size=3))),
        "backend_multiple": draw(multiples),
        "tp": tp,
        "cache_mode": mode,
        "checkpoint_multiple": draw(checkpoints[mode]),
        "num_speculative_tokens": draw(st.integers(0, 4)),
    }  # fmt: skip


def everything(request):
    """What a block has to be a multiple of."""
    mla = 128 if request["attention"].mla else 1
    return lcm(
        *request["attention_multiples"], request["backend_multiple"],
        request["checkpoint_multiple"] or 1, mla,
    )  # fmt: skip


@settings(deadline=None)
@given(requests(SMALL), st.none() | st.integers(1, 40))
def test_a_block_fits_all_kernels_and_a_page_both_kinds(request, times):
    asked = None if times is None else times * lcm(*request["attention_multiples"])
    sizes = vllm_block_size(**request, block_size=asked)
    assert sizes.block_size % everything(request) == 0
    assert sizes.block_size >= (asked or 1)
    assert sizes.page_bytes == sizes.block_size * sizes.token_bytes
    assert sizes.page_bytes >= sizes.state_bytes
    fit = values(sizes)["fit"]
    assert fit <= sizes.block_size < fit + everything(request)


@settings(deadline=None)
@given(requests())
def test_no_smaller_block_would_do(request):
    sizes = vllm_block_size(**request)
    multiple = lcm(values(sizes)["start"], everything(request))
    assert sizes.block_size % multiple == 0
    assert (sizes.block_size - multiple) * sizes.token_bytes < sizes.state_bytes


@settings(deadline=None)
@given(requests())
def test_the_trace_adds_up(request):
    sizes = vllm_block_size(**request)
    steps = values(sizes)
    assert steps["state"] == steps["convolution"] + steps["recurrent"] == sizes.state_bytes
    assert steps["block"] == sizes.block_size
    assert steps["page"] == sizes.page_bytes
    assert steps["padding"] == sizes.padding_bytes == steps["page"] - steps["state"]
    assert all(step.why for step in sizes.steps)
    assert {step.unit for step in sizes.steps} == {"bytes", "tokens"}


def config(model_type="qwen3_next", **fields):
    return {
        "model_type": model_type, "dtype": "bfloat16", "hidden_size": 2048,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, **fields,
    }  # fmt: skip


def test_a_config_is_read():
    model = read_model(config())
    assert (model.state, model.attention) == QWEN3_NEXT
    older = config(torch_dtype="torch.float16")
    del older["dtype"]
    assert read_model(older).state.conv_dtype == "float16"


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_a_nested_config_is_read_and_its_state_dtype_counts(model_type):
    text = config(model_type, mamba_ssm_dtype="float32", num_key_value_heads=4)
    del text["dtype"]
    model = read_model({"model_type": "qwen3_5", "dtype": "bfloat16", "text_config": text})
    assert (model.state, model.attention) == QWEN3_5
    assert model.state_dtype_from == "mamba_ssm_dtype"
    assert read_model(text, dtype="bfloat16", state_dtype="bfloat16").state == QWEN3_NEXT[0]


def test_another_models_state_has_the_models_dtype():
    model = read_model(config(mamba_ssm_dtype="float32"))
    assert model.state.state_dtype == "bfloat16"


def test_olmo_hybrid_leaves_head_dim_to_the_reader():
    olmo = config("olmo_hybrid", hidden_size=3840, num_attention_heads=30, num_key_value_heads=None)
    del olmo["head_dim"]
    assert read_model(olmo).attention == AttentionShape(30, 128)
    assert read_model(olmo | {"num_key_value_heads": 6}).attention.num_kv_heads == 6


@pytest.mark.parametrize(
    "field",
    ["dtype", "head_dim", "num_key_value_heads", "num_attention_heads", "linear_num_key_heads",
     "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
     "linear_conv_kernel_dim"],
)  # fmt: skip
def test_a_missing_field_is_named(field):
    without = config()
    del without[field]
    with pytest.raises(InvalidArgumentError, match=f"^model_config: got no {field}, "):
        read_model(without)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"model_type": "llama"}, f"model_type 'llama', expected one of {', '.join(MODEL_TYPES)}"),
        ({}, "model_type None"),
        ({"text_config": {"model_type": "gemma"}}, "text_config.model_type 'gemma'"),
        (config(layer_types=["full_attention"]), "qwen3_next without .* linear_attention"),
        (config(layer_types=["linear_attention"]), "qwen3_next without .* full_attention"),
        (config(head_dim="256"), "head_dim '256', expected an int"),
    ],
)
def test_another_config_is_refused(given, complaint):
    with pytest.raises(InvalidArgumentError, match=f"^model_config: got {complaint}"):
        read_model(given)
