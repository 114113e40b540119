"""The adapters, against libraries played on a CPU: what they convert, drop, refuse and read."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from gdn_dispatch_cuda import providers
from gdn_dispatch_cuda.providers import fla, flash_qla, flashinfer, library

from backends.cuda.tests import providers_stubs as stubs
from gdn_dispatch.errors import (
    BackendNotInstalledError,
    BackendUnavailableError,
    UnsupportedRequestError,
)
from gdn_dispatch.meta.chunk_meta import MetaSpec, build
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.testing import GDNBackendTests
from gdn_dispatch.testing.host_reads import record_host_reads
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.testing.xfails import read_exclusions
from gdn_dispatch.torch_backend import rule as torch_rule
from gdn_dispatch.types import MetaRequest, RuleRequest

NAMES = ("fla", "flashinfer", "flash_qla")
VERSIONS = {"fla-core": "0.6.0", "flashinfer-python": "0.7.2.post1", "flash-qla": "0.1.3"}
H, HV, D = 1, 2, 128
RAGGED = (0, 70, 1, 0, 33)


@pytest.fixture
def calls(monkeypatch):
    """The libraries played, on a device that is a CPU; what they were called with."""
    found = {name: [] for name in (*NAMES, "contexts")}
    stubs.install(
        monkeypatch, "fla.ops.gated_delta_rule", chunk_gated_delta_rule=stubs.fla_rule(found["fla"])
    )
    stubs.install(
        monkeypatch,
        "flashinfer.gdn_prefill",
        chunk_gated_delta_rule=stubs.flashinfer_prefill(found["flashinfer"]),
    )
    stubs.install(
        monkeypatch, "flash_qla", chunk_gated_delta_rule=stubs.qla_rule(found["flash_qla"])
    )
    stubs.install(
        monkeypatch,
        "flash_qla.ops.gated_delta_rule.chunk",
        build_cp_context=stubs.qla_context(found["contexts"]),
        CHUNK_SIZE=64,
    )
    stubs.install(monkeypatch, "flash_qla.utils.index", prepare_varlen_metadata=stubs.qla_prepare())
    monkeypatch.setattr(library, "installed_version", VERSIONS.get)
    monkeypatch.setattr(library, "DEVICE_TYPES", ("cpu",))
    for module in (library, flash_qla, providers):
        monkeypatch.setattr(module, "compute_capability", lambda device: (9, 0))
    forget()
    yield found
    forget()


def forget():
    for function in (
        fla._chunk_rule,
        flashinfer._prefill,
        flash_qla._functions,
        providers.available,
    ):
        function.cache_clear()


def packed_meta(lengths, total=None):
    starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    plan = plan_batch(starts, total_tokens=total)
    return build(MetaRequest(plan, torch.device("cpu")), MetaSpec(64), backend="cuda")


def request(
    lengths=(70, 33),
    *,
    B=None,
    T=None,
    state=True,
    dtype=torch.bfloat16,
    seed=0,
    K=D,
    V=D,
    **changes,
):
    rng = generator(seed)
    meta = None
    if B is None:
        B, T = 1, T or sum(lengths)
        meta = packed_meta(lengths, T)
    N = B if meta is None else len(lengths)

    def randn(*shape):
        return torch.randn(*shape, generator=rng)

    q, k = (torch.nn.functional.normalize(randn(B, T, H, K), dim=-1).to(dtype) for _ in range(2))
    values = {
        "q": q,
        "k": k,
        "v": randn(B, T, HV, V).to(dtype),
        "g": -torch.rand(B, T, HV, generator=rng),
        "beta": torch.rand(B, T, HV, generator=rng),
        "scale": K**-0.5,
        "initial_state": randn(N, HV, K, V) if state else None,
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": False,
        "use_beta_sigmoid_in_kernel": False,
        "allow_neg_eigval": False,
        "state_v_first": False,
        "A_log": None,
        "dt_bias": None,
        "meta": meta,
        "recurrent": False,
    }
    return RuleRequest(**{**values, **changes})


def v_first(r):
    """The same request with states of the other layout."""
    r.state_v_first = True
    if r.initial_state is not None:
        r.initial_state = r.initial_state.transpose(2, 3).contiguous()
    return r


def compare(name, r, tolerance=6e-3):
    got = providers.run(name, r)
    expected = torch_rule.gated_delta_rule(r)
    assert got.output.shape == r.v.shape
    assert got.output.dtype == r.v.dtype
    assert got.output.is_contiguous()
    assert relative_error(got.output, expected.output) < tolerance
    if r.output_final_state:
        assert got.final_state.dtype == torch.float32
        assert got.final_state.is_contiguous()
        assert got.final_state.shape == expected.final_state.shape
        assert relative_error(got.final_state, expected.final_state) < tolerance
    else:
        assert got.final_state is None
    return got


@pytest.mark.parametrize("name", NAMES)
class TestNumbers:
    def test_packed(self, calls, name):
        compare(name, request())

    def test_states_with_v_first(self, calls, name):
        compare(name, v_first(request(V=D)))

    def test_dense(self, calls, name):
        compare(name, request(B=3, T=40))

    def test_dense_without_tokens(self, calls, name):
        r = request(B=2, T=0)
        got = compare(name, r)
        assert calls[name] == []
        assert got.final_state.data_ptr() != r.initial_state.data_ptr()

    @pytest.mark.parametrize("state", [True, False])
    @pytest.mark.parametrize("layout", [lambda r: r, v_first])
    def test_empty_sequences_and_rows_of_nobody(self, calls, name, state, layout):
        r = layout(request(RAGGED, T=sum(RAGGED) + 9, state=state))
        r.q[:, sum(RAGGED) :] = math.nan
        got = compare(name, r)
        assert not got.output[:, sum(RAGGED) :].any()
        if state:
            assert torch.equal(got.final_state[0], r.initial_state[0])
            assert got.final_state.data_ptr() != r.initial_state.data_ptr()

    def test_only_empty_sequences(self, calls, name):
        compare(name, request((0, 0), T=3))
        assert calls[name] == []

    def test_no_states(self, calls, name):
        compare(name, request(state=False, output_final_state=False))

    def test_l2norm(self, calls, name):
        r = request(use_qk_l2norm_in_kernel=True)
        r.q, r.k = r.q * 3, r.k * 5
        compare(name, r)

    def test_raw_gate_and_logits(self, calls, name):
        rng = generator(1)
        compare(
            name,
            request(
                A_log=torch.randn(HV, generator=rng),
                dt_bias=torch.randn(HV, generator=rng),
                g=torch.randn(1, 103, HV, generator=rng),
                beta=torch.randn(1, 103, HV, generator=rng).bfloat16(),
                use_beta_sigmoid_in_kernel=True,
                allow_neg_eigval=True,
            ),
            tolerance=1e-2,
        )

    def test_raw_gate_without_bias(self, calls, name):
        compare(name, request(A_log=torch.zeros(HV)))

    def test_scale(self, calls, name):
        compare(name, request(scale=0.25))

    @pytest.mark.parametrize("reset", [-math.inf, -1e4])
    def test_resets(self, calls, name, reset):
        r = request()
        r.g[:, 5::17] = reset
        compare(name, r)

    def test_strided_inputs(self, calls, name):
        r = request()
        wide = torch.cat([r.q, r.k, r.v], dim=2)
        r.q, r.k, r.v = wide[:, :, :H], wide[:, :, H : 2 * H], wide[:, :, 2 * H :]
        r.g = torch.stack([r.g, r.g], -1)[..., 0]
        r.initial_state = r.initial_state.bfloat16()[:, :, :, :]
        compare(name, r)

    def test_inputs_off_sixteen_bytes(self, calls, name):
        r = request()
        shifted = torch.empty(r.q.numel() + 1, dtype=r.q.dtype)[1:].view(r.q.shape)
        r.q = shifted.copy_(r.q)
        compare(name, r)

    def test_gates_of_the_activation_dtype(self, calls, name):
        r = request(dtype=torch.float16)
        r.g, r.beta = r.g.half(), r.beta.half()
        compare(name, r)

    def test_inputs_are_left_alone(self, calls, name):
        r = request(RAGGED)
        before = {n: x.clone() for n, x in vars_of(r).items()}
        providers.run(name, r)
        assert all(torch.equal(x, before[n]) for n, x in vars_of(r).items())

    def test_reads_nothing_on_the_host(self, calls, name):
        r = request(RAGGED, T=sum(RAGGED) + 2, use_qk_l2norm_in_kernel=True)
        with record_host_reads() as reads:
            providers.run(name, r)
        # the played library itself does, as it likes
        ours = [read for read in reads if "gdn_dispatch_cuda" in read]
        assert ours == []


def vars_of(r):
    names = ("q", "k", "v", "g", "beta", "initial_state")
    return {name: getattr(r, name) for name in names}


@pytest.mark.parametrize("name", NAMES)
class TestRefusals:
    def refused(self, name, r, *words):
        with pytest.raises(UnsupportedRequestError) as caught:
            providers.run(name, r)
        for word in (f"cuda/{name}", *words):
            assert word in str(caught.value)

    def test_decode(self, calls, name):
        self.refused(name, request(recurrent=True), "fused_recurrent")

    def test_fp32(self, calls, name):
        self.refused(name, request(dtype=torch.float32), "float32", "bfloat16")

    def test_fp8_states(self, calls, name):
        r = request()
        r.initial_state = r.initial_state.to(torch.float8_e4m3fn)
        self.refused(name, r, "initial_state", "float8")

    def test_another_device(self, calls, name, monkeypatch):
        monkeypatch.setattr(library, "DEVICE_TYPES", ("cuda",))
        self.refused(name, request(), "cpu")

    def test_an_old_gpu(self, calls, name, monkeypatch):
        monkeypatch.setattr(library, "compute_capability", lambda device: (7, 5))
        self.refused(name, request(), "7.5")

    def test_head_dims(self, calls, name):
        if name == "fla":
            self.refused(name, request(K=320), "256")
            compare(name, request(K=64, V=32))
        else:
            self.refused(name, request(K=64), "K=64")
            self.refused(name, request(V=64), "V=64")

    def test_scale_of_zero(self, calls, name):
        r = request(scale=0.0)
        if name == "fla":
            pytest.skip("FLA's own default is for None alone")
        self.refused(name, r, "scale=0.0")

    def test_gradients(self, calls, name):
        r = request()
        r.v.requires_grad_()
        if name == "fla":
            providers.run(name, r)
        else:
            self.refused(name, r, "gradients")
            with torch.no_grad():
                providers.run(name, r)

    def test_another_version(self, calls, name, monkeypatch):
        monkeypatch.setattr(library, "installed_version", lambda distribution: "99.0")
        assert "99.0" in providers.ADAPTERS[name].unavailable()
        with pytest.raises(BackendUnavailableError, match=r"99\.0"):
            providers.run(name, request())

    def test_not_installed(self, calls, name, monkeypatch):
        monkeypatch.setattr(library, "installed_version", lambda distribution: None)
        assert "pip install" in providers.ADAPTERS[name].unavailable()
        with pytest.raises(BackendUnavailableError, match="not installed"):
            providers.run(name, request())

    def test_an_import_that_fails(self, calls, name, monkeypatch):
        module = {
            "fla": "fla.ops.gated_delta_rule",
            "flashinfer": "flashinfer.gdn_prefill",
            "flash_qla": "flash_qla.utils.index",
        }[name]
        for attribute in ("chunk_gated_delta_rule", "prepare_varlen_metadata"):
            monkeypatch.delattr(sys.modules[module], attribute, raising=False)
        with pytest.raises(BackendUnavailableError, match="cannot be imported"):
            providers.run(name, request())


def test_qla_refuses_odd_numbers_of_heads(calls):
    def of_heads(HV):
        r = request(state=False)
        r.v, r.g, r.beta = (x.repeat_interleave(3, 2)[:, :, :HV] for x in (r.v, r.g, r.beta))
        return r

    for HV in (3, 5):
        with pytest.raises(UnsupportedRequestError, match=rf"HV={HV}: .* even .*cuda/triton"):
            providers.run("flash_qla", of_heads(HV))
    for HV in (1, 4):
        compare("flash_qla", of_heads(HV))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_library_is_known_to_fail_is_a_test(name):
    path = Path(__file__).with_name(f"xfails_{name}.txt")
    for exclusion in read_exclusions(path if path.exists() else None):
        assert hasattr(GDNBackendTests, exclusion.test.partition("[")[0])


def test_qla_refuses_fp16_on_consumer_blackwell(calls, monkeypatch):
    for module in (library, flash_qla):
        monkeypatch.setattr(module, "compute_capability", lambda device: (12, 0))
    with pytest.raises(UnsupportedRequestError, match=r"float16 on compute capability 12\.0"):
        providers.run("flash_qla", request(dtype=torch.float16))
    providers.run("flash_qla", request())


def test_qla_plans_once_a_step_and_head_count(calls):
    meta = packed_meta((70, 33))
    for seed in range(3):
        providers.run("flash_qla", request(seed=seed, meta=meta))
    assert [call["num_v_heads"] for call in calls["contexts"]] == [HV]
    meta.update_(plan_batch([0, 60, 90], total_tokens=103))
    compare("flash_qla", request((60, 30), T=103, meta=meta))
    assert len(calls["contexts"]) == 2


def test_fla_needs_chunks_of_its_size(calls):
    r = request()
    r.meta = build(MetaRequest(r.meta.plan, torch.device("cpu")), MetaSpec(32), backend="cuda")
    with pytest.raises(UnsupportedRequestError, match="chunks of 32"):
        providers.run("fla", r)


def test_fla_gets_new_tensors_after_an_update(calls):
    meta = packed_meta((70, 33))
    compare("fla", request(meta=meta))
    compare("fla", request(meta=meta))
    meta.update_(plan_batch([0, 60, 90], total_tokens=103))
    compare("fla", request((60, 30), T=103, meta=meta))
    first, second, third = (call["cu_seqlens"] for call in calls["fla"])
    assert first is second
    assert first is not third


def test_flashinfer_is_told_the_longest_sequence(calls):
    providers.run("flashinfer", request((5, 70, 8)))
    assert calls["flashinfer"][0]["max_seqlen"] == 70
    assert calls["flashinfer"][0]["use_cp"] == "auto"


def test_flashinfer_is_not_asked_to_normalise(calls):
    providers.run("flashinfer", request(use_qk_l2norm_in_kernel=True))
    assert calls["flashinfer"][0]["use_qk_l2norm_in_kernel"] is False


def test_gradients_through_fla(calls):
    r = request(state=True, dtype=torch.bfloat16)
    expected = request(state=True, dtype=torch.bfloat16)
    for x in (r, expected):
        for tensor in vars_of(x).values():
            tensor.requires_grad_()
    got = providers.run("fla", r)
    (got.output.float().sum() + got.final_state.sum()).backward()
    reference = torch_rule.gated_delta_rule(expected)
    (reference.output.float().sum() + reference.final_state.sum()).backward()
    for name, x in vars_of(r).items():
        assert relative_error(x.grad, vars_of(expected)[name].grad) < 2e-2, name


def test_an_unknown_adapter(calls):
    with pytest.raises(BackendNotInstalledError, match="flashinfer, flash_qla, fla"):
        providers.run("nobody", request())


def test_what_backend_info_says(calls):
    infos = {info.name: info for info in providers.provider_infos()}
    assert list(infos) == ["triton", "triton_invariant", "flashinfer", "flash_qla", "fla"]
    assert not any(info.unavailable for info in infos.values())
    assert providers.available() == ("flashinfer", "flash_qla", "fla")


def test_looking_imports_nothing(monkeypatch):
    """Neither what is installed here nor what is not is imported by asking."""
    loaded = set(sys.modules)
    for name in NAMES:
        providers.ADAPTERS[name].unavailable()
        providers.ADAPTERS[name].capability()
    new = {module.partition(".")[0] for module in set(sys.modules) - loaded}
    assert new.isdisjoint({"fla", "flashinfer", "flash_qla", "tilelang", "cutlass"})


def test_what_is_right_already_is_handed_on(calls):
    r = v_first(request())
    providers.run("flashinfer", r)
    (given,) = calls["flashinfer"]
    for name in ("q", "k", "v", "beta"):
        assert given[name].data_ptr() == getattr(r, name).data_ptr(), name
