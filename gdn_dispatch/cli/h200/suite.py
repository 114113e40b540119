"""``gdn-dispatch bench --suite h200``: this package against other people's kernels, on one GPU.

Five parts, each a list of shapes and of contestants:

* ``prefill``: the chunk rule's kernels alone, on 171 published shapes, by graph replay.
* ``calls``: the same as a caller sees it, q and k not normalised, by every provider of ``cuda``.
* ``layer``: whole layer cores of steps up to 8192 tokens, eager.
* ``decode``: the layer core of decode steps, by graph replay, states read from memory.
* ``steps``: the recurrence of decode steps alone, the same way.

Everybody is checked against fp64 on a sample of the case, and timed in turn, round after round.
Nobody's failure stops the others: what was not measured says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from gdn_dispatch.cli.h200 import decode as decode_part
from gdn_dispatch.cli.h200 import layer as layer_part
from gdn_dispatch.cli.h200 import prefill as prefill_part
from gdn_dispatch.cli.h200.contest import WRONG, Contestant, Lost, measure, version
from gdn_dispatch.cli.h200.inputs import decode_inputs, layer_inputs, prefill_inputs
from gdn_dispatch.cli.h200.report import table, write_plots
from gdn_dispatch.cli.h200.shapes import (
    DECODE_SHAPES,
    LAYER_SHAPES,
    QUICK_DECODE_SHAPES,
    QUICK_LAYER_SHAPES,
    QUICK_PREFILL,
    prefill_shapes,
    with_heads,
)
from gdn_dispatch.cli.h200.timing import (
    EagerStopwatch,
    GraphStopwatch,
    Stopwatch,
    copy_bandwidth,
)
from gdn_dispatch.cli.plots import check_matplotlib
from gdn_dispatch.cli.progress import progress
from gdn_dispatch.errors import InvalidArgumentError

if TYPE_CHECKING:
    import argparse

    from gdn_dispatch.cli.progress import Progress

__all__ = ["Part", "header", "parts", "run", "run_parts"]

LIBRARIES: Final = (
    "triton",
    "fla-core",
    "flashinfer-python",
    "flash-qla",
    "tilelang",
    "nvidia-cutlass-dsl",
    "vllm",
)
"""Distributions whose versions belong to a result."""


@dataclass(frozen=True)
class Part:
    """One part of the suite.

    Attributes:
        name: As in ``arguments.PARTS``.
        shapes: Its shapes, each with ``name`` and ``facts``.
        inputs: Makes the inputs of a shape.
        contestants: Who takes part.
        stopwatch: How time is taken.
    """

    name: str
    shapes: Sequence[Any]
    inputs: Callable[[Any], Any]
    contestants: Sequence[Contestant[Any]]
    stopwatch: Stopwatch


def parts(
    device: torch.device,
    *,
    quick: bool,
    wanted: Sequence[str] | None,
    heads: list[str] | None,
) -> list[Part]:
    """The parts asked for, on a CUDA device."""
    prefills = prefill_shapes()
    few = tuple(s for s in prefills if s.name in QUICK_PREFILL)
    graph, eager = GraphStopwatch(device), EagerStopwatch(device)

    def prefill(shape: Any) -> Any:
        return prefill_inputs(shape, device)

    def decode(shape: Any) -> Any:
        return decode_inputs(shape, device)

    layers = QUICK_LAYER_SHAPES if quick else LAYER_SHAPES
    steps = QUICK_DECODE_SHAPES if quick else DECODE_SHAPES
    found = [
        Part("prefill", few if quick else prefills, prefill, prefill_part.PREFILL, graph),
        Part("calls", few if quick else prefills, prefill, prefill_part.CALLS, graph),
        Part("layer", layers, lambda s: layer_inputs(s, device), layer_part.LAYER, eager),
        Part("decode", steps, decode, decode_part.DECODE, graph),
        Part("steps", steps, decode, decode_part.STEPS, graph),
    ]
    return [
        Part(p.name, with_heads(tuple(p.shapes), heads), p.inputs, p.contestants, p.stopwatch)
        for p in found
        if wanted is None or p.name in wanted
    ]


def run(args: argparse.Namespace) -> int:
    """0: measured, with every number of ours right. 1: one is wrong or missing, or nothing ran."""
    if args.rounds < 0:
        raise InvalidArgumentError("--rounds", str(args.rounds), "at least 0 (0: only compile)")
    if not torch.get_device_module("cuda").is_available():
        raise InvalidArgumentError("--suite", "'h200'", "a machine with a CUDA device")
    if args.plot is not None:
        check_matplotlib()  # before the minutes, not after them
    device = torch.device("cuda", torch.get_device_module("cuda").current_device())
    chosen = parts(device, quick=args.quick, wanted=args.part, heads=args.heads)
    if not any(part.shapes for part in chosen):
        raise InvalidArgumentError("--heads", str(args.heads), "head counts of the suite")
    if args.list:
        for part in chosen:
            print(f"{part.name}: {', '.join(c.name for c in part.contestants)}")
            print("\n".join(f"  {shape.name}" for shape in part.shapes))
        return 0
    report: dict[str, Any] = {"header": header(device, args.commit), "rounds": args.rounds}
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes

    def save() -> None:
        if args.output is not None:
            args.output.write_text(json.dumps(report) + "\n", encoding="utf-8")

    # eager: a graph hands a copy to the copy engines, which are slower
    bandwidth = copy_bandwidth(EagerStopwatch(device), device) if args.rounds else 0.0
    report["header"]["copy_bandwidth"] = bandwidth
    passed = run_parts(
        chosen,
        report,
        rounds=args.rounds,
        without=args.without or (),
        deadline=deadline,
        finish=torch.get_device_module("cuda").synchronize,
        save=save,
    )
    print("\n".join(table(report)))
    if args.plot is not None:
        for path in write_plots(report, args.plot):
            print(f"wrote {path}", file=sys.stderr)
    return 0 if passed else 1


def run_parts(
    chosen: Sequence[Part],
    report: dict[str, Any],
    *,
    rounds: int,
    without: Sequence[str] = (),
    deadline: float | None = None,
    finish: Callable[[], object] = lambda: None,
    save: Callable[[], None] = lambda: None,
) -> bool:
    """Measure ``chosen`` and put what is found into ``report``, case by case.

    Returns:
        Whether this package failed nowhere, and the device was not lost.
    """
    results: list[dict[str, Any]] = report.setdefault("results", [])
    absent: dict[str, dict[str, str]] = report.setdefault("absent", {})
    skipped: list[str] = report.setdefault("skipped", [])
    cases = sum(len(part.shapes) for part in chosen)
    with progress(cases, 1) as bar, torch.no_grad():
        for part in chosen:
            present = []
            for contestant in part.contestants:
                reason = contestant.unavailable()
                if contestant.name in without:
                    reason = "left out on request"
                if reason:
                    absent.setdefault(part.name, {})[contestant.name] = reason
                else:
                    present.append(contestant)
            try:
                _run_part(part, present, results, skipped, bar, rounds, deadline, finish, save)
            except Lost as lost:
                report["lost"] = str(lost)
                print(f"{lost}; --without leaves a contestant out", file=sys.stderr)
                break
    save()
    return "lost" not in report and all(
        _right(entry)
        for result in results
        for name, entry in result["contestants"].items()
        if name in ("cuda", "cuda/triton")
    )


def _right(entry: dict[str, Any]) -> bool:
    wrong = any(not error <= WRONG for error in entry.get("errors", {}).values())
    return not (wrong or "failure" in entry or "check_failure" in entry)


def _run_part(
    part: Part,
    present: Sequence[Contestant[Any]],
    results: list[dict[str, Any]],
    skipped: list[str],
    bar: Progress,
    rounds: int,
    deadline: float | None,
    finish: Callable[[], object],
    save: Callable[[], None],
) -> None:
    for shape in part.shapes:
        bar.case(f"{part.name} {shape.name}")
        if deadline is not None and time.monotonic() > deadline:
            skipped.append(f"{part.name} {shape.name}")
            bar.end_case()
            continue
        record: dict[str, Any] = {
            "part": part.name,
            "case": shape.name,
            "shape": shape.facts,
            "published_ms": getattr(shape, "published", {}),
            "contestants": {},
        }
        results.append(record)
        try:
            record["contestants"] = measure(
                present, part.inputs(shape), part.stopwatch, rounds=rounds, finish=finish
            )
        except Lost as lost:
            record["contestants"] = lost.args[1]
            raise Lost(f"{lost.args[0]}, in {part.name} {shape.name}") from lost
        finally:
            save()
        bar.end_case()


def header(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Where, when and of what."""
    from gdn_dispatch.cli import bench  # which imports this module

    cuda: Any = torch.get_device_module(device)
    major, minor = cuda.get_device_capability(device)
    found = bench.header("K = V = 128, bfloat16, states fp32 unless named")
    return {
        **found,
        "commit": commit or found["commit"],
        "device": cuda.get_device_name(device),
        "compute_capability": f"{major}.{minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "versions": {
            "torch": str(torch.__version__),
            **{name: installed for name in LIBRARIES if (installed := version(name))},
        },
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None
