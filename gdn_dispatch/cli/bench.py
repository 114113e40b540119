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
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from gdn_dispatch import __version__
from gdn_dispatch.cli.doctor import environment
from gdn_dispatch.cli.h200.arguments import add_arguments as add_h200_arguments
from gdn_dispatch.cli.plots import budget_text, check_matplotlib, table, write_plots
from gdn_dispatch.cli.progress import progress
from gdn_dispatch.errors import InvalidArgumentError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

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


def timed(
    function: Callable[[], object],
    at_least: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """A sampler: one untimed call, then as many as ``at_least`` seconds hold, at least one."""
    for _ in range(2):  # the first may fill caches; a slow one tells enough
        begin = clock()
        function()
        once = max(clock() - begin, 1e-7)
        if once > 1.0:
            break
    repeats = max(1, int(at_least / once))

    def sample() -> float:
        function()
        begin = clock()
        for _ in range(repeats):
            function()
        return (clock() - begin) / repeats

    return sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--suite``, ``--rounds``, ``--output``, ``--plot``, ``--list``."""
    parser.add_argument(
        "--suite", action="append", metavar="NAME", help="may be repeated; else all"
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="per case (default 7)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="PREFIX", help="write plots, PNG and SVG")
    parser.add_argument("--list", action="store_true", help="show the cases and their budgets")
    add_h200_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """0: every number is right, whatever the budgets say. 1: one is wrong, or a suite failed."""
    # here, not above: both import this module
    from gdn_dispatch.cli.cases import CASES, SHAPE
    from gdn_dispatch.cli.h200 import suite

    suites = list(dict.fromkeys(case.suite for case in CASES))
    for path in (args.output, args.plot):
        if path is not None and not path.parent.is_dir():
            raise InvalidArgumentError("folder", repr(str(path.parent)), "one that exists")
    if args.suite == ["h200"]:  # needs a GPU, so nobody gets it without asking
        return suite.run(args)
    for name in args.suite or ():
        if name not in suites:
            raise InvalidArgumentError("--suite", repr(name), f"one of {', '.join(suites)}")
    if args.rounds < 1:
        raise InvalidArgumentError("--rounds", str(args.rounds), "at least 1")
    chosen = [case for case in CASES if case.suite in (args.suite or suites)]
    if args.list:
        for c in chosen:
            budget = budget_text(c.budget, c.measure.more_is_better, c.measure.unit)
            print(f"{c.suite:<9} {c.name:<33} {budget:<10} against {c.peer}")
        return 0
    if args.plot is not None:
        check_matplotlib()  # before the minutes, not after them

    results: list[dict[str, Any]] = []
    report = {"header": header(SHAPE), "rounds": args.rounds, "results": results}
    interrupted = False
    try:
        with progress(len(chosen), args.rounds) as bar, torch.no_grad():
            for case in chosen:
                bar.case(f"{case.suite} {case.name}")
                results.append(_record(case, args.rounds, bar))
                bar.end_case()
                if args.output is not None:  # after every case: minutes of work are worth keeping
                    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        interrupted = True
    print("\n".join(table(report)))
    if args.plot is not None and not interrupted:
        for path in write_plots(report, args.plot):
            print(f"wrote {path}", file=sys.stderr)
    if interrupted:
        raise KeyboardInterrupt
    return 0 if all(result["passed"] for result in results) else 1


def _record(case: Case, rounds: int, bar: Progress) -> dict[str, Any]:
    """A case as plain data. One that cannot run says why, and does not end the others."""
    record: dict[str, Any] = {
        "suite": case.suite,
        "case": case.name,
        "peer": case.peer,
        "unit": case.measure.unit,
        "more_is_better": case.measure.more_is_better,
        "budget": case.budget,
    }
    try:
        return record | time_case(case, rounds, bar.step)
    except Exception as error:  # noqa: BLE001 - a peer may raise anything
        text = f"{type(error).__name__}: {error}".partition("\n")
        return record | {"passed": False, "failure": text[0], "hint": text[2]}


def time_case(case: Case, rounds: int, step: Callable[[str], None]) -> dict[str, Any]:
    """Prepare, check and time one case."""
    with ExitStack() as stack:
        prepared = case.prepare(stack)
        check = prepared.check()
        pairs: list[tuple[float, float]] = []
        foreign: list[float] = []
        retries = 0
        while len(pairs) < rounds:
            before = _cpu_seconds()
            # the order alternates, so that neither side always finds the other's caches
            if len(pairs) % 2 == 0:
                ours, peer = prepared.ours(), prepared.peer()
            else:
                peer, ours = prepared.peer(), prepared.ours()
            load = _foreign_load(before, _cpu_seconds())
            if load is not None and load > NOISY and retries < RETRIES:
                retries += 1
                step("waiting for a quiet machine")
                time.sleep(0.2)
                continue
            pairs.append((ours, peer))
            foreign += [] if load is None else [load]
            step(f"{len(pairs)} of {rounds}")
    values = [case.measure.of(*pair) for pair in pairs]
    value = median(values)
    low, _, high = quantiles(values, n=4, method="inclusive") if rounds > 1 else [value] * 3
    sign = 1 if case.measure.more_is_better else -1
    return {
        "ours_s": median(pair[0] for pair in pairs),
        "peer_s": median(pair[1] for pair in pairs),
        "value": value,
        "min": min(values),
        "max": max(values),
        "quartiles": [low, high],
        "values": values,
        "met": None if case.budget is None else sign * value >= sign * case.budget,
        **check._asdict(),
        "foreign_load": foreign,
        "noisy_rounds": sum(load > NOISY for load in foreign),
        "repeated_rounds": retries,
    }


def _cpu_seconds() -> tuple[float, float, float] | None:
    """All CPU seconds of the machine so far, the busy ones, and this process's; None off Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(word) for word in stat.read_text(encoding="ascii").split()[1:9]]
    idle, per_second = ticks[3] + ticks[4], os.sysconf("SC_CLK_TCK")
    # times() counts children too, once they have ended
    return sum(ticks) / per_second, (sum(ticks) - idle) / per_second, sum(os.times()[:4])


def _foreign_load(
    before: tuple[float, float, float] | None, after: tuple[float, float, float] | None
) -> float | None:
    """Share of the machine used by others in between; None where that was too short to say."""
    if before is None or after is None:
        return None
    whole, busy, own = (b - a for a, b in zip(before, after, strict=True))
    # the kernel counts in ticks of 10 ms: below 20 of them, chance decides
    return None if whole < 0.2 else max(0.0, busy - own) / whole


def header(shape: str) -> dict[str, Any]:
    """Where and when: without it a number means nothing."""
    return {
        "version": __version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        **environment(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "shape": shape,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _commit() -> str | None:
    """The commit this runs from, marked where the files differ from it; None if installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None
