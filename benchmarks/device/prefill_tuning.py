"""Errors and times of the Triton prefill on a CUDA device, from which its configurations come.

Run from the root with ``PYTHONPATH=. python benchmarks/device/prefill_tuning.py MODE``:

    check      errors against the fp64 recurrence, by dtype and gates
    sweep      time per kernel of several configurations at a few shapes
    published  every shape of a CSV of published times (``--csv``), ours and flash-linear-attention
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import multiprocessing
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.rule_inputs import GATES, NEAR_IDENTICAL, Dims
from gdn_dispatch.triton_kernels.prefill import PrefillConfig, chunk_rule
from gdn_dispatch.triton_kernels.rule_tensors import PrefillInputs, States
from gdn_dispatch.triton_kernels.segments import SegmentConfig
from tests.triton.prefill_inputs import rows_of, step_of

Shape = tuple[tuple[int, ...], int, int]  # lengths, H, HV

DEFAULT = PrefillConfig(inverse_precision="fp16", prepare_registers=168)
WHOLE = replace(DEFAULT, block_v=128, num_warps=8)


def lengths_of(text: str) -> tuple[int, ...]:
    """``1x32768``, ``8192x4`` (four of them) or ``4096+28672``."""
    if text.startswith("1x"):
        return (int(text[2:]),)
    if "x" in text:
        length, count = text.split("x")
        return (int(length),) * int(count)
    return tuple(int(part) for part in text.split("+"))


def problem(shape: Shape, K: int = 128, V: int = 128) -> dict[str, Any]:
    """Random bf16 inputs; three heads in four decay."""
    lengths, H, HV = shape
    T = sum(lengths)
    q, k = (
        torch.nn.functional.normalize(torch.randn(T, H, K, device="cuda"), dim=-1).bfloat16()
        for _ in range(2)
    )
    v = torch.randn(T, HV, V, device="cuda").bfloat16()
    g = torch.nn.functional.logsigmoid(torch.randn(T, HV, device="cuda")) / 16
    g[:, ::4] = 0
    beta = torch.rand(T, HV, device="cuda")
    return {"q": q, "k": k, "v": v, "g": g, "beta": beta}


def ours(shape: Shape, x: dict[str, Any], config: PrefillConfig) -> Any:
    """A call of ours, to be repeated."""
    rows = rows_of(shape[0], device="cuda")
    K, V = x["k"].shape[2], x["v"].shape[2]
    final = torch.empty(len(shape[0]), shape[2], V, K, device="cuda")
    out = torch.empty_like(x["v"])
    inputs = PrefillInputs(**x, scale=K**-0.5)
    states = States(final=final)
    return lambda: chunk_rule(inputs, rows, states, out, config)


def theirs(shape: Shape, x: dict[str, Any]) -> Any:
    """The same of flash-linear-attention."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    starts = torch.tensor([0, *itertools.accumulate(shape[0])], device="cuda")
    batched = {name: value.unsqueeze(0) for name, value in x.items()}
    cu_seqlens = None if len(shape[0]) == 1 else starts

    def run() -> Any:
        with torch.inference_mode():
            return chunk_gated_delta_rule(**batched, cu_seqlens=cu_seqlens, output_final_state=True)

    return run


def graph_ms(run: Any, repeats: int = 10) -> float:
    """Median of replays of a captured call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def kernel_us(run: Any) -> dict[str, float]:
    """Time of each kernel of a call, in microseconds."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(4):
            run()
        torch.cuda.synchronize()
    return {
        event.key: event.device_time_total / 4
        for event in profile.key_averages()
        if event.device_time_total
    }


def check(quick: bool) -> None:
    """Errors of output and final state, worst over rows; and that no two runs differ."""
    segments = SegmentConfig(programs=10**6, min_tokens=128, price=1.0)
    precise = {"precision": "tf32x3", "inverse_precision": "tf32x3", "block_v": 64, "num_stages": 1}
    cases = [
        (torch.bfloat16, DEFAULT, "64/4"),
        (torch.bfloat16, WHOLE, "128/8"),
        (torch.bfloat16, replace(WHOLE, inverse_precision="bf16x3"), "128/8 bf16x3"),
        (torch.bfloat16, replace(WHOLE, use_descriptors=False), "128/8 pointers"),
        (torch.bfloat16, replace(DEFAULT, segments=segments), "64/4 segments"),
        (torch.float16, replace(DEFAULT, precision="tf32", num_stages=1), "fp16 tf32"),
        (torch.float32, replace(DEFAULT, **precise), "tf32x3"),
        (torch.float32, replace(DEFAULT, **precise, segments=segments), "tf32x3 segments"),
    ]
    lengths = (1, 63, 64, 65, 0, 128, 129, 515)
    dims = Dims(2, 4, 128, 128)
    if quick:
        cases = cases[:5]
    print(f"{'dtype':9s} {'config':16s} {'gates':22s} output   state    same bits")
    for gates in list(GATES)[::3] if quick else GATES:
        oracles: dict[Any, Any] = {}
        for dtype, config, name in cases:
            step = step_of(
                lengths,
                dims,
                gates=GATES[gates],
                dtype=dtype,
                device="cuda",
                correlated=gates == NEAR_IDENTICAL,
                config=config,
                l2norm=True,
            )
            first = torch.randn(
                len(lengths), 4, 128, 128, generator=torch.Generator().manual_seed(5)
            )
            first = first.cuda()
            results = []
            for _ in range(2):
                final = torch.full_like(first, math.nan)
                results.append((step.run(States(initial=first, final=final)), final))
            if dtype not in oracles:
                oracles[dtype] = [
                    step.oracle(i, first[i].transpose(-1, -2)) for i in range(len(lengths))
                ]
            out, final = results[0]
            errors = []
            for i, (length, start) in enumerate(zip(lengths, step.starts, strict=True)):
                exact_out, exact_state = oracles[dtype][i]
                error = relative_error(out[start : start + length], exact_out) if length else 0.0
                errors.append((error, relative_error(final[i].transpose(-1, -2), exact_state)))
            same = torch.equal(final, results[1][1]) and torch.equal(
                torch.nan_to_num(out), torch.nan_to_num(results[1][0])
            )
            worst = [
                max(column) if not any(map(math.isnan, column)) else math.nan
                for column in zip(*errors, strict=True)
            ]
            print(
                f"{str(dtype)[6:]:9s} {name:16s} {gates:22s} {worst[0]:.2e} {worst[1]:.2e} {same}",
                flush=True,
            )


SEGMENTS = SegmentConfig()
SWEEP: list[tuple[str, PrefillConfig]] = [
    ("64/4/2", replace(DEFAULT, num_stages=2)),
    ("64/4/3", DEFAULT),
    ("128/8/3", WHOLE),
    ("128/8/3 fp16", replace(WHOLE, inverse_precision="fp16")),
    ("128/8/3 fp16 r168", replace(WHOLE, inverse_precision="fp16", prepare_registers=168)),
    ("128/8/3 fp16 r128", replace(WHOLE, inverse_precision="fp16", prepare_registers=128)),
    (
        "128/8/3 fp16 r168 one head",
        replace(WHOLE, inverse_precision="fp16", prepare_registers=168, prepare_programs=10**9),
    ),
    ("seg 264", replace(DEFAULT, segments=SEGMENTS)),
    ("seg 264 tf32", replace(DEFAULT, segments=replace(SEGMENTS, join_precision="tf32"))),
    (
        "seg 264 tf32 8w",
        replace(
            DEFAULT,
            segments=replace(SEGMENTS, join_precision="tf32", join_warps=8, join_block_v=32),
        ),
    ),
    ("seg 132", replace(DEFAULT, segments=replace(SEGMENTS, programs=132, join_precision="tf32"))),
    (
        "seg 264/2",
        replace(
            DEFAULT,
            num_stages=2,
            segments=replace(SEGMENTS, num_stages=2, join_precision="tf32"),
        ),
    ),
    (
        "seg 128/8",
        replace(WHOLE, segments=replace(SEGMENTS, programs=132, join_precision="tf32")),
    ),
]
SWEEP_SHAPES: list[Shape] = [
    ((8192,) * 4, 16, 64),
    ((32768,), 2, 8),
    ((8192,), 4, 16),
    ((32768,), 16, 32),
    ((1024,) * 8, 16, 64),
    ((2048,), 2, 8),
]


def sweep(names: list[str]) -> dict[str, Any]:
    """Time every configuration of ``SWEEP`` at every shape."""
    results: dict[str, Any] = {}
    for shape in SWEEP_SHAPES:
        x = problem(shape)
        for name, config in SWEEP:
            if names and name not in names:
                continue
            if config.segments is not None and shape[2] * len(shape[0]) > 80:
                continue
            try:
                begin = time.time()
                run = ours(shape, x, config)
                run()
                torch.cuda.synchronize()
                compiled = time.time() - begin
                by_kernel = {k.removesuffix("_kernel"): round(v) for k, v in kernel_us(run).items()}
                total = graph_ms(run)
            except Exception as error:  # noqa: BLE001 - a configuration that does not fit
                print(shape, name, type(error).__name__, str(error)[:100], flush=True)
                continue
            label = f"{'+'.join(map(str, shape[0]))} {shape[1]}/{shape[2]} {name}"
            results[label] = {"ms": total, "kernels_us": by_kernel}
            print(f"{label:40s} {total:.3f} ms {by_kernel} ({compiled:.0f} s)", flush=True)
    return results


def choose(shape: Shape) -> PrefillConfig:
    """The configuration for a shape: by how many rows as long as the longest would be as much."""
    rows = shape[2] * sum(shape[0]) / max(shape[0])
    segments = SegmentConfig(programs=132, join_precision="tf32")
    if rows <= 20:
        return replace(DEFAULT, segments=segments)
    if rows <= 40:
        return replace(WHOLE, segments=segments)
    return DEFAULT if rows <= 96 else WHOLE


def _warm(task: tuple[str, int, int]) -> str:
    """Compile for a number of heads, in a process of its own."""
    which, H, HV = task
    begin = time.time()
    for lengths in ((2048,), (1024,) * 8, (8192,), (1024, 7168), (4096, 4096), (8192,) * 4):
        shape = (lengths, H, HV)
        x = problem(shape)
        try:
            (theirs(shape, x) if which == "fla" else ours(shape, x, choose(shape)))()
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - the run itself will say
            return f"{task} {error!r}"
    return f"{task} {time.time() - begin:.0f} s"


def published(path: str, fla_heads: list[str], processes: int, out: str) -> list[dict[str, Any]]:
    """Time every shape of the CSV; compile first, in processes."""
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    heads = sorted({(int(r["h_qk"]), int(r["h_v"])) for r in rows})
    tasks = [("ours", *pair) for pair in heads]
    tasks += [("fla", *pair) for pair in heads if f"{pair[0]}/{pair[1]}" in fla_heads]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for line in pool.imap_unordered(_warm, tasks):
            print(line, flush=True)
    results = []
    for row in rows:
        H, HV = int(row["h_qk"]), int(row["h_v"])
        shape = (lengths_of(row["seqlens"]), H, HV)
        x = problem(shape)
        result: dict[str, Any] = dict(row)
        result["ours_ms"] = graph_ms(ours(shape, x, choose(shape)))
        if f"{H}/{HV}" in fla_heads:
            result["fla_measured_ms"] = graph_ms(theirs(shape, x))
        results.append(result)
        if out:
            Path(out).write_text(json.dumps(results))
    for peer in ("fla_measured_ms", "fla_ms", "flash_qla_ms", "flashinfer_no_cp_ms"):
        ratios = [float(r[peer]) / r["ours_ms"] for r in results if r.get(peer)]
        if ratios:
            mean = math.exp(statistics.mean(map(math.log, ratios)))
            print(
                f"{peer}: ours is {mean:.2f} times as fast over {len(ratios)} shapes, "
                f"{min(ratios):.2f} to {max(ratios):.2f}"
            )
    best = [
        min(float(r[p]) for p in ("fla_ms", "flash_qla_ms", "flashinfer_no_cp_ms")) / r["ours_ms"]
        for r in results
    ]
    print(f"best published: {math.exp(statistics.mean(map(math.log, best))):.2f}")
    return results


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("check", "sweep", "published"))
    parser.add_argument("--configs", nargs="*", default=[])
    parser.add_argument("--csv", default="")
    parser.add_argument("--fla-heads", nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    torch.manual_seed(0)
    results: Any = None
    if options.mode == "check":
        check(bool(options.configs))
    elif options.mode == "sweep":
        results = sweep(options.configs)
    else:
        results = published(options.csv, options.fla_heads, options.processes, options.out)
        for r in results:
            fla = r.get("fla_measured_ms")
            print(
                r["seqlens"],
                f"{r['h_qk']}/{r['h_v']}",
                f"{r['ours_ms']:.3f}",
                f"{fla:.3f}" if fla else "-",
                r["fla_ms"],
                r["flash_qla_ms"],
                r["flashinfer_no_cp_ms"],
            )
    if options.out:
        facts = {
            "triton": triton.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(),
            "results": results,
        }
        Path(options.out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
