"""How ``bench --suite h200`` takes time: replays of a captured graph, or calls one after another.

A stopwatch makes a sampler of a list of calls; a sampler returns seconds per call. Several calls
that work on different memory make one sample, so that none finds its data in the cache, where that
matters. ``paired`` takes samples of all contestants in turn, round after round: what slows the
machine down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch

__all__ = [
    "EagerStopwatch",
    "GraphStopwatch",
    "Stopwatch",
    "WallStopwatch",
    "copy_bandwidth",
    "paired",
]

Call = Callable[[], object]
Sampler = Callable[[], float]

WARM_UP: Final = 3
"""Calls before anything counts: the first compiles, and what it compiles may autotune."""

SAMPLE_SECONDS: Final = 2e-3
"""A sample lasts at least this long."""


class Stopwatch(Protocol):
    """Makes samplers."""

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """Seconds per call of ``calls``, all of which have run before it returns."""


class GraphStopwatch:
    """Time on the device: ``calls`` captured once, replayed often. No host work is in it."""

    def __init__(self, device: torch.device, sample_seconds: float = SAMPLE_SECONDS) -> None:
        self._cuda: Any = torch.get_device_module(device)
        self._at_least = sample_seconds

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """See ``Stopwatch``. Raises what the capture raises: not everybody can be captured."""
        cuda = self._cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(WARM_UP):
                calls[0]()
            for call in calls[1:]:
                call()
        cuda.current_stream().wait_stream(side)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, capture_error_mode="thread_local"):
            for call in calls:
                call()
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))

        def replay(times: int) -> float:
            begin.record()
            for _ in range(times):
                graph.replay()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3 / times

        replay(1)
        once = max(replay(2), 1e-7)
        times = max(1, min(1000, int(self._at_least / once) + 1))
        return lambda: replay(times) / len(calls)


class EagerStopwatch:
    """Time of eager calls one after another, host work and launches included."""

    def __init__(self, device: torch.device, sample_seconds: float = 5 * SAMPLE_SECONDS) -> None:
        self._cuda: Any = torch.get_device_module(device)
        self._at_least = sample_seconds

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """See ``Stopwatch``."""
        return _wall(calls, self._at_least, self._cuda.synchronize)


class WallStopwatch:
    """Time of calls on a CPU."""

    def __init__(self, sample_seconds: float = SAMPLE_SECONDS) -> None:
        self._at_least = sample_seconds

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """See ``Stopwatch``."""
        return _wall(calls, self._at_least, lambda: None)


def _wall(calls: Sequence[Call], at_least: float, finish: Call) -> Sampler:
    def run(times: int) -> float:
        finish()
        begin = time.perf_counter()
        for _ in range(times):
            for call in calls:
                call()
        finish()
        return (time.perf_counter() - begin) / times

    for _ in range(WARM_UP - 1):
        run(1)
    times = max(1, min(1000, int(at_least / max(run(1), 1e-7)) + 1))
    return lambda: run(times) / len(calls)


def paired(samplers: Mapping[str, Sampler], rounds: int) -> dict[str, list[float]]:
    """``rounds`` samples of everybody, taken in turn; who goes first changes every round."""
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        at = turn % len(names) if names else 0
        for name in names[at:] + names[:at]:
            samples[name].append(samplers[name]())
    return samples


def copy_bandwidth(stopwatch: Stopwatch, device: torch.device, size: int = 1 << 30) -> float:
    """Bytes per second of a device-to-device copy of ``size`` bytes, read and written counted."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    sample = stopwatch.sampler([lambda: target.copy_(source)])
    return 2 * size / sorted(sample() for _ in range(5))[2]
