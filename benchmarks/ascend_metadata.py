"""Time to build Ascend's metadata of a step on the host, against the sequence of vllm-ascend.

    PYTHONPATH=backends/ascend python benchmarks/ascend_metadata.py [--json ascend_metadata.json]

The peer is written here from the formulas of vllm-ascend 0.26's ``prepare_*`` helpers, in eager
torch as they are: six tensors one after the other, then the tuples for host-argument operators. Its
six copies to the device are left out, and so is ours, as a CPU makes none. Everything runs on one
thread, whose own CPU time is taken: nobody waits here, and what else the machine does should not
count. Variants are interleaved in every round, and a ratio compares neighbours in time.

========  ==========================================================================================
prepare   the six tensors by the ``prepare_*`` helpers: the peer
build     ``plan_batch`` and ``build_chunk_meta``: the six tables and all else in the metadata
tables    the six tables alone, written into one flat buffer by numpy
legacy    ``prepare``, and cu_seqlens, IDX(64) and cu_seqlens without empties as tuples
step      ``build``, and the same tuples: what a step with host-argument operators needs
========  ==========================================================================================
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gdn_dispatch_ascend.meta import build_chunk_meta, spec_for

from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.plan.layout import Contents, NumpyTables, TablesRequest, fill, measure
from gdn_dispatch.types import MetaRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from gdn_dispatch_ascend.meta import AscendChunkMeta
    from gdn_dispatch_ascend.metadata.tables import AscendTables

CASES = ((1, 33_000), (16, 77_000), (256, 1_000_000), (1024, 1_000_000))
NUM_V_HEADS = 8
SIZES = (64, 1216, 512)
BUDGET = {1024: 20}
"""Times that ``build`` is faster than ``prepare``, by N."""
RATIOS = (("prepare", "build"), ("prepare", "tables"), ("legacy", "step"))


def legacy_indices(cu: torch.Tensor, size: int) -> torch.Tensor:
    """IDX(size): a range for every sequence, whose beginnings number the sequences with tokens."""
    counts = torch.div(cu[1:] - cu[:-1] + (size - 1), size, rounding_mode="floor")
    local = torch.cat([torch.arange(n) for n in counts.tolist()])
    return torch.stack([local.eq(0).cumsum(0) - 1, local], 1).to(cu)


def legacy_offsets(cu: torch.Tensor, size: int, more: int = 0) -> torch.Tensor:
    """[0] + cumsum(chunks + more)."""
    counts = torch.div(cu[1:] - cu[:-1] + (size - 1), size, rounding_mode="floor") + more
    return torch.cat([cu.new_zeros(1), counts]).cumsum(-1)


def legacy_finals(cu: torch.Tensor, size: int) -> torch.Tensor:
    """cumsum(chunks + 1) - 1."""
    counts = torch.div(cu[1:] - cu[:-1] + (size - 1), size, rounding_mode="floor") + 1
    return counts.cumsum(0) - 1


def prepare(cu: torch.Tensor) -> dict[str, torch.Tensor]:
    """The six, by name."""
    return {
        "chunk_indices_chunk64": legacy_indices(cu, SIZES[0]),
        "chunk_offsets_chunk64": legacy_offsets(cu, SIZES[0]),
        "update_chunk_offsets_chunk64": legacy_offsets(cu, SIZES[0], 1),
        "final_chunk_indices_chunk64": legacy_finals(cu, SIZES[0]),
        "chunk_indices_large_block": legacy_indices(cu, SIZES[1]),
        "block_indices_cumsum": legacy_indices(cu, SIZES[2]),
    }


def legacy(cu: torch.Tensor) -> tuple[dict[str, torch.Tensor], tuple[Any, ...]]:
    """The six tensors and the tuples: cu_seqlens, IDX(64), cu_seqlens without empties or None."""
    tensors = prepare(cu)
    host = tuple(cu.to(torch.int64).tolist())
    rows = tuple(tensors["chunk_indices_chunk64"].to(torch.int64).reshape(-1).tolist())
    bounds = torch.tensor(host, dtype=torch.int64)
    keep = (bounds[1:] - bounds[:-1]) > 0
    kern = None
    if not bool(keep.all()):
        kern = tuple(torch.cat([bounds[:1], bounds[1:][keep]]).tolist())
    return tensors, (host, rows, kern)


def build(starts: np.ndarray[Any, Any]) -> AscendChunkMeta:
    """The metadata of a step by this package."""
    plan = plan_batch(starts)
    return build_chunk_meta(MetaRequest(plan, torch.device("cpu"), num_v_heads=NUM_V_HEADS))


def step(starts: np.ndarray[Any, Any]) -> tuple[AscendTables, tuple[Any, ...]]:
    """The same by this package: the tables and the tuples."""
    meta = build(starts)
    host = meta.rule_host_arguments
    return meta.tables, (host.cu_seqlens, host.chunk_indices_chunk64, host.cu_seqlens_kern)


def ragged_starts(num_seqs: int, num_tokens: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A ``query_start_loc`` of uneven lengths, one in sixteen empty, the same in every run."""
    rng = np.random.default_rng(num_seqs)
    weights = rng.random(num_seqs) + 0.1
    weights[rng.random(num_seqs) < 1 / 16] = 0
    weights[0] = 1
    lens = rng.multinomial(num_tokens, weights / weights.sum())
    return np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)


def variants(num_seqs: int, num_tokens: int) -> dict[str, Callable[[], object]]:
    """The functions to time."""
    starts = ragged_starts(num_seqs, num_tokens)
    cu = torch.from_numpy(starts)
    plan = plan_batch(starts)
    request = TablesRequest(plan.seq_lens, spec_for(NUM_V_HEADS).table_sizes, 0)
    room = measure(Contents({}, NumpyTables(request), {}))
    flat = np.zeros(room.num_words, np.int32)

    def tables() -> None:
        what = Contents({}, NumpyTables(request), {})
        fill(measure(what), what, flat)

    return {
        "prepare": lambda: prepare(cu),
        "build": lambda: build(starts),
        "tables": tables,
        "legacy": lambda: legacy(cu),
        "step": lambda: step(starts),
    }


def run(rounds: int = 15, *, seconds_per_timing: float = 0.01) -> dict[str, Any]:
    """Time every variant on every case; medians in microseconds and medians of paired ratios."""
    torch.set_num_threads(1)
    results = []
    for num_seqs, num_tokens in CASES:
        functions = variants(num_seqs, num_tokens)
        repeats = {}
        for name, function in functions.items():
            function()  # fills tables
            repeats[name] = max(1, int(seconds_per_timing / max(1e-6, _seconds(function, 1))))
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(rounds):
            for name, function in functions.items():
                function()  # its neighbour left other data in the caches
                times[name].append(1e6 * _seconds(function, repeats[name]))
        results.append(
            {
                "num_seqs": num_seqs,
                "num_tokens": num_tokens,
                "microseconds": {name: median(values) for name, values in times.items()},
                "ratios": {
                    f"{over}/{under}": median(
                        a / b for a, b in zip(times[over], times[under], strict=True)
                    )
                    for over, under in RATIOS
                },
                "budget": BUDGET.get(num_seqs),
            }
        )
    return {
        "clock": "thread_time",
        "rounds": rounds,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cases": results,
    }


def _seconds(function: Callable[[], object], repeats: int) -> float:
    begin = time.thread_time()
    for _ in range(repeats):
        function()
    return (time.thread_time() - begin) / repeats


def table(result: dict[str, Any]) -> str:
    """The result as text: microseconds, then ratios and the budget of the first."""
    names = list(result["cases"][0]["microseconds"])
    ratios = list(result["cases"][0]["ratios"])
    lines = [
        f"{'N / tokens':>15}"
        + "".join(f"{name:>10}" for name in names)
        + "".join(f"{name:>16}" for name in ratios)
        + f"{'>=':>5}"
    ]
    for case in result["cases"]:
        lines.append(
            f"{case['num_seqs']:>6} / {case['num_tokens']:>6}"
            + "".join(f"{case['microseconds'][name]:>10.1f}" for name in names)
            + "".join(f"{case['ratios'][name]:>16.1f}" for name in ratios)
            + f"{case['budget'] or '-':>5}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = run(arguments.rounds)
    print(table(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
