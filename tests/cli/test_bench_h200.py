"""The suite's machinery on a CPU: the torch backend takes part, time is counted, not measured."""

import importlib
import json
import sys
import types
from contextlib import contextmanager
from itertools import count, pairwise

import pytest
import torch

from gdn_dispatch import api
from gdn_dispatch.cli import bench, main
from gdn_dispatch.cli.h200 import decode as h200_decode
from gdn_dispatch.cli.h200 import inputs as h200_inputs
from gdn_dispatch.cli.h200 import layer as h200_layer
from gdn_dispatch.cli.h200 import oracle as h200_oracle
from gdn_dispatch.cli.h200 import prefill as h200_prefill
from gdn_dispatch.cli.h200 import report as h200_report
from gdn_dispatch.cli.h200 import shapes as h200_shapes
from gdn_dispatch.cli.h200 import suite as h200
from gdn_dispatch.cli.h200 import timing as h200_timing
from gdn_dispatch.cli.h200.contest import Lost, NotApplicable, Ready, measure
from gdn_dispatch.cli.h200.decode import OurDecode, OurSteps
from gdn_dispatch.cli.h200.layer import OurLayer, VLLMLayer
from gdn_dispatch.cli.h200.prefill import Ours
from gdn_dispatch.cli.h200.shapes import DecodeShape, PrefillShape
from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.testing.numbers import generator, relative_error
from gdn_dispatch.testing.rule_inputs import Dims, random_inputs
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule, reference_gdn_layer

CPU = torch.device("cpu")
DIM = 16


class CountingStopwatch:
    """The n-th sampler of a run takes n seconds a call."""

    def __init__(self):
        self._seconds = count(1)

    def sampler(self, calls):
        for call in calls:
            call()
        seconds = float(next(self._seconds))
        return lambda: seconds


def prefill(lengths=(70, 1, 33), H=2, HV=4):
    shape = PrefillShape(H, HV, lengths, "+".join(map(str, lengths)), {"FLA": 1.0})
    return h200_inputs.prefill_inputs(shape, CPU, dim=DIM, dtype=torch.float32)


def layer(lengths=(70, 9)):
    shape = PrefillShape(2, 4, lengths, "+".join(map(str, lengths)))
    return h200_inputs.layer_inputs(shape, CPU, dim=DIM, dtype=torch.float32)


def decode(state_dtype="float32", B=3):
    shape = DecodeShape(B, 2, 4, state_dtype)
    return h200_inputs.decode_inputs(shape, CPU, cold_bytes=1 << 16, dim=DIM, dtype=torch.float32)


class TestShapes:
    def test_there_are_as_many_as_were_published(self):
        shapes = h200_shapes.prefill_shapes()
        assert len(shapes) == len({shape.name for shape in shapes}) == 171
        assert len({(shape.H, shape.HV) for shape in shapes[:9]}) == 9
        first = next(shape for shape in shapes if shape.name == "2/8 1x32768")
        assert first.published == {"FlashQLA": 0.32, "FlashInfer without CP": 1.655, "FLA": 0.902}

    @pytest.mark.parametrize(
        ("text", "lengths"),
        [
            ("1x32768", (32768,)),
            ("8192x4", (8192,) * 4),
            ("1024x8", (1024,) * 8),
            ("12288+4096", (12288, 4096)),
        ],
    )
    def test_lengths(self, text, lengths):
        assert h200_shapes.parse_lengths(text) == lengths

    def test_lengths_that_are_none(self):
        with pytest.raises(InvalidArgumentError):
            h200_shapes.parse_lengths("many")

    def test_the_quick_ones_exist(self):
        names = {shape.name for shape in h200_shapes.prefill_shapes()}
        assert names.issuperset(h200_shapes.QUICK_PREFILL)
        assert len(h200_shapes.QUICK_PREFILL) == 12

    def test_heads(self):
        chosen = h200_shapes.with_heads(h200_shapes.prefill_shapes(), ["2/8", "16/64"])
        assert len(chosen) == 38


class TestOracle:
    @pytest.mark.parametrize("T", [1, 63, 64, 65, 200])
    @pytest.mark.parametrize("case", ["mamba dt init", "strong decay", "g = 0"])
    def test_it_is_the_recurrence(self, T, case):
        x = random_inputs(T, Dims(3, 3, 16, 8), case=case)
        state = torch.randn(3, 16, 8, generator=generator(1))
        got = h200_oracle.chunk_oracle(*x, scale=0.3, state=state)
        expected = reference_gated_delta_rule(*x, scale=0.3, initial_state=state)
        for one, other in zip(got, expected, strict=True):
            assert relative_error(one, other) < 1e-12

    def test_a_whole_layer(self):
        x = layer()
        x.ssm_state.copy_(torch.randn(x.ssm_state.shape, generator=generator(2)))
        sample = x.exact()
        rows = sample.rows
        output, _, state = reference_gdn_layer(
            x.mixed_qkv[rows], x.a[rows], x.b[rows],
            conv_weight=x.conv_weight, conv_bias=None, A_log=x.A_log, dt_bias=x.dt_bias,
            num_heads=2, head_dim_k=DIM, head_dim_v=DIM,
            conv_history=x.conv_state[2], initial_state=x.ssm_state[2].mT,
        )  # fmt: skip
        assert relative_error(sample.output, output[:, sample.heads]) < 1e-6
        assert relative_error(sample.state, state[sample.heads]) < 1e-6


class TestContestants:
    """Through the very functions the suite calls, against the oracle."""

    def found(self, contestant, inputs):
        found = measure([contestant], inputs, CountingStopwatch(), rounds=2)[contestant.name]
        assert "failure" not in found, found
        assert "check_failure" not in found, found
        return found

    @pytest.mark.parametrize("whole", [False, True])
    def test_the_chunk_rule(self, whole):
        found = self.found(Ours("torch", whole=whole), prefill())
        assert found["seconds"] == 1.0
        assert max(found["errors"].values()) < 1e-5

    def test_a_layer(self):
        found = self.found(OurLayer("torch"), layer())
        assert max(found["errors"].values()) < 1e-5

    def test_the_check_of_a_layer_puts_the_pools_back(self):
        x = layer()
        ready = OurLayer("torch").prepare(x)
        before = x.ssm_state.clone(), x.conv_state.clone()
        ready.check()
        assert torch.equal(x.ssm_state, before[0])
        assert torch.equal(x.conv_state, before[1])

    @pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 1e-2)])
    def test_decode(self, dtype, error):
        x = decode(dtype)
        found = self.found(OurDecode("torch"), x)
        assert max(found["errors"].values()) < error
        assert found["traffic"] == 2 * 3 * 4 * DIM * DIM * x.pool.element_size()

    def test_steps(self):
        found = self.found(OurSteps("torch"), decode())
        assert max(found["errors"].values()) < 1e-5

    def test_steps_keep_their_states_in_place(self):
        x = decode()
        before = x.pool.clone()
        for call in OurSteps("torch").prepare(x).calls:
            call()
        assert not (x.pool[1:] == before[1:]).all(dim=(1, 2, 3)).any()

    def test_steps_are_for_fp32(self):
        found = measure([OurSteps("torch")], decode("bfloat16"), CountingStopwatch(), rounds=1)
        assert "gdn_attention" in found["torch"]["not_applicable"]

    def test_every_set_of_states_is_worked_on(self):
        x = decode()
        assert x.sets > 2
        before = x.pool.clone()
        for call in OurDecode("torch").prepare(x).calls:
            call()
        changed = (x.pool != before).flatten(1).any(1)
        assert changed.tolist() == [False] + [True] * (x.pool.shape[0] - 1)

    def test_no_cuda_backend_here(self):
        assert Ours("cuda/triton").unavailable()
        assert Ours("torch").unavailable() == ""
        assert "no backend" in Ours("nonsense").unavailable()
        assert "no provider 'x'" in Ours("torch/x").unavailable()

    def test_a_provider_says_why_not(self, monkeypatch):
        info = types.SimpleNamespace(
            providers=[types.SimpleNamespace(name="fla", unavailable="fla-core is not installed")]
        )
        status = types.SimpleNamespace(name="cuda", status="available", why="", info=info)
        registry = types.SimpleNamespace(status=lambda: [status])
        monkeypatch.setattr(h200_prefill, "active_registry", lambda: registry)
        assert Ours("cuda/fla").unavailable() == "fla-core is not installed"
        assert Ours("cuda").unavailable() == ""


class TestPeers:
    """What is handed to each library, taken by stand-ins that compute with the torch backend."""

    def stand_in(self, monkeypatch, module, name, function):
        parent = ""
        for part in module.split("."):
            full = f"{parent}.{part}" if parent else part
            if full not in sys.modules:
                made = types.ModuleType(full)
                made.__spec__ = importlib.machinery.ModuleSpec(full, None, is_package=True)
                made.__path__ = []
                monkeypatch.setitem(sys.modules, full, made)
            parent = full
        monkeypatch.setattr(sys.modules[module], name, function, raising=False)

    def rule(self, q, k, v, g, beta, cu_seqlens, v_first, **rest):
        return api.chunk_gated_delta_rule(
            q, k, v, g, beta, cu_seqlens=cu_seqlens, state_v_first=v_first,
            output_final_state=True, backend="torch", **rest,
        )  # fmt: skip

    def errors(self, contestant, inputs):
        found = measure([contestant], inputs, CountingStopwatch(), rounds=1)[contestant.name]
        assert "failure" not in found, found
        return max(found["errors"].values())

    def test_fla(self, monkeypatch):
        def rule(q, k, v, g, beta, scale, output_final_state, cu_seqlens, chunk_indices):
            lengths = [b - a for a, b in pairwise(cu_seqlens.tolist())]
            assert len(chunk_indices) == sum(-(-n // 64) for n in lengths)
            assert output_final_state
            return self.rule(q, k, v, g, beta, cu_seqlens, False, scale=scale)

        def dispatched(*args, **kwargs):
            raise AssertionError("another library")

        dispatched.__wrapped__ = rule
        self.stand_in(monkeypatch, "fla.ops.gated_delta_rule", "chunk_gated_delta_rule", dispatched)
        assert self.errors(h200_prefill.FLA(), prefill()) < 1e-5

    def test_flashinfer(self, monkeypatch):
        def rule(
            q, k, v, g, beta, scale, output_final_state, cu_seqlens, output, output_state, use_cp,
            max_seqlen,
        ):  # fmt: skip
            assert q.ndim == 3
            assert use_cp == "auto"
            assert max_seqlen == 70
            packed = (x.unsqueeze(0) for x in (q, k, v, g.log(), beta))
            out, final = self.rule(*packed, cu_seqlens, True, scale=scale)
            return output.copy_(out[0]), output_state.copy_(final)

        self.stand_in(monkeypatch, "flashinfer.gdn_prefill", "chunk_gated_delta_rule", rule)
        assert self.errors(h200_prefill.FlashInfer(), prefill()) < 1e-5

    def test_flash_qla(self, monkeypatch):
        def rule(q, k, v, g, beta, scale, output_final_state, cu_seqlens):
            assert not torch.is_grad_enabled()
            return self.rule(q, k, v, g, beta, cu_seqlens, False, scale=scale)

        self.stand_in(monkeypatch, "flash_qla", "chunk_gated_delta_rule", rule)
        assert self.errors(h200_prefill.FlashQLA(), prefill()) < 1e-5

    def vllm_rule(self, monkeypatch):
        def rule(
            q, k, v, g, beta, initial_state, output_final_state, cu_seqlens, chunk_indices,
            chunk_offsets, scale=None, use_qk_l2norm_in_kernel=False,
        ):  # fmt: skip
            assert chunk_offsets.tolist()[-1] == len(chunk_indices)
            rest = {"initial_state": initial_state, "scale": scale}
            return self.rule(q, k, v, g, beta, cu_seqlens, True, **rest)

        self.stand_in(monkeypatch, f"{h200_prefill.VLLM_OPS}.chunk", "chunk_gated_delta_rule", rule)

    def test_vllm(self, monkeypatch):
        self.vllm_rule(monkeypatch)
        assert self.errors(h200_prefill.VLLM(), prefill()) < 1e-5

    def test_vllm_layer(self, monkeypatch):
        def conv(
            x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state,
            activation, metadata,
        ):  # fmt: skip
            tiles = metadata.nums_dict[8]
            pairs = list(
                zip(
                    tiles["batch_ptr"].tolist(),
                    tiles["token_chunk_offset_ptr"].tolist(),
                    strict=True,
                )
            )
            lengths = [b - a for a, b in pairwise(query_start_loc.tolist())]
            wanted = [(n, i) for n, length in enumerate(lengths) for i in range(-(-length // 8))]
            assert pairs[: len(wanted)] == wanted
            assert set(pairs[len(wanted) :]) == {(-1, -1)}
            assert tiles["tot"] == tiles["mlist_len"] == len(wanted)
            outputs = []
            for n, (a, b) in enumerate(pairwise(query_start_loc.tolist())):
                line = conv_states[cache_indices[n]]
                past = line if has_initial_state[n] else torch.zeros_like(line)
                h = torch.cat([past, x[:, a:b]], dim=1)
                windows = h.unfold(1, weight.shape[1], 1)
                outputs.append(torch.nn.functional.silu((windows * weight[:, None]).sum(-1)))
            return torch.cat(outputs, dim=1)

        def prepare(mixed, a, b, A_log, dt_bias, H, K, V, apply_l2norm):
            T, HV = a.shape
            q, k, v = mixed.split([H * K, H * K, HV * V], dim=1)
            q, k = (torch.nn.functional.normalize(x.view(T, H, K), dim=-1) for x in (q, k))
            g = -A_log.exp() * torch.nn.functional.softplus(a + dt_bias)
            return q, k, v.view(T, HV, V), g, b.sigmoid()

        self.vllm_rule(monkeypatch)
        self.stand_in(monkeypatch, h200_layer.VLLM_CONV, "causal_conv1d_fn", conv)
        module = f"{h200_prefill.VLLM_OPS}.fused_gdn_prefill_post_conv"
        self.stand_in(monkeypatch, module, "fused_post_conv_prep", prepare)
        assert self.errors(VLLMLayer(), layer()) < 1e-5

    def step(self, q, k, v, a, b, A_log, dt_bias, states):
        """One step on ``[B, ...]``; states ``[B, HV, V, K]`` are updated."""
        out, final = api.fused_recurrent_gated_delta_rule(
            *(x.unsqueeze(1) for x in (q, k, v, a)), beta=b.unsqueeze(1), initial_state=states,
            output_final_state=True, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True,
            A_log=A_log, dt_bias=dt_bias, use_beta_sigmoid_in_kernel=True, state_v_first=True,
            backend="torch",
        )  # fmt: skip
        states.copy_(final)
        return out

    @pytest.mark.parametrize("conv", [False, True])
    def test_vllm_decode(self, monkeypatch, conv):
        def update(x, conv_state, weight, bias, activation, conv_state_indices, out):
            lines = conv_state[conv_state_indices.long()]
            h = torch.cat([lines, x.unsqueeze(2)], dim=2)
            conv_state[conv_state_indices.long()] = h[:, :, 1:]
            out.copy_(torch.nn.functional.silu((h * weight).sum(-1)))
            return out

        def packed(
            mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices,
            use_qk_l2norm_in_kernel,
        ):  # fmt: skip
            B = len(a)
            q, k, v = mixed_qkv.split([2 * DIM, 2 * DIM, 4 * DIM], dim=1)
            states = initial_state[ssm_state_indices.long()]
            heads = q.view(B, 2, DIM), k.view(B, 2, DIM), v.view(B, 4, DIM)
            out.copy_(self.step(*heads, a, b, A_log, dt_bias, states))
            initial_state[ssm_state_indices.long()] = states

        self.stand_in(monkeypatch, h200_layer.VLLM_CONV, "causal_conv1d_update", update)
        self.stand_in(
            monkeypatch,
            f"{h200_prefill.VLLM_OPS}.fused_recurrent",
            "fused_recurrent_gated_delta_rule_packed_decode",
            packed,
        )
        contestant = h200_decode.VLLMDecode() if conv else h200_decode.VLLMSteps()
        assert self.errors(contestant, decode()) < 1e-5

    def test_flashinfer_steps(self, monkeypatch):
        def step(q, k, v, state, A_log, a, dt_bias, b, scale, output, use_qk_l2norm):
            assert all(x.is_contiguous() for x in (q, k, v, state, output))
            args = (x.squeeze(1) for x in (q, k, v, a, b))
            output.copy_(self.step(*args, A_log, dt_bias, state))
            return output, state

        self.stand_in(
            monkeypatch, "flashinfer.gdn_decode", "gated_delta_rule_decode_pretranspose", step
        )
        assert self.errors(h200_decode.FlashInferSteps(), decode()) < 1e-5

    def test_who_is_missing_says_so(self):
        for contestant in (*h200_prefill.PREFILL, *h200_decode.STEPS, *h200_layer.LAYER):
            if contestant.name not in ("cuda", "cuda/triton", "vLLM Triton"):
                assert "not installed" in contestant.unavailable()


class Fake:
    """A contestant that does as told."""

    def __init__(self, name, prepare=None, reason=""):
        self.name, self._prepare, self._reason = name, prepare, reason

    def unavailable(self):
        return self._reason

    def prepare(self, inputs):
        return Ready([lambda: None]) if self._prepare is None else self._prepare(inputs)


def raising(error):
    def call(*args):
        raise error

    return call


class TestMeasure:
    def test_a_failure_stops_nobody_else(self):
        entry = measure(
            [
                Fake("a", raising(ValueError("no\nsuch  kernel"))),
                Fake("b"),
                Fake("c", lambda x: Ready([raising(RuntimeError("launch"))])),
                Fake("d", lambda x: Ready([lambda: None], raising(KeyError("check")))),
                Fake("e", raising(NotApplicable("another dtype"))),
            ],
            None,
            CountingStopwatch(),
            rounds=3,
        )
        assert entry["a"] == {"failure": "ValueError: no such kernel"}
        assert entry["b"] == {"seconds": 1.0, "samples": [1.0] * 3}
        assert entry["c"]["failure"] == "RuntimeError: launch"
        assert entry["d"]["check_failure"] == "KeyError: 'check'"
        assert entry["d"]["seconds"] == 2.0
        assert entry["e"] == {"not_applicable": "another dtype"}

    def test_a_capture_that_fails(self):
        class Stopwatch:
            def sampler(self, calls):
                raise RuntimeError("capture")

        entry = measure([Fake("a")], None, Stopwatch(), rounds=1)
        assert entry["a"]["failure"] == "RuntimeError: capture"

    def test_without_rounds_everything_is_called_once(self):
        calls = []
        ready = Ready([lambda: calls.append(1)], raising(AssertionError("not checked")))
        entry = measure([Fake("a", lambda x: ready)], None, CountingStopwatch(), rounds=0)
        assert entry == {"a": {}}
        assert calls == [1]

    def test_a_lost_device_ends_it(self):
        with pytest.raises(Lost) as caught:
            measure(
                [Fake("a", raising(ValueError("bad address"))), Fake("b")],
                None,
                CountingStopwatch(),
                rounds=1,
                finish=raising(RuntimeError("illegal memory access")),
            )
        assert "lost in a" in str(caught.value)
        assert caught.value.args[1]["a"]["failure"] == "ValueError: bad address"


class TestTiming:
    def test_everybody_is_sampled_in_turn(self):
        order = []
        samplers = {name: lambda n=name: order.append(n) or 1.0 for name in "abc"}
        samples = h200_timing.paired(samplers, 4)
        assert "".join(order) == "abcbcacababc"
        assert samples == {name: [1.0] * 4 for name in "abc"}

    def test_nobody(self):
        assert h200_timing.paired({}, 3) == {}

    def test_time_is_divided_by_the_calls(self, monkeypatch):
        clock = count()
        monkeypatch.setattr(h200_timing.time, "perf_counter", lambda: float(next(clock)))
        calls = []
        watch = h200_timing.WallStopwatch(sample_seconds=4.5)
        sample = watch.sampler([lambda: calls.append(0)] * 4)
        before = len(calls)
        assert sample() == 1 / 5 / 4  # one tick for five passes over four calls
        assert len(calls) - before == 20

    def test_a_graph_is_captured_once_and_replayed(self, monkeypatch):
        log = []

        @contextmanager
        def entered(what, **options):
            log.append(f"in {what}")
            yield
            log.append(f"out {what}")

        class Stream:
            def wait_stream(self, other):
                log.append("wait")

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                pass

            synchronize = record

            def elapsed_time(self, end):
                return log.count("replay") * 1.0  # milliseconds: of all replays so far

        cuda = types.SimpleNamespace(
            Stream=Stream,
            Event=Event,
            current_stream=Stream,
            stream=lambda side: entered("side"),
            synchronize=lambda: None,
            CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: log.append("replay")),
            graph=lambda graph, capture_error_mode: entered("capture"),
        )
        monkeypatch.setattr(h200_timing.torch, "get_device_module", lambda device: cuda)
        calls = [lambda: log.append("a"), lambda: log.append("b")]
        sample = h200_timing.GraphStopwatch(CPU, sample_seconds=4e-3).sampler(calls)
        assert log[: log.index("in capture")] == [
            "wait", "in side", "a", "a", "a", "b", "out side", "wait",
        ]  # fmt: skip
        captured = log[log.index("in capture") : log.index("out capture")]
        assert captured == ["in capture", "a", "b"]
        assert log.count("replay") == 3
        assert sample() == 6e-3 / 3 / 2  # three replays of two calls, at 6 ms by then
        assert log.count("a") == 4

    def test_bandwidth(self):
        assert h200_timing.copy_bandwidth(CountingStopwatch(), CPU, size=64) == 128


def two_parts(*contestants):
    watch, ours = CountingStopwatch, (OurSteps("torch"),)
    shapes = [prefill().shape] * 2
    return [
        h200.Part("prefill", shapes, lambda shape: prefill(), contestants, watch()),
        h200.Part("steps", [decode().shape], lambda shape: decode(), ours, watch()),
    ]


HEADER = {
    "version": "0", "commit": None, "date": "2026-11-20T16:00+00:00", "device": "a GPU",
    "driver": "1", "versions": {"torch": "2"}, "copy_bandwidth": 1e9,
}  # fmt: skip


class TestSuite:
    def report(self, *contestants, **options):
        report = {"header": HEADER, "rounds": 2}
        passed = h200.run_parts(two_parts(*contestants), report, rounds=2, **options)
        json.dumps(report)
        return report, passed

    def test_a_run(self, tmp_path):
        saved = []
        report, passed = self.report(
            Ours("torch"), Fake("peer"), Fake("gone", reason="not installed"),
            save=lambda: saved.append(1),
        )  # fmt: skip
        assert passed
        assert len(saved) == 4
        assert [r["part"] for r in report["results"]] == ["prefill", "prefill", "steps"]
        assert set(report["results"][0]["contestants"]) == {"torch", "peer"}
        assert report["results"][0]["published_ms"] == {"FLA": 1.0}
        assert report["absent"] == {"prefill": {"gone": "not installed"}}
        text = "\n".join(h200_report.table(report))
        assert "not measured, prefill: gone: not installed" in text
        assert "2/4 70+1+33" in text
        pytest.importorskip("matplotlib")
        files = h200_report.write_plots(report, tmp_path / "plot")
        assert [file.name for file in files] == ["plot-prefill.png", "plot-steps.png"]
        assert all(file.stat().st_size > 1000 for file in files)

    def test_our_own_failure_is_a_failure(self):
        assert not self.report(Fake("cuda", raising(ValueError("x"))))[1]
        assert self.report(Fake("somebody", raising(ValueError("x"))))[1]

    @pytest.mark.parametrize("error", [0.1, float("nan")])
    def test_wrong_numbers_are_a_failure(self, error):
        wrong = Ready([lambda: None], lambda: {"output": error, "state": 0.0})
        report, passed = self.report(Fake("cuda", lambda x: wrong))
        assert not passed
        assert "WRONG" in "\n".join(h200_report.table(report))

    def test_time_runs_out(self):
        report, _ = self.report(Fake("a"), deadline=0.0)
        assert report["results"] == []
        assert len(report["skipped"]) == 3
        assert "no time for 3 cases" in "\n".join(h200_report.table(report))

    def test_somebody_is_left_out(self):
        report, _ = self.report(Fake("a"), Fake("b"), without=["a"])
        assert report["absent"]["prefill"] == {"a": "left out on request"}

    def test_a_lost_device(self):
        report, passed = self.report(
            Fake("a", raising(ValueError("x"))), finish=raising(RuntimeError("gone"))
        )
        assert not passed
        assert len(report["results"]) == 1
        assert "lost in a" in h200_report.table(report)[-1]

    def test_many_cases_are_summed_up(self):
        contestants = {
            "cuda": {"seconds": 1.0}, "FLA": {"seconds": 2.0}, "FlashInfer": {"seconds": 0.5},
        }  # fmt: skip
        shape = {"H": 1, "HV": 2, "num_seqs": 1, "num_tokens": 1, "longest": 1}
        results = [
            {"part": "prefill", "case": f"case {n}", "shape": shape, "contestants": contestants}
            for n in range(60)
        ]
        text = "\n".join(h200_report.table({"header": HEADER, "rounds": 1, "results": results}))
        assert "case 7" not in text
        assert "x 1/2" in text
        assert "2.00 of 60" in text
        assert "cuda: 0.50x the best of the others, shape by shape; behind at 60 of 60" in text

    def test_traffic_is_shown(self):
        entry = {"seconds": 1e-3, "traffic": 500_000}
        assert h200_report._cell(entry, 1e9) == "1000.0 0 50%"

    def test_the_parts(self, monkeypatch):
        for quick, sizes in ((True, [12, 12, 4, 8, 8]), (False, [171, 171, 24, 42, 42])):
            monkeypatch.setattr(h200, "GraphStopwatch", lambda device: None)
            monkeypatch.setattr(h200, "EagerStopwatch", lambda device: None)
            found = h200.parts(CPU, quick=quick, wanted=None, heads=None)
            assert [len(part.shapes) for part in found] == sizes
        only = h200.parts(CPU, quick=True, wanted=["layer"], heads=["2/8"])
        assert [(part.name, len(part.shapes)) for part in only] == [("layer", 1)]


class TestCommand:
    def test_it_needs_a_gpu(self, capsys):
        if torch.get_device_module("cuda").is_available():
            pytest.skip("there is one")
        assert main(["bench", "--suite", "h200"]) == 2
        assert "CUDA device" in capsys.readouterr().err

    def test_nobody_gets_it_without_asking(self, capsys):
        assert main(["bench", "--list"]) == 0
        assert "h200" not in capsys.readouterr().out

    def test_it_goes_alone(self, capsys):
        assert main(["bench", "--suite", "h200", "--suite", "call"]) == 2

    def test_a_whole_run_on_a_device_that_is_played(self, monkeypatch, tmp_path, capsys):
        module = types.SimpleNamespace(
            is_available=lambda: True,
            current_device=lambda: 0,
            synchronize=lambda: None,
            get_device_capability=lambda device: (9, 0),
            get_device_name=lambda device: "a GPU",
        )
        monkeypatch.setattr(h200.torch, "get_device_module", lambda device: module)
        monkeypatch.setattr(h200, "copy_bandwidth", lambda stopwatch, device: 1e9)
        monkeypatch.setattr(h200, "parts", lambda device, **options: two_parts(Ours("torch")))
        output = tmp_path / "h200.json"
        arguments = ["bench", "--suite", "h200", "--rounds", "2", "--output", str(output)]
        assert main([*arguments, "--commit", "abc"]) == 0
        report = json.loads(output.read_text(encoding="utf-8"))
        assert report["header"]["commit"] == "abc"
        assert report["header"]["compute_capability"] == "9.0"
        assert len(report["results"]) == 3
        assert "a GPU" in capsys.readouterr().out
        assert bench.header("x")["shape"] == "x"
        assert main([*arguments[:3], "--list"]) == 0
