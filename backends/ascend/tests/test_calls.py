"""The hooks' parts behind the public calls: what an engine or a model gets from them."""

from __future__ import annotations

import pytest
import torch
from gdn_dispatch_ascend import providers
from gdn_dispatch_ascend.meta import AscendChunkMeta, build_chunk_meta

import gdn_dispatch
from backends.ascend.tests import definitions
from gdn_dispatch import Available, BackendInfo, Capability, Feature, hookimpl
from gdn_dispatch.config import read
from gdn_dispatch.errors import MetadataError, UnsupportedRequestError
from gdn_dispatch.plugins.manager import load
from gdn_dispatch.selection import dispatch
from gdn_dispatch.testing.numbers import generator, relative_error

RULES = frozenset({Feature.CHUNK_RULE, Feature.RECURRENT_RULE, Feature.VARLEN})


class Plugin:
    """The backend on a CPU, with adapters for its kernels."""

    @hookimpl
    def backend_info(self):
        return BackendInfo(
            name="ascend", device_types=("cpu",), capability=Capability(features=RULES),
            priority=-1, chunk_size=64, providers=providers.provider_infos(),
        )  # fmt: skip

    @hookimpl
    def probe(self):
        return Available()

    @hookimpl
    def build_chunk_meta(self, request):
        return build_chunk_meta(request)

    @hookimpl
    def gated_delta_rule(self, request):
        return providers.run(request.provider, request)


@pytest.fixture
def calls(calls):
    before = dispatch.active_registry(), dispatch.active_config()
    config = read({})
    registry = load(config, entry_points=[])
    registry.register(Plugin(), "ascend")
    dispatch.install(registry, config)
    yield calls
    dispatch.install(*before)


def inputs(tokens, *, HV=4, dtype=torch.bfloat16):
    rng = generator(0)
    q, k, v = (
        torch.randn(1, tokens, heads, 128, generator=rng).to(dtype) for heads in (2, 2, HV)
    )  # fmt: skip
    g = -torch.rand(1, tokens, HV, generator=rng)
    return q, k, v, g, torch.rand(1, tokens, HV, generator=rng)


def test_metadata_is_ascends(calls):
    plan = gdn_dispatch.plan_batch([0, 70, 70, 134])
    meta = gdn_dispatch.build_chunk_meta(plan, "cpu", num_v_heads=8, backend="ascend")
    assert isinstance(meta, AscendChunkMeta)
    definitions.check_tables(meta.tables, [70, 0, 64], 8)
    without = gdn_dispatch.build_chunk_meta(plan, "cpu", backend="ascend")
    with pytest.raises(MetadataError, match="num_v_heads to build_chunk_meta"):
        _ = without.tables


@pytest.mark.parametrize("name", ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"])
def test_a_rule_by_lengths_and_by_metadata(calls, name):
    rule = getattr(gdn_dispatch, name)
    lengths = [3, 0, 8]
    q, k, v, g, beta = inputs(sum(lengths))
    starts = definitions.running(lengths)
    plan = gdn_dispatch.plan_batch(starts)
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    meta = gdn_dispatch.build_chunk_meta(plan, "cpu", num_v_heads=4, backend="ascend")
    mine = rule(q, k, v, g=g, beta=beta, meta=meta, backend="ascend/aclnn", **options)
    theirs = rule(
        q, k, v, g=g, beta=beta, cu_seqlens=torch.tensor(starts), backend="torch", **options
    )  # fmt: skip
    for got, expected in zip(mine, theirs, strict=True):
        assert relative_error(got, expected) < 1e-2
    assert [kind for kind, _ in calls] == ["chunk" if name.startswith("chunk") else "recurrent"]


def test_a_refusal_has_the_reason(calls):
    q, k, v, g, beta = inputs(8, dtype=torch.float32)
    with pytest.raises(UnsupportedRequestError, match=r"dtype float32 .supports bfloat16"):
        gdn_dispatch.chunk_gated_delta_rule(q, k, v, g=g, beta=beta, backend="ascend/aclnn")
    q, k, v, g, beta = inputs(9)
    with pytest.raises(UnsupportedRequestError, match="a sequence of 9 tokens"):
        gdn_dispatch.fused_recurrent_gated_delta_rule(
            q, k, v, g=g, beta=beta, backend="ascend/aclnn"
        )
    assert calls == []
