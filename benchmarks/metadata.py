"""Time to build a step's chunk metadata on the host, against vLLM's and FLA's, in one process.

    python benchmarks/metadata.py [--rounds 15] [--json metadata.json]

Needs ``fla-core==0.6.0`` and ``vllm==0.33.0`` installed without their dependencies: the peers'
functions are plain torch on the host, and are taken out of the installed files one by one, because
importing either package wants a GPU stack. Their result caches are left out: every step is new.
Everything runs on one thread.

Variants, interleaved in every round, so that a ratio compares neighbours in time:

========  ==========================================================================================
sections  chunk tables for 64, 128 and 1216 and conv tiles of 8 into one flat buffer
host      all of a step's host metadata: the same, and groups and cu_seqlens
step      ``plan_batch`` and ``build`` on the CPU: what a serving engine calls once per step
vllm      chunk_indices for 64, 128 and 1216, chunk_offsets, conv metadata
fla       the same with FLA's chunk functions; FLA has no conv metadata, so vLLM's
copy      a numpy copy of as many bytes as ``sections`` writes
========  ==========================================================================================

With gdn-dispatch-cpu there are three more: ``compiled``, its counting and writing of ``sections``
into a buffer laid out before; ``compiled_sections`` and ``compiled_step``, which are ``sections``
and ``step`` with it, laying out in Python included.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.metadata
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gdn_dispatch.meta import MetaSpec, build
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.plan.groups import split
from gdn_dispatch.plan.layout import (
    Contents,
    NumpyTables,
    TablesMaker,
    TablesRequest,
    contents,
    fill,
    measure,
)
from gdn_dispatch.selection.dispatch import tables_maker
from gdn_dispatch.types import MetaRequest

INSTALL = "pip install --no-deps fla-core==0.6.0 vllm==0.33.0"
BLOCK_SIZES = (64, 128, 1216)
CONV_BLOCK_SIZE = 8
CASES = ((1, 33_000), (16, 77_000), (256, 1_000_000), (1024, 1_000_000), (4096, 1_000_000))
BUDGETS = {1: 10, 16: 20}
"""Times faster than either peer, by N; 60 from 256 on, and there at most 3 copies."""


class PeersMissingError(Exception):
    """A peer is not installed in the version this file knows."""


def load_peers() -> SimpleNamespace:
    """The peers' functions: ``vllm_indices``, ``vllm_offsets``, ``vllm_conv``, ``fla_...``."""
    common = {
        "torch": torch,
        "np": np,
        "F": torch.nn.functional,
        "triton": SimpleNamespace(cdiv=lambda a, b: (a + b - 1) // b),
        "gpu_sync_allowed": contextlib.nullcontext,
        "async_tensor_h2d": lambda tensor, device, dtype: tensor.to(device=device, dtype=dtype),
        "np_to_pinned_tensor": torch.from_numpy,
        "PIN_MEMORY": False,
        "PAD_SLOT_ID": -1,
    }
    chunk_functions = ("prepare_lens", "prepare_chunk_indices", "prepare_chunk_offsets")
    vllm = _extract(
        "vllm",
        "0.33.0",
        "vllm/third_party/flash_linear_attention/ops/index.py",
        chunk_functions,
        common,
    )
    conv = _extract(
        "vllm",
        "0.33.0",
        "vllm/v1/attention/backends/utils.py",
        ("compute_causal_conv1d_metadata",),
        common,
    )
    fla = _extract(
        "fla-core",
        "0.6.0",
        "fla/ops/utils/index.py",
        ("_segmented_arange", *chunk_functions),
        common,
    )
    return SimpleNamespace(
        vllm_indices=vllm["prepare_chunk_indices"],
        vllm_offsets=vllm["prepare_chunk_offsets"],
        vllm_conv=conv["compute_causal_conv1d_metadata"],
        fla_indices=fla["prepare_chunk_indices"],
        fla_offsets=fla["prepare_chunk_offsets"],
    )


def _extract(
    distribution: str, version: str, path: str, names: tuple[str, ...], common: dict[str, Any]
) -> dict[str, Any]:
    """Run the definitions of ``names``, without decorators, out of an installed file."""
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise PeersMissingError(f"{distribution} is not installed: {INSTALL}") from None
    if installed.version != version:
        raise PeersMissingError(f"{distribution} {installed.version} is installed: {INSTALL}")
    module = ast.parse(Path(str(installed.locate_file(path))).read_text(encoding="utf-8"))
    module.body = [
        node
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]  # fmt: skip
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
    namespace = dict(common)
    # compile() hands this file's __future__ annotations down: the peers' are never evaluated.
    exec(compile(module, path, "exec"), namespace)
    return namespace


def ragged_starts(num_seqs: int, num_tokens: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A ``query_start_loc`` of uneven lengths, the same in every run."""
    rng = np.random.default_rng(num_seqs)
    weights = rng.random(num_seqs) + 0.1
    lens = rng.multinomial(num_tokens, weights / weights.sum())
    return np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)


def variants(num_seqs: int, num_tokens: int, peers: SimpleNamespace) -> dict[str, Any]:
    """The functions to time, by name, and ``bytes``, how many ``sections`` writes."""
    starts = ragged_starts(num_seqs, num_tokens)
    tensor = torch.from_numpy(starts)
    slots = np.arange(1, num_seqs + 1, dtype=np.int32)
    plan = plan_batch(starts, state_indices=slots)
    spec = MetaSpec(BLOCK_SIZES[0], BLOCK_SIZES[1:], CONV_BLOCK_SIZE)
    device = torch.device("cpu")

    tables = TablesRequest(plan.seq_lens, BLOCK_SIZES, CONV_BLOCK_SIZE)
    compiled_maker = tables_maker()

    def tables_and_tiles(maker: TablesMaker = NumpyTables) -> Contents:
        return Contents({}, maker(tables), {})

    room = measure(
        contents(
            plan,
            split(plan, serving=True),
            block_sizes=BLOCK_SIZES,
            conv_block_size=CONV_BLOCK_SIZE,
        )
    )
    flat = np.zeros(room.num_words, np.int32)
    layout = measure(tables_and_tiles())
    words = sum(section.words for section in layout.sections.values())
    source, target = np.zeros(words, np.int32), np.zeros(words, np.int32)

    def sections(maker: TablesMaker = NumpyTables) -> None:
        what = tables_and_tiles(maker)
        fill(measure(what), what, flat)

    def host() -> None:
        groups = split(plan, serving=True)
        what = contents(plan, groups, block_sizes=BLOCK_SIZES, conv_block_size=CONV_BLOCK_SIZE)
        fill(measure(what), what, flat)

    def step(maker: TablesMaker | None = None) -> None:
        fresh = plan_batch(starts, state_indices=slots)
        build(MetaRequest(fresh, device, tables_maker=maker), spec, backend="benchmark")

    def vllm() -> None:
        for size in BLOCK_SIZES:
            peers.vllm_indices(tensor, size)
        peers.vllm_offsets(tensor, BLOCK_SIZES[0])
        peers.vllm_conv(tensor, device=device)

    def fla() -> None:
        for size in BLOCK_SIZES:
            peers.fla_indices(tensor, size)
        peers.fla_offsets(tensor, BLOCK_SIZES[0])
        peers.vllm_conv(tensor, device=device)

    def copy() -> None:
        np.copyto(target, source)

    functions: dict[str, Callable[[], None]] = {
        "sections": sections,
        "host": host,
        "step": step,
        "vllm": vllm,
        "fla": fla,
        "copy": copy,
    }
    if compiled_maker is not None:
        functions["compiled"] = lambda: compiled_maker(tables).write(layout, flat)
        functions["compiled_sections"] = partial(sections, compiled_maker)
        functions["compiled_step"] = partial(step, compiled_maker)
    return {"functions": functions, "bytes": 4 * words}


def run(rounds: int = 15, *, seconds_per_timing: float = 0.01) -> dict[str, Any]:
    """Time every variant on every case; medians in microseconds and medians of paired ratios."""
    peers = load_peers()
    # numpy has one thread; torch's others wait for each other on a shared machine.
    torch.set_num_threads(1)
    results = []
    for num_seqs, num_tokens in CASES:
        case = variants(num_seqs, num_tokens, peers)
        functions: dict[str, Callable[[], None]] = case["functions"]
        repeats: dict[str, int] = {}
        for name, function in functions.items():
            function()  # fills tables
            repeats[name] = max(1, int(seconds_per_timing / _seconds(function, 1)))
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(rounds):
            for name, function in functions.items():
                function()  # its neighbour left other data in the caches
                times[name].append(1e6 * _seconds(function, repeats[name]))
        ratios = {
            f"{over}/{under}": median(a / b for a, b in zip(times[over], times[under], strict=True))
            for over, under in (
                ("vllm", "sections"),
                ("fla", "sections"),
                ("sections", "copy"),
                ("vllm", "step"),
                ("fla", "step"),
                ("vllm", "compiled"),
                ("fla", "compiled"),
                ("compiled", "copy"),
                ("vllm", "compiled_sections"),
                ("vllm", "compiled_step"),
            )
            if over in times and under in times
        }
        results.append(
            {
                "num_seqs": num_seqs,
                "num_tokens": num_tokens,
                "bytes": case["bytes"],
                "microseconds": {name: median(values) for name, values in times.items()},
                "ratios": ratios,
                "budget_peers": BUDGETS.get(num_seqs, 60),
                "budget_copy": 3 if num_seqs >= 256 else None,
            }
        )
    return {"rounds": rounds, "torch": torch.__version__, "numpy": np.__version__, "cases": results}


def _seconds(function: Callable[[], None], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - begin) / repeats


def table(result: dict[str, Any]) -> str:
    """The result as text: microseconds, then ratios with their budgets."""
    lines = [
        f"{'N / tokens':>15} {'KB':>6} {'sections':>9} {'host':>7} {'step':>7} {'vLLM':>8}"
        f" {'FLA':>8} {'copy':>6}   {'vLLM x':>7} {'FLA x':>7} {'>=':>3} {'copies':>7} {'<=':>3}"
    ]
    for case in result["cases"]:
        times, ratios = case["microseconds"], case["ratios"]
        lines.append(
            f"{case['num_seqs']:>6} / {case['num_tokens']:>7}{case['bytes'] / 1e3:>6.0f}"
            f" {times['sections']:>9.1f} {times['host']:>7.1f} {times['step']:>7.1f}"
            f" {times['vllm']:>8.0f} {times['fla']:>8.0f} {times['copy']:>6.1f}"
            f"   {ratios['vllm/sections']:>7.1f} {ratios['fla/sections']:>7.1f}"
            f" {case['budget_peers']:>3} {ratios['sections/copy']:>7.1f}"
            f" {case['budget_copy'] or '-':>3}"
        )
        for name in ("compiled", "compiled_sections", "compiled_step"):
            if name in times:
                lines.append(f"{name:>23} {times[name]:>9.1f} us {ratios[f'vllm/{name}']:>8.1f} x")
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
