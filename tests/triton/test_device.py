"""What only a GPU shows: captured graphs, no synchronisation, compiled callers, no late compiling.

bash benchmarks/device/kit.sh      # runs this, too
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import gdn_dispatch
from gdn_dispatch import LayerSpec, build_chunk_meta, gdn_attention, plan_batch, warmup
from gdn_dispatch.testing.numbers import relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

H, HV, K, V, W, S = 2, 8, 128, 128, 4, 3
D = 2 * H * K + HV * V
SLOTS = 12
BF16 = torch.bfloat16


class Engine:
    """Weights, pools and the inputs of a step, all on the device."""

    def __init__(self, seed=0):
        generator = torch.Generator("cuda").manual_seed(seed)

        def randn(*shape, dtype=BF16):
            return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

        self.randn = randn
        self.conv_state = randn(SLOTS, W - 1 + S - 1, D).transpose(1, 2)
        self.ssm_state = randn(SLOTS, HV, V, K, dtype=torch.float32)
        self.weights = {
            "conv_weight": randn(D, W), "A_log": randn(HV, dtype=torch.float32),
            "dt_bias": randn(HV, dtype=torch.float32),
        }  # fmt: skip

    def inputs(self, tokens):
        return {"mixed_qkv": self.randn(tokens, D), "a": self.randn(tokens, HV),
                "b": self.randn(tokens, HV)}  # fmt: skip

    def pools(self):
        return {"conv_state": self.conv_state, "ssm_state": self.ssm_state}

    def copy(self):
        other = Engine.__new__(Engine)
        other.__dict__.update(self.__dict__)
        other.conv_state = self.conv_state.transpose(1, 2).clone().transpose(1, 2)
        other.ssm_state = self.ssm_state.clone()
        return other

    def call(self, inputs, meta, out):
        return gdn_attention(
            **inputs, **self.weights, **self.pools(), meta=meta, state_v_first=True, out=out,
            backend="cuda",
        )  # fmt: skip


def same_state(one, other):
    return torch.equal(one.conv_state, other.conv_state) and torch.equal(
        one.ssm_state, other.ssm_state
    )


def captured(engine, inputs, meta, out):
    """A graph of the call; the pools are as before."""
    before = engine.copy()
    for _ in range(2):
        engine.call(inputs, meta, out)
    engine.conv_state.copy_(before.conv_state)
    engine.ssm_state.copy_(before.ssm_state)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        engine.call(inputs, meta, out)
    return graph


def slots_of(*rows):
    return torch.tensor(rows, dtype=torch.int32, device="cuda")


def test_decode_replays_with_other_slots_and_inputs():
    engine, rows = Engine(), 4
    inputs, out = engine.inputs(rows), torch.empty(rows, HV, V, dtype=BF16, device="cuda")
    slots = slots_of(1, 2, 3, 4)
    meta = build_chunk_meta(
        plan_batch(range(rows + 1)), "cuda", state_indices=slots, backend="cuda"
    )
    graph = captured(engine, inputs, meta, out)
    for chosen in ((5, 6, 7, 8), (8, -1, 2, -1), (1, 2, 3, 4)):
        slots.copy_(slots_of(*chosen))
        for name, value in engine.inputs(rows).items():
            inputs[name].copy_(value)
        eager, expected = engine.copy(), torch.empty_like(out)
        eager.call(inputs, meta, expected)
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
        assert same_state(engine, eager)


def test_a_padded_decode_replays_with_fewer_rows():
    engine, rows = Engine(), 4
    inputs, out = engine.inputs(rows), torch.empty(rows, HV, V, dtype=BF16, device="cuda")
    slots = slots_of(1, 2, 3, 4)
    meta = build_chunk_meta(
        plan_batch(range(rows + 1), total_tokens=rows), "cuda", state_indices=slots, backend="cuda"
    )
    graph = captured(engine, inputs, meta, out)
    meta.update_(plan_batch([0, 1, 2, 2, 2], total_tokens=rows))
    eager, expected = engine.copy(), torch.empty_like(out)
    eager.call(inputs, meta, expected)
    out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert not out[2:].any()
    assert same_state(engine, eager)


def test_drafts_replay_with_other_lengths_and_counts():
    engine, rows = Engine(), 3
    inputs = engine.inputs(rows * S)
    out = torch.empty(rows * S, HV, V, dtype=BF16, device="cuda")
    slots = slots_of((0, 1, 2), (3, 4, 5), (6, 7, 8))
    accepted = torch.ones(rows, dtype=torch.int32, device="cuda")

    def plan(*lens):
        starts = [0]
        for length in lens:
            starts.append(starts[-1] + length)
        return plan_batch(starts, speculative=[True] * rows, total_tokens=rows * S)

    meta = build_chunk_meta(
        plan(S, S, S), "cuda", state_indices=slots, num_accepted_tokens=accepted, backend="cuda"
    )
    graph = captured(engine, inputs, meta, out)
    for lens, counts in (((3, 3, 3), (1, 2, 3)), ((2, 3, 1), (3, 1, 2)), ((3, 0, 3), (2, 2, 1))):
        meta.update_(plan(*lens))
        accepted.copy_(slots_of(*counts))
        eager, expected = engine.copy(), torch.empty_like(out)
        eager.call(inputs, meta, expected)
        graph.replay()
        torch.cuda.synchronize()
        tokens = sum(lens)
        assert torch.equal(out[:tokens], expected[:tokens])
        assert not out[tokens:].any()
        assert same_state(engine, eager)


def test_prefill_replays_within_its_capacity():
    engine = Engine()
    inputs, out = engine.inputs(260), torch.empty(260, HV, V, dtype=BF16, device="cuda")
    slots = slots_of(1, 2)
    fresh = torch.zeros(2, dtype=torch.bool, device="cuda")

    def plan(first, second):
        return plan_batch([0, first, first + second], total_tokens=260)

    meta = build_chunk_meta(
        plan(128, 130), "cuda", state_indices=slots, has_initial_state=fresh, backend="cuda"
    )
    graph = captured(engine, inputs, meta, out)
    for first, second in ((128, 130), (64, 190), (3, 2), (130, 100)):
        meta.update_(plan(first, second))
        eager, expected = engine.copy(), torch.empty_like(out)
        eager.call(inputs, meta, expected)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
        assert same_state(engine, eager)


@contextlib.contextmanager
def no_synchronisation():
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_mixed_step_synchronises_nowhere():
    engine = Engine()
    lens = (100, 1, 2, 0, 70)
    inputs, out = engine.inputs(sum(lens)), None
    slots = slots_of((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 9, 9), (10, 10, 10))
    accepted = torch.ones(5, dtype=torch.int32, device="cuda")
    out = torch.empty(sum(lens), HV, V, dtype=BF16, device="cuda")

    def step():
        starts = [0]
        for length in lens:
            starts.append(starts[-1] + length)
        plan = plan_batch(
            starts, speculative=[False, False, True, False, False],
            checkpoint_offsets=[[64], [], [], [], []], checkpoint_indices=[[11], [], [], [], []],
        )  # fmt: skip
        meta = build_chunk_meta(
            plan, "cuda", state_indices=slots, num_accepted_tokens=accepted, backend="cuda"
        )
        engine.call(inputs, meta, out)

    step()  # compiles
    with no_synchronisation():
        for _ in range(3):
            step()


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_rules_synchronise_nowhere(recurrent):
    rule = (
        gdn_dispatch.fused_recurrent_gated_delta_rule
        if recurrent
        else gdn_dispatch.chunk_gated_delta_rule
    )
    x = Engine().randn
    q, k, v = x(1, 300, H, K), x(1, 300, H, K), x(1, 300, HV, V)
    g, beta = -x(1, 300, HV).float().abs(), x(1, 300, HV).float().sigmoid()
    host = torch.tensor([0, 100, 300])
    starts = host.cuda()

    def run():
        rule(
            q, k, v, g=g, beta=beta, cu_seqlens=starts, cu_seqlens_cpu=host,
            output_final_state=True, use_qk_l2norm_in_kernel=True, backend="cuda",
        )  # fmt: skip
        rule(q, k, v, g=g, beta=beta, output_final_state=True, backend="cuda")

    run()
    with no_synchronisation():
        run()


def test_a_compiled_caller_is_one_graph():
    x = Engine().randn
    q, k, v = x(2, 70, H, K), x(2, 70, H, K), x(2, 70, HV, V)
    g, beta = -x(2, 70, HV).float().abs(), x(2, 70, HV).float().sigmoid()

    def call(q, k, v):
        out, _ = gdn_dispatch.chunk_gated_delta_rule(
            q * 1, k, v, g, beta, use_qk_l2norm_in_kernel=True, backend="cuda"
        )
        return out + 1

    compiled = torch.compile(call, fullgraph=True)
    assert relative_error(compiled(q, k, v).float(), call(q, k, v).float()) < 1e-2


def test_after_a_warm_up_nothing_is_compiled():
    from gdn_dispatch.triton_kernels import (
        conv_kernel,
        prepare_kernel,
        recurrence_kernel,
        segments_kernel,
        steps_kernel,
    )

    kernels = [
        conv_kernel.conv_prefill_kernel, conv_kernel.conv_update_kernel,
        prepare_kernel.prepare_kernel, recurrence_kernel.recurrence_kernel,
        segments_kernel.segment_kernel, segments_kernel.join_segments_kernel,
        steps_kernel.recurrent_kernel,
    ]  # fmt: skip

    def compiled():
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    spec = LayerSpec(H, HV, K, V, BF16, torch.float32, num_speculative_tokens=S - 1)
    warmup(spec, "cuda", max_num_seqs=64, max_num_tokens=4096, backend="cuda")
    before = compiled()
    assert before > 0
    engine = Engine()
    for lens in ((1,), (1,) * 9, (700,), (64, 65, 1), (2000,), (300,) * 6):
        tokens = sum(lens)
        starts = [0]
        for length in lens:
            starts.append(starts[-1] + length)
        meta = build_chunk_meta(
            plan_batch(starts), "cuda", state_indices=slots_of(*range(1, len(lens) + 1)),
            backend="cuda",
        )  # fmt: skip
        out = torch.empty(tokens, HV, V, dtype=BF16, device="cuda")
        engine.call(engine.inputs(tokens), meta, out)
    assert compiled() == before
