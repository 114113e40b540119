"""The adapters, against operators of the documented schema: what they convert, refuse and read."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from gdn_dispatch_ascend import providers
from gdn_dispatch_ascend.meta import build_chunk_meta
from gdn_dispatch_ascend.providers import aclnn, aclnn_conv, operators

from backends.ascend.tests import operators_played as played
from gdn_dispatch.errors import (
    BackendNotInstalledError,
    BackendUnavailableError,
    UnsupportedRequestError,
)
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.testing.host_reads import record_host_reads
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.torch_backend import rule as torch_rule
from gdn_dispatch.types import MetaRequest, RuleRequest

H, HV, D = 1, 2, 128
RAGGED = (0, 70, 1, 0, 33)
SHORT = (0, 8, 1, 0, 3)
CPU = torch.device("cpu")


def packed_meta(lengths, total=None):
    starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    return build_chunk_meta(
        MetaRequest(plan_batch(starts, total_tokens=total), CPU, num_v_heads=HV)
    )  # fmt: skip


def request(
    lengths=None, *, recurrent=False, B=None, T=None, state=True, seed=0, K=D, V=D, H=H, HV=HV,
    dtype=torch.bfloat16, **changes,
):  # fmt: skip
    rng = generator(seed)
    lengths = ((5, 3) if recurrent else (70, 33)) if lengths is None else lengths
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
        "initial_state": randn(N, HV, K, V).bfloat16() if state else None,
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": False,
        "use_beta_sigmoid_in_kernel": False,
        "allow_neg_eigval": False,
        "state_v_first": False,
        "A_log": None,
        "dt_bias": None,
        "meta": meta,
        "recurrent": recurrent,
    }
    return RuleRequest(**{**values, **changes})


def compare(r, tolerance=1e-2):
    got = providers.run("aclnn", r)
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


def v_first(r):
    """The same request with states of the other layout."""
    r.state_v_first = True
    if r.initial_state is not None:
        r.initial_state = r.initial_state.transpose(2, 3).contiguous()
    return r


def tensors_of(r):
    names = ("q", "k", "v", "g", "beta", "initial_state")
    return {name: getattr(r, name) for name in names if getattr(r, name) is not None}


@pytest.fixture(params=[False, True], ids=["chunk", "recurrent"])
def recurrent(request):
    return request.param


class TestNumbers:
    def test_packed(self, calls, recurrent):
        compare(request(recurrent=recurrent))
        assert [name for name, _ in calls] == ["recurrent" if recurrent else "chunk"]

    def test_states_with_v_first(self, calls, recurrent):
        compare(v_first(request(recurrent=recurrent)))

    def test_dense(self, calls, recurrent):
        compare(request(B=3, T=8 if recurrent else 40, recurrent=recurrent))

    def test_dense_without_tokens(self, calls, recurrent):
        r = request(B=2, T=0, recurrent=recurrent)
        got = compare(r)
        assert calls == []
        assert got.final_state.data_ptr() != r.initial_state.data_ptr()

    @pytest.mark.parametrize("state", [True, False])
    @pytest.mark.parametrize("layout", [lambda r: r, v_first])
    def test_empty_sequences_and_rows_of_nobody(self, calls, recurrent, state, layout):
        lengths = SHORT if recurrent else RAGGED
        tokens = sum(lengths)
        r = layout(request(lengths, T=tokens + 9, state=state, recurrent=recurrent))
        r.q[:, tokens:] = math.nan
        got = compare(r)
        assert not got.output[:, tokens:].any()
        if state:
            assert torch.equal(got.final_state[0], r.initial_state[0].float())

    def test_only_empty_sequences(self, calls, recurrent):
        compare(request((0, 0), T=3, recurrent=recurrent))
        assert calls == []

    def test_no_states(self, calls, recurrent):
        compare(request(state=False, output_final_state=False, recurrent=recurrent))

    def test_l2norm(self, calls, recurrent):
        r = request(use_qk_l2norm_in_kernel=True, recurrent=recurrent)
        r.q, r.k = r.q * 3, r.k * 5
        compare(r)

    def test_raw_gate_and_logits(self, calls, recurrent):
        r = request(recurrent=recurrent)
        rng = generator(1)
        shape = r.g.shape
        r.A_log, r.dt_bias = torch.randn(HV, generator=rng), torch.randn(HV, generator=rng)
        r.g = torch.randn(shape, generator=rng)
        r.beta = torch.randn(shape, generator=rng).bfloat16()
        r.use_beta_sigmoid_in_kernel = r.allow_neg_eigval = True
        compare(r, tolerance=2e-2)

    def test_scale(self, calls, recurrent):
        compare(request(scale=0.25, recurrent=recurrent))

    @pytest.mark.parametrize("reset", [-math.inf, -1e4])
    def test_resets(self, calls, recurrent, reset):
        r = request(recurrent=recurrent)
        r.g[:, 2::17] = reset
        compare(r)

    def test_strided_inputs(self, calls, recurrent):
        r = request(recurrent=recurrent)
        wide = torch.cat([r.q, r.k, r.v], dim=2)
        r.q, r.k, r.v = wide[:, :, :H], wide[:, :, H : 2 * H], wide[:, :, 2 * H :]
        r.g = torch.stack([r.g, r.g], -1)[..., 0]
        compare(r)

    def test_more_value_heads(self, calls, recurrent):
        compare(request(H=2, HV=6, recurrent=recurrent))

    @pytest.mark.parametrize("empty", [False, True])
    def test_inputs_are_left_alone(self, calls, recurrent, empty):
        """The operators write states; they are given new ones."""
        lengths = (SHORT if recurrent else RAGGED) if empty else None
        r = v_first(request(lengths, recurrent=recurrent))
        before = {name: x.clone() for name, x in tensors_of(r).items()}
        providers.run("aclnn", r)
        assert all(torch.equal(x, before[name]) for name, x in tensors_of(r).items())

    def test_reads_nothing_on_the_host(self, calls, recurrent):
        lengths = SHORT if recurrent else RAGGED
        r = request(lengths, T=sum(lengths) + 2, recurrent=recurrent)
        with record_host_reads() as reads:
            providers.run("aclnn", r)
        mine = ("aclnn.py", "convert.py", "operators.py", "meta.py", "arguments.py")
        where = {read.rpartition(" at ")[2].partition(":")[0] for read in reads}
        assert where.isdisjoint(mine)


def test_the_recurrent_rule_takes_other_sizes(calls):
    compare(request(recurrent=True, K=64, V=32))
    compare(request(recurrent=True, K=256, V=256))


def test_after_an_update_of_the_metadata(calls):
    meta = packed_meta((70, 33))
    meta.update_(plan_batch([0, 60, 90], total_tokens=103))
    compare(request((60, 30), T=103, meta=meta))
    assert calls[-1][1]["actual_seq_lengths"].tolist() == [60, 30]


class TestRefusals:
    """Before the operator sees the call; what is asked, got, supported, and the way out."""

    def refused(self, calls, r, *words):
        with pytest.raises(UnsupportedRequestError) as caught:
            providers.run("aclnn", r)
        for word in ("ascend/aclnn", "npu_", *words):
            assert word in str(caught.value)
        assert calls == []

    @pytest.mark.parametrize("name", ["q", "k", "v"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_activations(self, calls, recurrent, name, dtype):
        r = request(recurrent=recurrent)
        setattr(r, name, getattr(r, name).to(dtype))
        self.refused(calls, r, f"{name} of {dtype}", "bfloat16", 'backend="ascend"')

    def test_states_that_would_lose_bits(self, calls, recurrent):
        r = request(recurrent=recurrent)
        r.initial_state = r.initial_state.float()
        self.refused(calls, r, "initial_state of torch.float32", "initial_state.bfloat16()")

    def test_another_device(self, calls, recurrent, monkeypatch):
        monkeypatch.setattr(operators, "DEVICE_TYPES", ("npu",))
        self.refused(calls, request(recurrent=recurrent), "tensors on cpu")

    def test_gradients(self, calls, recurrent):
        r = request(recurrent=recurrent)
        r.v.requires_grad_()
        self.refused(calls, r, "gradients", "no_grad")
        with torch.no_grad():
            providers.run("aclnn", r)

    def test_sizes_of_the_chunk_rule(self, calls):
        self.refused(calls, request(K=64, V=64), "K=64, V=64", "128")
        self.refused(calls, request(V=64), "K=128, V=64", "128")
        self.refused(calls, request(H=65, HV=65), "H=65, HV=65", "64 heads")

    def test_sizes_of_the_recurrent_rule(self, calls):
        self.refused(calls, request(recurrent=True, K=272), "K=272", "256")
        self.refused(calls, request(recurrent=True, H=257, HV=257, K=8, V=8), "HV=257", "256 heads")

    def test_lengths_of_the_recurrent_rule(self, calls):
        self.refused(
            calls, request((3, 9), recurrent=True), "9 tokens", "8", "chunk_gated_delta_rule"
        )  # fmt: skip
        self.refused(calls, request(B=2, T=9, recurrent=True), "9 tokens")


class TestProbing:
    """The schema decides: an operator that means something else is not called."""

    @pytest.fixture
    def nothing(self, monkeypatch):
        monkeypatch.setattr(operators, "installed_version", {"torch-npu": "2.13.0"}.get)
        monkeypatch.setattr(operators, "loaded", lambda: True)
        monkeypatch.setattr(operators, "DEVICE_TYPES", ("cpu",))

    def test_documented_schemas(self, nothing):
        with played.registered(played.CHUNK, played.RECURRENT, played.CONV):
            assert [op.unavailable() for op in (aclnn.CHUNK, aclnn.RECURRENT, aclnn_conv.CONV)] == [
                "", "", "",
            ]  # fmt: skip
            assert aclnn.unavailable() == aclnn_conv.unavailable() == ""

    def test_torch_writes_them_as_the_documentation_does(self, nothing):
        with played.registered(played.CHUNK, played.RECURRENT, played.CONV):
            for op in (aclnn.CHUNK, aclnn.RECURRENT, aclnn_conv.CONV):
                assert str(getattr(torch.ops.npu, op.name).default._schema) == f"npu::{op.schema}"

    def test_further_arguments_with_defaults_are_welcome(self, nothing):
        with played.registered(
            played.CHUNK.replace("Tensor? g=None)", "Tensor? g=None, bool? fast=False)"),
            played.RECURRENT,
        ):
            assert aclnn.unavailable() == ""

    @pytest.mark.parametrize(
        ("old", "new", "complaint"),
        [
            (", Tensor? g=None)", ")", "it has no argument g"),
            ("Tensor? beta=None", "Tensor beta", "beta is Tensor, not Tensor?"),
            ("Tensor? actual_seq_lengths=None", "int[]? actual_seq_lengths=None", "int[]?"),
            ("Tensor value, *", "Tensor value, Tensor state, *", "it wants state (Tensor), too"),
            ("(Tensor query, Tensor key", "(Tensor key, Tensor query", "another place"),
            ("-> (Tensor, Tensor)", "-> Tensor", "it returns Tensor, not (Tensor, Tensor)"),
        ],
    )
    def test_another_schema(self, nothing, old, new, complaint):
        schema = played.CHUNK.replace(old, new)
        assert schema != played.CHUNK
        with played.registered(schema, played.RECURRENT):
            for reason in (aclnn.CHUNK.unavailable(), aclnn.unavailable()):
                assert complaint in reason
                assert "npu_chunk_gated_delta_rule of torch-npu 2.13.0" in reason
            with pytest.raises(BackendUnavailableError, match="another one"):
                providers.run("aclnn", request())

    def test_a_torch_npu_without_the_operator(self, nothing):
        with played.registered(played.CHUNK):
            assert aclnn.CHUNK.unavailable() == ""
            assert "no operator npu_recurrent_gated_delta_rule" in aclnn.unavailable()
            with pytest.raises(
                BackendUnavailableError, match=r"torch-npu 2\.13\.0 has no operator"
            ):
                providers.run("aclnn", request(recurrent=True))

    def test_no_torch_npu(self, nothing, monkeypatch):
        monkeypatch.setattr(operators, "installed_version", lambda distribution: None)
        assert "pip install 'gdn-dispatch[ascend]'" in aclnn.unavailable()
        with pytest.raises(BackendUnavailableError, match="not installed"):
            providers.run("aclnn", request())

    def test_a_torch_npu_that_is_not_loaded(self, nothing, monkeypatch):
        """Nothing is known against it: the backend's probe, and a call, say what is missing."""
        monkeypatch.setattr(operators, "loaded", lambda: False)
        assert aclnn.unavailable() == ""
        with pytest.raises(BackendUnavailableError, match="TORCH_DEVICE_BACKEND_AUTOLOAD"):
            providers.run("aclnn", request())


def test_an_unknown_adapter(calls):
    with pytest.raises(BackendNotInstalledError, match=r"\(has aclnn\)"):
        providers.run("nobody", request())


def test_what_backend_info_says(calls):
    (info,) = providers.provider_infos()
    assert (info.name, info.unavailable) == ("aclnn", "")
    assert info.capability.dtypes == info.capability.state_dtypes == ("bfloat16",)
    assert any("has not run on an NPU" in note for note in info.capability.notes)


def test_looking_imports_nothing():
    loaded = set(sys.modules)
    providers.provider_infos()
    aclnn_conv.unavailable()
    assert {module.partition(".")[0] for module in set(sys.modules) - loaded}.isdisjoint(
        {"torch_npu", "triton", "vllm_ascend"}
    )
