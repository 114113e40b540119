"""A layer's core in a forward context of our own making, and what is registered with vLLM."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from types import SimpleNamespace

import pytest
import torch

import gdn_dispatch
from gdn_dispatch.errors import IntegrationError, MetadataError
from gdn_dispatch.integrations import vllm as integration
from gdn_dispatch.integrations.vllm import blocks, registration

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("vllm")
    from vllm.forward_context import override_forward_context
    from vllm.model_executor.custom_op import op_registry_oot

    from gdn_dispatch.integrations.vllm import core
    from gdn_dispatch.integrations.vllm.core import DispatchCore
    from gdn_dispatch.integrations.vllm.layer import DispatchGatedDeltaNetAttention
    from gdn_dispatch.integrations.vllm.metadata import DispatchGDNMetadata
    from gdn_dispatch.integrations.vllm.olmo_layer import DispatchOlmoHybridAttention

H, HV, K, V, W, SLOTS = 2, 4, 16, 32, 4, 6
D = 2 * H * K + HV * V
BACKEND = "torch"  # whatever else is installed
NAMES = ["QwenGatedDeltaNetAttention", "OlmoHybridGatedDeltaNetAttention"]


class Layer(DispatchCore):
    """What the core reads of a vLLM layer."""

    def __init__(self, **more):
        torch.manual_seed(0)
        self.prefix, self.activation = "model.layers.0.linear_attn", "silu"
        # one page per slot, as the engine lays them out: both pools are strided views of it
        pages = torch.randn(SLOTS, (W - 1) * D + HV * V * K)
        conv, state = pages.split(((W - 1) * D, HV * V * K), dim=1)
        self.kv_cache = (conv.view(SLOTS, W - 1, D), state.view(SLOTS, HV, V, K))
        self.conv1d = SimpleNamespace(weight=torch.randn(D, 1, W), bias=None)
        self.A_log, self.dt_bias = torch.randn(HV), torch.randn(HV)
        self.num_spec, self.gdn_limits = 0, (4, 64)
        self.get_state_dtype = lambda: (torch.float32, torch.float32)
        self.gdn_selection = gdn_dispatch.explain(
            head_dim_k=K, head_dim_v=V, num_heads=H, num_v_heads=HV, conv_width=W, backend=BACKEND
        )
        self.__dict__.update(more)


def inputs(T=9, padded=3):
    torch.manual_seed(1)
    rows = T + padded
    # the row stride of Qwen3.5's projection: more than D
    qkv = torch.randn(rows, D + 64)[:, :D]
    return qkv, torch.randn(rows, HV), torch.randn(rows, HV), torch.full((rows, HV, V), 7.0)


def metadata(chunk_meta):
    counts = dict.fromkeys(
        [
            "num_prefills", "num_prefill_tokens", "num_decodes", "num_decode_tokens",
            "num_spec_decodes", "num_spec_decode_tokens", "num_actual_tokens",
        ],
        0,
    )  # fmt: skip
    return DispatchGDNMetadata(**counts, chunk_meta=chunk_meta, gdn_backend=BACKEND)


def step():
    plan = gdn_dispatch.plan_batch(
        [0, 1, 9], state_indices=[2, 4], has_initial_state=[True, False], pad_slot=0
    )
    return gdn_dispatch.build_chunk_meta(plan, "cpu", backend=BACKEND)


def forward(layer, attn_metadata, T=9, padded=3):
    qkv, a, b, out = inputs(T, padded)
    with override_forward_context(SimpleNamespace(attn_metadata=attn_metadata)):
        layer._forward_core(qkv, b, a, out)
    return qkv, a, b, out


@pytest.mark.parametrize("allow_neg_eigval", [False, True])
def test_the_core_is_gdn_attention_on_the_pools(allow_neg_eigval):
    layer, other, meta = Layer(allow_neg_eigval=allow_neg_eigval), Layer(), step()
    qkv, a, b, out = forward(layer, {layer.prefix: metadata(meta)})
    expected = gdn_dispatch.gdn_attention(
        qkv[:9], a[:9], b[:9], meta=meta,
        conv_state=other.kv_cache[0].transpose(1, 2), ssm_state=other.kv_cache[1],
        conv_weight=other.conv1d.weight[:, 0], A_log=other.A_log, dt_bias=other.dt_bias,
        state_v_first=True, allow_neg_eigval=allow_neg_eigval, backend=BACKEND,
    )  # fmt: skip
    assert torch.equal(out[:9], expected)
    assert not out[9:].any()
    for ours, theirs in zip(layer.kv_cache, other.kv_cache, strict=True):
        assert torch.equal(ours, theirs)


def test_the_packed_conv_weight_is_not_used():
    layer, meta = Layer(), step()
    expected = forward(layer, {layer.prefix: metadata(meta)})[3]
    packed = Layer()
    packed.conv1d._cpu_unpacked_conv_weight = packed.conv1d.weight[:, 0].clone()
    packed.conv1d.weight = torch.full((D, 1, W), float("nan"))
    assert torch.equal(forward(packed, {layer.prefix: metadata(meta)})[3], expected)


@pytest.mark.parametrize("context", [None, {}, {"another": object()}, [{}]])
def test_a_run_without_metadata_writes_zeros_and_leaves_the_pools(context):
    layer, untouched = Layer(), Layer()
    assert not forward(layer, context)[3].any()
    assert torch.equal(layer.kv_cache[0], untouched.kv_cache[0])
    assert torch.equal(layer.kv_cache[1], untouched.kv_cache[1])


def test_a_run_without_metadata_warms_the_backend_up_once(monkeypatch):
    calls = []
    monkeypatch.setattr(core, "warmup", lambda spec, *_, **limits: calls.append((spec, limits)))
    core._warm_up_once.cache_clear()
    for _ in range(2):
        forward(Layer(num_spec=2, gdn_limits=(3, 17)), None)
    ((spec, limits),) = calls
    assert (spec.num_heads, spec.num_v_heads, spec.head_dim_k, spec.head_dim_v) == (H, HV, K, V)
    assert (spec.conv_width, spec.num_speculative_tokens, spec.conv_bias) == (W, 2, False)
    assert limits == {"max_num_seqs": 3, "max_num_tokens": 17, "backend": BACKEND}
    core._warm_up_once.cache_clear()


def test_missing_metadata_is_named():
    layer = Layer()
    with pytest.raises(MetadataError, match=r"chunk_meta: got None in the metadata of model\."):
        forward(layer, {layer.prefix: metadata(None)})
    with pytest.raises(MetadataError, match=r"attn_metadata\['model\.layers\.0\.linear_attn'\]"):
        forward(layer, {"model.layers.1.linear_attn": metadata(step())})
    with pytest.raises(MetadataError, match="got object, expected DispatchGDNMetadata"):
        forward(layer, {layer.prefix: object()})


def test_a_block_size_the_backend_cannot_use_ends_the_start_up(monkeypatch):
    class Vllms:
        def get_kv_cache_spec(self, vllm_config):
            return "spec"

    class WithSpec(Layer, Vllms):
        pass

    layer = WithSpec()
    cache = SimpleNamespace(block_size=528, mamba_cache_mode="none")
    config = SimpleNamespace(cache_config=cache)
    assert layer.get_kv_cache_spec(config) == "spec"
    (torch_backend,) = (row for row in gdn_dispatch.list_backends() if row.name == "torch")
    picky = dataclasses.replace(torch_backend.info, block_size_multiple=64)
    rows = (dataclasses.replace(torch_backend, info=picky),)
    monkeypatch.setattr(blocks, "list_backends", lambda: rows)
    with pytest.raises(IntegrationError, match="Pass --block-size 576"):
        layer.get_kv_cache_spec(config)


@pytest.fixture
def _unregistered(monkeypatch):
    monkeypatch.setattr(registration, "_status", integration.Status((), "", "not called"))
    for name in NAMES:
        monkeypatch.delitem(op_registry_oot, name, raising=False)


@pytest.mark.usefixtures("_unregistered")
def test_both_layers_are_registered_and_again(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, logger="gdn_dispatch"):
        integration.register()
        integration.register()
        monkeypatch.setattr(registration, "_status", integration.Status((), "", "not called"))
        integration.register()
    assert integration.status().why == ""
    assert integration.status().layers == tuple(NAMES)
    assert [op_registry_oot[name] for name in NAMES] == [
        DispatchGatedDeltaNetAttention,
        DispatchOlmoHybridAttention,
    ]
    assert not caplog.records  # silent: nobody is served yet


@pytest.mark.usefixtures("_unregistered")
def test_a_class_of_someone_else_is_left_where_it_is(monkeypatch, caplog):
    class Foreign:
        pass

    monkeypatch.setitem(op_registry_oot, NAMES[0], Foreign)
    with caplog.at_level(logging.INFO, logger="gdn_dispatch"):
        integration.register()
    assert op_registry_oot[NAMES[0]] is Foreign
    assert integration.status().layers == (NAMES[1],)
    assert "Foreign is registered" in integration.status().why
    assert len(caplog.records) == 1


def test_the_mixin_comes_before_vllms_methods():
    for cls in (DispatchGatedDeltaNetAttention, DispatchOlmoHybridAttention):
        assert cls._forward_core is DispatchCore._forward_core
        assert cls.get_attn_backend is DispatchCore.get_attn_backend
        assert cls.get_kv_cache_spec is DispatchCore.get_kv_cache_spec
