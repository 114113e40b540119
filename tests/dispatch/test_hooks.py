"""Each hook as the core calls it: when, with what, and what becomes of the answer."""

import pytest
import torch

from gdn_dispatch import (
    GDNOutput,
    InvalidArgumentError,
    build_chunk_meta,
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    gdn_attention,
    hookimpl,
    list_backends,
    plan_batch,
)
from gdn_dispatch.config import Config
from gdn_dispatch.plan.layout import NumpyTables, TablesRequest
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection import dispatch
from gdn_dispatch.testing.loopback import Loopback, info, loopback
from gdn_dispatch.torch_backend import plugin as torch_plugin
from gdn_dispatch.types import GDNRequest, MetaRequest, RuleRequest, Unavailable
from tests.support.fake_packages import distribution, fresh_python


class Recording(Loopback):
    """Answers with zeros and keeps every request."""

    def __init__(self, **fields):
        super().__init__(info("mine", **fields))
        self.requests = []

    @hookimpl
    def gdn_attention(self, request):
        self.requests.append(request)
        return GDNOutput(request.out.zero_())

    @hookimpl
    def gated_delta_rule(self, request):
        self.requests.append(request)
        return GDNOutput(torch.zeros_like(request.v), torch.ones(1))


class WithMetadata(Recording):
    @hookimpl
    def build_chunk_meta(self, request):
        self.requests.append(request)
        meta = torch_plugin.build_chunk_meta(request)
        meta.backend = "mine"
        return meta


class WithTables(Recording):
    """Counts and writes the tables of every backend's metadata."""

    def __init__(self, name, **fields):
        super().__init__(**fields)
        self.described = info(name, **fields)

    @hookimpl
    def chunk_tables(self, request):
        self.requests.append(request)
        return NumpyTables(request)


class Watching:
    """A third party's wrapper of every hook that runs something."""

    def __init__(self):
        self.seen = []

    def _watch(self, request):
        result = yield
        self.seen.append((request, result))
        return result

    @hookimpl(wrapper=True)
    def build_chunk_meta(self, request):
        return (yield from self._watch(request))

    @hookimpl(wrapper=True)
    def gdn_attention(self, request):
        return (yield from self._watch(request))

    @hookimpl(wrapper=True)
    def gated_delta_rule(self, request):
        return (yield from self._watch(request))


@pytest.fixture
def registry():
    """An empty one; the process's own comes back afterwards."""
    before = dispatch.active_registry(), dispatch.active_config()
    registry = Registry()
    dispatch.install(registry, Config())
    yield registry
    dispatch.install(*before)


@pytest.fixture
def mine(registry):
    plugin = Recording()
    registry.register(plugin, "mine")
    return plugin


def call_layer(**changes):
    """Five tokens of a layer with H=1, HV=2, K=4, V=6, W=4, in slot 1 of two."""
    D = 2 * 4 + 2 * 6
    arguments = {
        "mixed_qkv": torch.zeros(5, D),
        "a": torch.zeros(5, 2),
        "b": torch.zeros(5, 2),
        "conv_state": torch.zeros(2, D, 3),
        "ssm_state": torch.zeros(2, 2, 4, 6),
        "conv_weight": torch.zeros(D, 4),
        "A_log": torch.zeros(2),
        "dt_bias": torch.zeros(2),
    } | changes
    if "meta" not in arguments:
        arguments["meta"] = build_chunk_meta(plan_batch([0, 5], state_indices=[1]), "cpu")
    return gdn_attention(**arguments)


def call_rule(function=chunk_gated_delta_rule, **options):
    q = torch.zeros(1, 5, 1, 4)
    v, gate = torch.zeros(1, 5, 2, 6), torch.zeros(1, 5, 2)
    return function(q, q, v, g=gate, beta=gate, **options)


COUNTING = """
from gdn_dispatch import Available, hookimpl
from gdn_dispatch.testing.loopback import info

called = []

@hookimpl
def backend_info():
    called.append("backend_info")
    return info("mine")

@hookimpl
def probe():
    called.append("probe")
    return Available()
"""


def test_hook_backend_info_is_called_once_at_the_import(tmp_path):
    (tmp_path / "fake_mine.py").write_text(COUNTING)
    distribution(tmp_path, "gdn-mine", "mine", "fake_mine")
    asked = "gdn_dispatch.list_backends(), gdn_dispatch.current_backend('cpu')"
    code = f"import gdn_dispatch, fake_mine\nprint(*fake_mine.called)\n{asked}\n" * 2
    first, second = fresh_python(tmp_path, code).splitlines()
    assert first == "backend_info"
    assert second == "backend_info probe"


def test_hook_probe_is_called_once_at_the_first_question(registry):
    plugin = loopback("mine")
    registry.register(plugin, "mine")
    assert plugin.probes == 0
    for _ in range(2):
        list_backends()
        assert plugin.probes == 1


def test_hook_build_chunk_meta_may_be_left_to_the_core(registry):
    plugin = Recording(chunk_size=16, block_sizes=(128,), conv_block_size=8)
    registry.register(plugin, "mine")
    meta = build_chunk_meta(plan_batch([0, 40]), "cpu")
    assert meta.backend == "mine"
    assert {size: table.num_chunks for size, table in meta.chunks.items()} == {16: 3, 128: 1}
    assert meta.num_conv_tiles == 5
    assert not plugin.requests


def test_hook_build_chunk_meta_gets_the_step_and_its_answer_is_handed_on(registry):
    plugin = WithMetadata()
    registry.register(plugin, "mine")
    plan, slots = plan_batch([0, 5]), torch.tensor([1])
    meta = build_chunk_meta(plan, "cpu", state_indices=slots, num_v_heads=2)
    (request,) = plugin.requests
    assert isinstance(request, MetaRequest)
    assert request.plan is plan
    assert request.device == torch.device("cpu")
    assert request.state_indices is slots
    assert (request.num_v_heads, request.provider) == (2, None)
    assert meta.backend == "mine"


def test_hook_build_chunk_meta_builds_what_a_rule_was_given_as_lengths(registry):
    plugin = WithMetadata()
    registry.register(plugin, "mine")
    call_rule(cu_seqlens_cpu=[0, 2, 5])
    step, request = plugin.requests
    assert step.plan.seq_lens.tolist() == [2, 3]
    assert request.meta.plan is step.plan


def test_hook_chunk_tables_of_the_best_available_backend_serves_all(registry):
    mine, worse = Recording(priority=9), WithTables("worse", priority=1)
    better, best = WithTables("better", priority=2), WithTables("best", priority=3)
    broken = WithTables("broken", priority=4)
    broken.answer = Unavailable("no library")
    for plugin in (mine, better, worse, best, broken):
        registry.register(plugin, plugin.described.name)
    meta = build_chunk_meta(plan_batch([0, 5, 5, 70]), "cpu")
    assert meta.backend == "mine"
    (request,) = best.requests
    assert isinstance(request, TablesRequest)
    assert request.seq_lens.tolist() == [5, 0, 65]
    assert (request.block_sizes, request.conv_block_size) == ((64,), 0)
    assert meta.chunk_offsets.tolist() == [0, 1, 1, 3]
    meta.update_(plan_batch([0, 3]))
    assert best.requests[1].seq_lens.tolist() == [3]

    registry.unregister("best")
    build_chunk_meta(plan_batch([0, 5]), "cpu")
    assert (len(better.requests), len(best.requests)) == (1, 2)
    assert not worse.requests + broken.requests


def test_hook_gdn_attention_gets_the_validated_request(mine):
    output = call_layer(activation="swish")
    (request,) = mine.requests
    assert isinstance(request, GDNRequest)
    assert request.out is output
    assert output.shape == (5, 2, 6)
    # what the caller left open is settled, and spelt one way
    assert (request.activation, request.scale) == ("silu", 4**-0.5)
    sizes = (request.num_heads, request.num_v_heads, request.head_dim_k, request.head_dim_v)
    assert sizes == (1, 2, 4, 6)
    assert request.meta.backend == "mine"


def test_hook_gdn_attention_is_not_called_for_a_bad_argument(mine):
    with pytest.raises(InvalidArgumentError, match="conv_weight"):
        call_layer(conv_weight=torch.zeros(3, 4))
    assert not mine.requests


@pytest.mark.parametrize(
    ("function", "recurrent"),
    [(chunk_gated_delta_rule, False), (fused_recurrent_gated_delta_rule, True)],
)
def test_hook_gated_delta_rule_gets_the_validated_request(mine, function, recurrent):
    output, state = call_rule(function, output_final_state=True)
    (request,) = mine.requests
    assert isinstance(request, RuleRequest)
    assert request.recurrent is recurrent
    assert request.scale == 4**-0.5
    assert request.output_final_state is True
    assert (request.meta, request.provider, request.donate_initial_state) == (None, None, False)
    # both parts of the answer go to the caller as they are
    assert output.shape == request.v.shape
    assert torch.equal(state, torch.ones(1))


def test_hook_gated_delta_rule_is_not_called_for_a_bad_argument(mine):
    with pytest.raises(InvalidArgumentError, match="allow_neg_eigval"):
        call_rule(allow_neg_eigval=True)
    assert not mine.requests


def test_a_wrapper_sees_request_and_result_of_every_hook_that_runs(registry):
    plugin, watching = WithMetadata(), Watching()
    registry.register(plugin, "mine")
    registry.register_wrapper(watching, "watching")
    output = call_layer()
    call_rule()
    (meta_request, meta), (layer_request, layer), (rule_request, rule) = watching.seen
    assert [meta_request, layer_request, rule_request] == plugin.requests
    assert layer_request.meta is meta
    assert layer.output is output
    assert rule.output.shape == rule_request.v.shape
