"""Decode, speculative decode and convolution kernels on a GPU: configurations, and their time.

    python benchmarks/device/decode_tuning.py sweep|table|spec|conv [--peers FOLDER]

A time is that of one launch among many in a CUDA graph, so it includes the gap between two
launches. Every launch takes other slots of a pool several times the size of the L2, because in a
model the other layers' states have gone through it since. Bandwidth counts the state alone, read
once and written once. ``--peers``: a folder with vLLM's ``fused_recurrent`` and
``fused_sigmoid_gating`` to compare with.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gdn_dispatch.triton_kernels.conv import ConvConfig, conv_prefill, conv_update
from gdn_dispatch.triton_kernels.rows import Chunks, Rows, Slots
from gdn_dispatch.triton_kernels.steps import StepConfig, recurrent_rule

COLD_BYTES = 400 << 20
H, HV, K, V, W = 16, 32, 128, 128, 4
D = 2 * H * K + HV * V
DEVICE = torch.device("cuda")
CUDA = torch.get_device_module(DEVICE)
BF16, FP32 = torch.bfloat16, torch.float32


def time_us(launches: list[Callable[[], Any]], replays: int = 7) -> float:
    """Median microseconds of one launch, of a graph of all of them."""
    for launch in launches[:2]:
        launch()
    CUDA.synchronize()
    graph = CUDA.CUDAGraph()
    with CUDA.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (CUDA.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(launches))
    return statistics.median(times)


class Decode:
    """A batch of decodes, or of drafts of ``tokens`` each, with enough sets of slots."""

    def __init__(self, batch: int, dtype: torch.dtype, v_first: bool, tokens: int = 0) -> None:
        self.v_first, self.tokens, self.batch = v_first, tokens, batch
        columns = max(1, tokens)
        state_bytes = HV * K * V * dtype.itemsize
        self.bytes = batch * state_bytes * (2 if not tokens else 1 + tokens)
        sets = max(2, -(-COLD_BYTES // (batch * columns * state_bytes)))
        self.launches = max(sets, min(200, 20 * sets))
        pool = torch.randn(batch * columns * sets + 1, HV, K, V, dtype=FP32, device=DEVICE)
        self.pool = (pool * 0.1).to(dtype)
        order = torch.randperm(batch * columns * sets, device=DEVICE).int() + 1
        self.slots = order.view(sets, batch, columns)
        T = batch * columns
        self.conv = torch.randn(T, D, device=DEVICE).to(BF16)
        self.a, self.b = (torch.randn(T, HV, device=DEVICE).to(BF16) for _ in range(2))
        self.A_log, self.dt_bias = (torch.rand(HV, device=DEVICE) for _ in range(2))
        self.out = torch.empty(T, HV, V, dtype=BF16, device=DEVICE)
        self.starts = (torch.arange(batch + 1, device=DEVICE) * columns).int()
        self.sequences = torch.arange(batch, device=DEVICE).int()
        self.accepted = torch.full((batch,), columns, device=DEVICE).int()
        self.rows = Rows(batch, self.sequences, self.starts[:-1], self.starts, columns)

    def slot_sets(self) -> list[torch.Tensor]:
        """A set per launch, none twice in a row."""
        return list(itertools.islice(itertools.cycle(self.slots.unbind(0)), self.launches))

    def ours(self, config: StepConfig) -> list[Callable[[], Any]]:
        """Launches of the kernel under this configuration."""
        accepted = self.accepted if self.tokens else None
        launches = []
        for chosen in self.slot_sets():
            slots = Slots(chosen if self.tokens else chosen[:, 0], None, None, accepted, 0)
            launch = partial(
                recurrent_rule, self.conv, self.a, self.b, self.A_log, self.dt_bias, self.rows,
                slots, self.pool, self.out, config, num_heads=H, scale=K**-0.5,
                state_v_first=self.v_first, speculative=bool(self.tokens),
            )  # fmt: skip
            launches.append(launch)
        return launches

    def vllm(self, ops: Any) -> list[Callable[[], Any]]:
        """The same by vLLM's kernels; state_v_first is their layout."""
        if not self.tokens:
            out = self.out.unsqueeze(1)
            return [
                partial(
                    ops.fused_recurrent_gated_delta_rule_packed_decode, self.conv, self.a, self.b,
                    self.A_log, self.dt_bias, K**-0.5, self.pool, out, chosen[:, 0],
                    use_qk_l2norm_in_kernel=True,
                )
                for chosen in self.slot_sets()
            ]  # fmt: skip
        q, k, v = self.conv.split((H * K, H * K, HV * V), dim=1)
        heads = [x.reshape(1, x.shape[0], -1, K).contiguous() for x in (q, k, v)]
        return [
            partial(
                ops.fused_sigmoid_gating_delta_rule_update, self.A_log, self.a, self.b,
                self.dt_bias, *heads, scale=K**-0.5, initial_state=self.pool,
                cu_seqlens=self.starts, ssm_state_indices=chosen,
                num_accepted_tokens=self.accepted, use_qk_l2norm_in_kernel=True,
            )
            for chosen in self.slot_sets()
        ]  # fmt: skip


def copy_bandwidth() -> float:
    """GB/s of an elementwise kernel, bytes read and written."""
    source = torch.randn(1 << 29, device=DEVICE)
    target = torch.empty_like(source)
    us = time_us([lambda: torch.neg(source, out=target)] * 5)
    return 2 * source.numel() * 4 / us / 1e3


def tiles(threads: tuple[int, ...], element_size: int) -> list[StepConfig]:
    """Configurations of 16 to 128 elements a thread."""
    found = []
    for values, warps, lanes in itertools.product((8, 16, 32, 64, 128), threads, (8, 16)):
        each = values * K // (32 * warps)
        if 16 <= each <= 128 and lanes * (16 // element_size) <= K:
            found.append(StepConfig(values, warps, lanes))
    return found


def sweep(batches: tuple[int, ...], tokens: int = 0) -> None:
    """All configurations by batch, state dtype and layout; the best six of each."""
    for dtype, v_first in ((FP32, True), (BF16, True), (FP32, False), (BF16, False)):
        warps = (1, 2, 4) if v_first else (1, 2)
        results: dict[int, list[tuple[float, StepConfig]]] = {}
        configs = [c for c in tiles(warps, dtype.itemsize) if v_first or c.lanes == 8]
        for batch in batches:
            decode = Decode(batch, dtype, v_first, tokens)
            for config in configs:
                results.setdefault(batch, []).append((time_us(decode.ours(config)), config))
            scale = decode.bytes / 1e3
            del decode
            best = sorted(results[batch], key=lambda pair: pair[0])[:6]
            line = " ".join(f"{c.block_values}/{c.num_warps}/{c.lanes}:{us:.2f}" for us, c in best)
            print(f"{str(dtype)[6:]} {'VK' if v_first else 'KV'} S={tokens} B*HV={batch * HV}: "
                  f"{scale / best[0][0]:.0f} GB/s  {line}", flush=True)  # fmt: skip


def table(batches: tuple[int, ...], ops: Any, configs: list[StepConfig], tokens: int) -> None:
    """Some configurations beside vLLM's kernels."""
    print("state layout S B*HV | vllm us | ours us (GB/s, ratio) per",
          *(f"{c.block_values}/{c.num_warps}/{c.lanes}" for c in configs))  # fmt: skip
    for dtype, batch in itertools.product((FP32, BF16), batches):
        decode = Decode(batch, dtype, True, tokens)
        theirs = time_us(decode.vllm(ops)) if ops else float("nan")
        cells = []
        for config in configs:
            us = time_us(decode.ours(config))
            cells.append(f"{us:.2f} ({decode.bytes / us / 1e3:.0f}, {theirs / us:.2f})")
        print(str(dtype)[6:], "VK", tokens, batch * HV, f"| {theirs:.2f} |", *cells, flush=True)
        del decode


def prefill_rows(lengths: list[int], chunk: int) -> Rows:
    """A prefill group of these lengths."""
    counts = [-(-n // chunk) for n in lengths]
    pairs = [(q, i) for q, count in enumerate(counts) for i in range(count)]
    ends = [0, *itertools.accumulate(lengths)]

    def on_device(values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    numbers = on_device(list(range(len(lengths))))
    offsets = on_device([0, *itertools.accumulate(counts)])
    chunks = Chunks(chunk, on_device(pairs), offsets, numbers, len(pairs))
    cu_seqlens = on_device(ends)
    return Rows(len(lengths), numbers, cu_seqlens[:-1], cu_seqlens, max(lengths), chunks)


def report(name: str, cells: list[tuple[float, str]], moved: int) -> None:
    """The best configurations of one case; ``moved``: bytes read and written."""
    cells.sort()
    best = " ".join(f"{label}:{us:.2f}" for us, label in cells[:6])
    print(f"{name}: {moved / cells[0][0] / 1e3:.0f} GB/s  {best}", flush=True)


def conv_prefills() -> None:
    """Prefill convolution: channels/warps/tokens of a program."""
    weight = torch.randn(D, W, device=DEVICE).to(BF16)
    for lengths in ([32768], [2048] * 8, [100] * 40):
        T, rows = sum(lengths), prefill_rows(lengths, 64)
        xs = [torch.randn(T, D, device=DEVICE).to(BF16) for _ in range(2)]
        out = torch.empty_like(xs[0])
        pool = torch.randn(len(lengths) + 1, W - 1, D, device=DEVICE).to(BF16).transpose(1, 2)
        slots = Slots(torch.arange(len(lengths), device=DEVICE).int() + 1, None, None, None, 0)
        cells = []
        for config in itertools.starmap(
            ConvConfig, itertools.product((64, 128, 256, 512), (1, 2, 4), (8, 16, 32))
        ):
            each = config.block_channels // (32 * config.num_warps)
            if not 2 <= each <= 8 or each * config.block_tokens > 128:
                continue
            launches = [
                partial(conv_prefill, x, out, rows, slots, pool, weight, None, "silu", config)
                for x in xs * 3
            ]
            label = f"{config.block_channels}/{config.num_warps}/{config.block_tokens}"
            cells.append((time_us(launches), label))
        report(f"conv_prefill {len(lengths)} x {lengths[0]}", cells, 4 * T * D)


def conv_updates() -> None:
    """Decode convolution: channels/warps of a program."""
    weight = torch.randn(D, W, device=DEVICE).to(BF16)
    for batch, channels_last in itertools.product((1, 8, 64, 256), (True, False)):
        decode = Decode(batch, BF16, True)
        out = torch.empty_like(decode.conv)
        shape = (4096, W - 1, D) if channels_last else (4096, D, W - 1)
        pool = torch.randn(shape, device=DEVICE).to(BF16)
        pool = pool.transpose(1, 2) if channels_last else pool
        chosen = [torch.randperm(4095, device=DEVICE)[:batch].int() + 1 for _ in range(50)]
        cells = []
        for config in itertools.starmap(
            ConvConfig, itertools.product((64, 128, 256, 512), (1, 2, 4))
        ):
            launches = [
                partial(
                    conv_update, decode.conv, out, decode.rows, Slots(s, None, None, None, 0),
                    pool, weight, None, "silu", config,
                )
                for s in chosen
            ]  # fmt: skip
            cells.append((time_us(launches), f"{config.block_channels}/{config.num_warps}"))
        name = f"conv_update B={batch} {'[L, D]' if channels_last else '[D, L]'}"
        report(name, cells, batch * D * 2 * (2 * (W - 1) + 2))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sweep", "table", "spec", "conv"))
    parser.add_argument("--peers")
    parser.add_argument("--configs", default="8/1/8,16/1/8,16/2/8,32/2/8,32/4/8,64/4/8")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64,256,512")
    arguments = parser.parse_args()
    batches = tuple(int(x) for x in arguments.batches.split(","))
    configs = [StepConfig(*map(int, c.split("/"))) for c in arguments.configs.split(",")]
    torch.manual_seed(0)
    print(f"{CUDA.get_device_name()}, copy {copy_bandwidth():.0f} GB/s", flush=True)
    ops = None
    if arguments.peers:
        sys.path.insert(0, arguments.peers)
        from vllm.third_party.flash_linear_attention import ops
    if arguments.what == "sweep":
        sweep(batches)
    elif arguments.what == "conv":
        conv_prefills()
        conv_updates()
    else:
        table(batches, ops, configs, 4 if arguments.what == "spec" else 0)


if __name__ == "__main__":
    main()
