"""Put the committed measurements into the README: python benchmarks/readme.py [--check].

The README shows no number that is not in ``benchmarks/results``; a test runs this with --check.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gdn_dispatch.cli.h200.shapes import QUICK_PREFILL  # noqa: E402 - found through the path above

RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: benchmarks/readme.py -->\n", "<!-- /measured -->\n"
NATIVE_BEGIN = "<!-- measured natively: benchmarks/readme.py -->\n"
NATIVE_END = "<!-- /native -->\n"
GPU_BEGIN, GPU_END = "<!-- measured on a GPU: benchmarks/readme.py -->\n", "<!-- /GPU -->\n"
BUSY = [
    "One thread of each side, in seconds of the CPU: other work kept this machine busy. The",
    "budgets are meant for two threads on a quiet one.",
]
PEERS = {
    "FLA": "FLA 0.6",
    "FlashInfer": "FlashInfer 0.7",
    "FlashQLA": "FlashQLA 0.1.3",
    "vLLM Triton": "vLLM 0.33, Triton",
}


def cell(value: float | None, unit: str) -> str:
    """A number of a sensible number of digits with its unit."""
    if value is None:
        return ""
    return f"{value:.3g} {unit}"


def backend_rows(report: dict[str, Any]) -> list[str]:
    """One row for each case of ``gdn-dispatch bench``."""
    rows = []
    for result in report["results"]:
        better = "≥" if result["more_is_better"] else "≤"
        budget = cell(result["budget"], result["unit"])
        value = cell(result["value"], result["unit"])
        low, high = (cell(x, result["unit"]) for x in result["quartiles"])
        met = {True: "met", False: "**missed**", None: ""}[result["met"]]
        rows.append(
            f"| {result['suite']} {result['case']} | {result['peer']} | {value} ({low} to {high}) "
            f"| {better + ' ' + budget if budget else ''} | {met} |"
        )
    return rows


def metadata_rows(report: dict[str, Any]) -> list[str]:
    """One row for each batch of ``benchmarks/metadata.py``."""
    rows = []
    for case in report["cases"]:
        name = f"host metadata N={case['num_seqs']}"
        for peer, key in (("vLLM 0.33", "vllm/sections"), ("FLA 0.6", "fla/sections")):
            ratio, budget = case["ratios"][key], case["budget_peers"]
            met = "met" if ratio >= budget else "**missed**"
            rows.append(f"| {name} | {peer} | {cell(ratio, 'x')} | ≥ {cell(budget, 'x')} | {met} |")
    return rows


def section() -> str:
    """The measured part of the README."""
    backend, host, metadata = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("cpu.json", "host.json", "metadata.json")
    )
    header = backend["header"]
    lines = [
        "| what | against | measured: median (quartiles) | budget | |",
        "|---|---|---|---|---|",
        *backend_rows(backend),
        *backend_rows(host),
        *metadata_rows(metadata),
        "",
        f"{header['cpu']}, {header['threads']} threads, torch {header['torch']}, "
        f"{header['date'][:10]}; {header['shape']}. Paired ratios in one process",
        "(`make bench`, `make bench-metadata`); every case checks its numbers first.",
    ]
    return "\n".join(lines) + "\n"


def ratio(contestants: dict[str, Any], peer: str, ours: str) -> float | None:
    """How many times as long the peer takes; None where it was not measured."""
    seconds = contestants.get(peer, {}).get("seconds")
    return seconds / contestants[ours]["seconds"] if seconds else None


def means(found: list[list[float | None]]) -> list[str]:
    """Geometric means of columns, in bold."""
    columns = [[x for x in column if x is not None] for column in zip(*found, strict=True)]
    return [f"**{statistics.geometric_mean(column):.2f} x**" for column in columns]


def compiled_rows() -> list[str]:
    """The compiled chunk tables: alone, and inside a whole step's metadata."""
    path = RESULTS / "metadata_cpu.json"
    rows = []
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        N, ratios = case["num_seqs"], case["ratios"]
        for key, what, peer, budget, more in (
            ("vllm/compiled", "tables", "vLLM 0.33", 100, True),
            ("compiled/copy", "tables", "memory copy", 3 if N >= 256 else None, False),
            ("vllm/compiled_step", "whole step", "vLLM 0.33", None, True),
        ):
            value, limit, met = ratios[key], "", ""
            if budget is not None:
                limit = f"{'≥' if more else '≤'} {cell(budget, 'x')}"
                met = "met" if (value >= budget if more else value <= budget) else "**missed**"
            rows.append(
                f"| host metadata N={N}, {what} | {peer} | {cell(value, 'x')} | {limit} | {met} |"
            )
    return rows


def native_section() -> str:
    """The native CPU kernels against their peers and the machine, and their errors."""
    report = json.loads((RESULTS / "native_cpu.json").read_text(encoding="utf-8"))
    header = report["header"]
    lines = [
        "| what | against | measured: median (quartiles) | budget | |",
        "|---|---|---|---|---|",
        *backend_rows(report),
        *compiled_rows(),
        "",
        "| relative error of output / state | fp32 | bf16 products | vLLM's CPU op |",
        "|---|---|---|---|",
    ]
    for row in report["errors"]:
        cells = (
            " / ".join(f"{x:.1e}" for x in row[name]) for name in ("fp32", "bf16 products", "vLLM")
        )
        lines.append(f"| {row['case']}, {row['tokens']} tokens | {' | '.join(cells)} |")
    lines += [
        "",
        f"{header['cpu']}, kernels for {report['kernels']}, torch {header['torch']}, "
        f"{header['date'][:10]}; {header['shape']}.",
        *(BUSY if report["clock"] != "wall" else [f"{header['threads']} threads, wall time."]),
        "Peaks: matrix products and memory, see `benchmarks/native_cpu.py`; paired ratios in one",
        "process (`make bench-cpu`). Errors: against the recurrence in fp64, H=4 HV=8, the last",
        "two columns from bf16 inputs.",
    ]
    return "\n".join(lines) + "\n"


def prefill_rows(report: dict[str, Any]) -> list[str]:
    """Prefill on a GPU: what ``cuda`` takes, and everybody else as a multiple of it."""
    rows = [
        f"| prefill, H/HV tokens | cuda | own kernels | {' | '.join(PEERS.values())} |",
        "|---|---|---|" + "---|" * len(PEERS),
    ]
    all_ratios = []
    for result in report["results"]:
        contestants = result["contestants"]
        ratios = [ratio(contestants, name, "cuda") for name in ("cuda/triton", *PEERS)]
        all_ratios.append(ratios)
        if result["case"] in QUICK_PREFILL:
            seconds = contestants["cuda"]["seconds"]
            cells = [f"{x:.2f} x" for x in ratios if x is not None]
            rows.append(f"| {result['case']} | {seconds * 1e3:.3f} ms | {' | '.join(cells)} |")
    return [*rows, f"| all {len(all_ratios)} shapes | | {' | '.join(means(all_ratios))} |"]


def layer_rows(report: dict[str, Any]) -> list[str]:
    """Whole layers: what a step takes eagerly, and vLLM's pieces as a multiple."""
    heads: dict[str, list[dict[str, Any]]] = {}
    for result in report["results"]:
        heads.setdefault(result["case"].split()[0], []).append(result)
    tokens = [result["case"].split()[1] for result in next(iter(heads.values()))]
    rows = [
        f"| layer, H/HV; vLLM 0.33 | {' | '.join(tokens)} |",
        "|---|" + "---|" * len(tokens),
    ]
    for name, results in heads.items():
        ratios = [ratio(r["contestants"], "vLLM Triton", "cuda") for r in results]
        rows.append(f"| {name} | " + " | ".join(f"{x:.2f} x" for x in ratios if x) + " |")
    return rows


def decode_rows(report: dict[str, Any]) -> list[str]:
    """Decode on a GPU: the layer core beside vLLM's, the recurrence alone beside both peers'."""
    rows = [
        "| decode, HV = 32 | layer core | of a copy's bandwidth | vLLM 0.33 "
        "| recurrence alone | of a copy's bandwidth | vLLM 0.33 | FlashInfer 0.7 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    bandwidth = report["header"]["copy_bandwidth"]
    parts: dict[str, dict[str, Any]] = {"decode": {}, "steps": {}}
    for result in report["results"]:
        parts[result["part"]][result["case"]] = result["contestants"]
    for case, layer in parts["decode"].items():
        if "HV=32" not in case:
            continue
        cells = [case.replace(" HV=32", ",")]
        for found, ours, peers in (
            (layer, "cuda", ("vLLM Triton",)),
            (parts["steps"][case], "cuda/triton", ("vLLM Triton", "FlashInfer")),
        ):
            if "seconds" not in found[ours]:
                cells += ["-"] * (2 + len(peers))
                continue
            seconds = found[ours]["seconds"]
            share = found[ours]["traffic"] / seconds / bandwidth
            cells += [f"{seconds * 1e6:.3g} us", f"{share:.0%}"]
            cells += [f"{ratio(found, peer, ours):.2f} x" for peer in peers]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def gpu_section() -> str:
    """What was measured on a GPU."""
    prefill, layer, decode = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("h200_prefill.json", "h200_layer.json", "h200_decode.json")
    )
    header = prefill["header"]
    lines = [
        *prefill_rows(prefill),
        "",
        *layer_rows(layer),
        "",
        *decode_rows(decode),
        "",
        f"{header['device']}, torch {header['torch']}, Triton {header['versions']['triton']}, "
        f"{header['date'][:10]}; bf16, K = V = 128. x: the other's time over that",
        "of `cuda`. Prefill and decode: replays of a CUDA graph; layers: eager, with host work.",
        "FlashInfer and FlashQLA with context parallelism. `gdn-dispatch bench --suite h200` with",
        "`--part prefill`, `--part layer`, and `--part decode --part steps`. Runs of prefill:",
        f"{header['commit']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the README, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    wanted = text
    for begin, end, made in (
        (BEGIN, END, section),
        (NATIVE_BEGIN, NATIVE_END, native_section),
        (GPU_BEGIN, GPU_END, gpu_section),
    ):
        before, rest = wanted.split(begin)
        wanted = before + begin + made() + end + rest.split(end)[1]
    if check:
        return 0 if wanted == text else 1
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
