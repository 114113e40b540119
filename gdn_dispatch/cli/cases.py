"""What ``gdn-dispatch bench`` times, against what, and within which budget.

A case prepares two samplers, each of which returns the seconds of one call, and a check of the
numbers. ``bench`` interleaves the two, so that every ratio compares neighbours in time.
"""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from gdn_dispatch import api
from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch.cli import MissingExtraError, require
from gdn_dispatch.discovery import GROUP
from gdn_dispatch.dispatch import active_registry
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.plan.chunks import ChunkTables, ConvTiles
from gdn_dispatch.plan.layout import Contents, fill, measure
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule
from gdn_dispatch.types import Available, BackendInfo, GDNOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

__all__ = ["CASES", "SHAPE", "Case", "Check", "Measure", "Prepared", "timed"]

H, HV, K, V, W = 16, 32, 128, 128, 4
SHAPE: Final = f"H={H} HV={HV} K={K} V={V}, q/k/v/beta bfloat16, g and states float32"


class Check(NamedTuple):
    """Whether the numbers are right; ``text`` is what the correctness column shows."""

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
TIMES_FLOOR: Final = Measure("x floor", False, lambda ours, peer: ours / peer)
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


# The recurrence, against transformers' own torch functions.

Inputs = tuple[torch.Tensor, ...]
Outputs = tuple[torch.Tensor, torch.Tensor]
Run = Any
"""``run(inputs, state, lens) -> Outputs``; ``lens`` of the packed sequences, or None."""


def _inputs(B: int, T: int, h: int = H, hv: int = HV) -> Inputs:
    """q, k, v, g, beta of a trained model's ranges: decay of exp(A_log) 0..16 and dt 1e-3..1e-1."""
    draw = torch.Generator().manual_seed(0)
    rand = partial(torch.rand, generator=draw)
    q, k, v = (
        torch.randn(B, T, n, K, generator=draw).bfloat16() for n in (h, h, hv)
    )  # fmt: skip
    dt = torch.exp(math.log(1e-3) + math.log(1e2) * rand(B, T, hv))
    return q, k, v, -16 * rand(hv) * dt, rand(B, T, hv).bfloat16()


def _state(N: int, hv: int = HV) -> torch.Tensor:
    return torch.randn(N, hv, K, V, generator=torch.Generator().manual_seed(1))


def _fallback(name: str) -> Any:
    """transformers' pure torch function, without the wrapper that may replace it by a kernel."""
    path = "transformers.models.qwen3_next.modeling_qwen3_next"
    module = require(path, extra="transformers", purpose="this suite")
    if not hasattr(module, name):
        raise MissingExtraError(f"transformers has no {name}: pip install 'transformers>=5.15'")
    return inspect.unwrap(getattr(module, name))


_WANTED: Final = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}


def _ours(function: Any, inputs: Inputs, state: torch.Tensor | None, lens: Any) -> Outputs:
    q, k, v, g, beta = inputs
    packed = {} if lens is None else {"cu_seqlens": _starts(lens)}
    result: Outputs = function(q, k, v, g=g, beta=beta, initial_state=state, **packed, **_WANTED)
    return result


def _theirs(function: Any, inputs: Inputs, state: torch.Tensor | None, lens: Any) -> Outputs:
    """It knows no packed sequences, so they go one by one."""
    if lens is None:
        result: Outputs = function(*inputs, initial_state=state, **_WANTED)
        return result
    ends = _starts(lens).tolist()
    results = [
        function(
            *(x[:, start:end] for x in inputs),
            initial_state=None if state is None else state[n : n + 1],
            **_WANTED,
        )
        for n, (start, end) in enumerate(zip(ends, ends[1:], strict=False))
    ]
    return torch.cat([o for o, _ in results], 1), torch.cat([s for _, s in results])


def _starts(lens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lens)], dtype=torch.int32)


def _rule(
    op: str, fallback: str, B: int, T: int, lens: Any, with_state: bool, small: Any, _: ExitStack
) -> Prepared:
    """``small`` is the (B, T, lens) on which both are held against the fp64 recurrence."""
    ours = partial(_ours, getattr(api, op))
    theirs = partial(_theirs, _fallback(fallback))
    inputs, state = _inputs(B, T), _state(len(lens or range(B))) if with_state else None
    return Prepared(
        timed(lambda: ours(inputs, state, lens)),
        timed(lambda: theirs(inputs, state, lens)),
        lambda: _check_rule(ours, theirs, with_state, *small),
    )


def _check_rule(ours: Run, theirs: Run, with_state: bool, B: int, T: int, lens: Any) -> Check:
    inputs = _inputs(B, T, 2, 4)
    state = _state(len(lens or range(B)), 4) if with_state else None
    ends = _starts(lens or [T] * B).tolist()
    flat = [x.flatten(0, 1) for x in inputs]
    runs = [
        reference_gated_delta_rule(
            *(x[start:end] for x in flat),
            initial_state=None if state is None else state[n],
            use_qk_l2norm=True,
        )
        for n, (start, end) in enumerate(zip(ends, ends[1:], strict=False))
    ]
    right = torch.cat([o for o, _ in runs]), torch.stack([s for _, s in runs])
    error, peer_error = (_distance(run(inputs, state, lens), right) for run in (ours, theirs))
    # Never less accurate than the peer; 2 % because both mostly round the output to bf16.
    return Check(
        error <= 1.02 * peer_error, f"{error:.1e}, peer {peer_error:.1e}", error, peer_error
    )


def _distance(got: Outputs, right: Outputs) -> float:
    """Relative Frobenius distance of output or state, whichever is further off."""
    pairs = [(x.double().reshape(y.shape), y) for x, y in zip(got, right, strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)
