"""``gdn-dispatch bench``: paired timings beside their budgets.

A case prepares two samplers, ours and the peer's, each of which returns the seconds of one call.
Every round takes one sample of each, in alternating order, and makes one number of the two; the
result is the median over the rounds. So a ratio compares neighbours in time, and a machine that
slows down half way slows both.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from gdn_dispatch import __version__
from gdn_dispatch.cli.doctor import environment
from gdn_dispatch.cli.progress import progress
from gdn_dispatch.errors import InvalidArgumentError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from gdn_dispatch.cli.progress import Progress

__all__ = ["Case", "Check", "Measure", "Prepared", "add_arguments", "run", "time_case", "timed"]

NOISY: Final = 0.10
"""Share of the machine that other processes may use during a round that counts."""

RETRIES: Final = 3
"""Rounds that may be repeated in a case because they were not quiet; the next one counts."""


class Check(NamedTuple):
    """Whether the numbers are right; ``text`` is what the column ``numbers`` shows."""

    passed: bool
    text: str
    error: float | None = None
    peer_error: float | None = None


class Prepared(NamedTuple):
    """Samplers of both sides, each of which returns seconds, and the check."""

    ours: Callable[[], float]
    peer: Callable[[], float]
    check: Callable[[], Check]


class Measure(NamedTuple):
    """What a pair of samples says: a number, its unit, and whether more of it is better."""

    unit: str
    more_is_better: bool
    of: Callable[[float, float], float]


SPEEDUP: Final = Measure("x", True, lambda ours, peer: peer / ours)
TIMES_FLOOR: Final = Measure("x", False, lambda ours, peer: ours / peer)
OVERHEAD: Final = Measure("us", False, lambda ours, peer: (ours - peer) * 1e6)
ABSOLUTE: Final = Measure("ms", False, lambda ours, peer: ours * 1e3)


@dataclass(frozen=True)
class Case:
    """One line of the benchmark. ``budget`` None: for information."""

    suite: str
    name: str
    peer: str
    measure: Measure
    budget: float | None
    prepare: Callable[[ExitStack], Prepared]


@dataclass
class _Rounds:
    """The samples that counted, and how loud the machine was."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    retries: int = 0


def timed(function: Callable[[], object], at_least: float = 0.02) -> Callable[[], float]:
    """A sampler: one untimed call, then as many as ``at_least`` seconds hold, at least one."""
    function()
    begin = time.perf_counter()
    function()
    repeats = max(1, int(at_least / max(time.perf_counter() - begin, 1e-7)))

    def sample() -> float:
        function()
        begin = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - begin) / repeats

    return sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--suite``, ``--rounds``, ``--output``, ``--plot``, ``--list``."""
    parser.add_argument("--suite", action="append", metavar="NAME", help="may be repeated; else all")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="per case (default 7)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="PREFIX", help="write plots, PNG and SVG")
    parser.add_argument("--list", action="store_true", help="show the cases and their budgets")


def run(args: argparse.Namespace) -> int:
    """0: every number is right, whatever the budgets say. 1: one is wrong, or a suite failed."""
    from gdn_dispatch.cli.cases import CASES, SHAPE

    suites = list(dict.fromkeys(case.suite for case in CASES))
    for name in args.suite or ():
        if name not in suites:
            raise InvalidArgumentError("--suite", repr(name), f"one of {', '.join(suites)}")
    if args.rounds < 1:
        raise InvalidArgumentError("--rounds", str(args.rounds), "at least 1")
    for path in (args.output, args.plot):
        if path is not None and not path.parent.is_dir():
            raise InvalidArgumentError("folder", repr(str(path.parent)), "one that exists")
    chosen = [case for case in CASES if case.suite in (args.suite or suites)]
    if args.list:
        print("\n".join(_line(c.suite, c.name, f"against {c.peer}", _budget(c)) for c in chosen))
        return 0
    if args.plot is not None:
        from gdn_dispatch.cli.plots import check_matplotlib, write_plots

        check_matplotlib()  # before the minutes, not after them

    results: list[dict[str, Any]] = []
    report = {"header": header(SHAPE), "rounds": args.rounds, "results": results}
    interrupted = False
    try:
        with progress(len(chosen), args.rounds) as bar, torch.no_grad():
            for case in chosen:
                bar.case(f"{case.suite} {case.name}")
                results.append(time_case(case, args.rounds, bar))
    except KeyboardInterrupt:  # what is done is worth keeping
        interrupted = True
    print("\n".join(_table(report)))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None and not interrupted:
        for path in write_plots(report, args.plot):
            print(f"wrote {path}", file=sys.stderr)
    if interrupted:
        raise KeyboardInterrupt
    return 0 if all(result.get("passed") for result in results) else 1
