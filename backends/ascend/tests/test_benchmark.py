"""What the benchmark compares is the same on both sides, and right. Its times are in its JSON."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.ascend.tests import definitions

ROOT = Path(__file__).parents[3] / "benchmarks"
SIX = (
    "chunk_indices_chunk64",
    "chunk_offsets_chunk64",
    "update_chunk_offsets_chunk64",
    "final_chunk_indices_chunk64",
    "chunk_indices_large_block",
    "block_indices_cumsum",
)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("ascend_metadata", ROOT / "ascend_metadata.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_sides_are_what_the_definitions_say(benchmark):
    for lengths, _ in definitions.batches(300):
        if not lengths:
            continue
        starts = np.array(definitions.running(lengths), np.int32)
        tables, tuples = benchmark.step(starts)
        tensors, legacy_tuples = benchmark.legacy(torch.from_numpy(starts))
        assert tuples == legacy_tuples
        expected = definitions.tables(lengths, benchmark.NUM_V_HEADS)
        assert tuple(tensors) == SIX
        for name in SIX:
            assert getattr(tables, name).tolist() == tensors[name].tolist() == expected[name], name


def test_everything_that_is_timed_runs(benchmark):
    for function in benchmark.variants(16, 2_000).values():
        function()


def test_the_cases_have_empty_sequences_too(benchmark):
    for num_seqs, num_tokens in benchmark.CASES[2:]:
        starts = benchmark.ragged_starts(num_seqs, num_tokens)
        assert (len(starts), starts[-1]) == (num_seqs + 1, num_tokens)
        assert (np.diff(starts) == 0).any()


def test_the_committed_numbers_keep_their_budget(benchmark):
    """Of the run that is committed; a run here would time this machine and its neighbours."""
    report = json.loads((ROOT / "results" / "ascend_metadata.json").read_text(encoding="utf-8"))
    sizes = [(case["num_seqs"], case["num_tokens"]) for case in report["cases"]]
    assert sizes == list(benchmark.CASES)
    for case in report["cases"]:
        assert case["budget"] == benchmark.BUDGET.get(case["num_seqs"])
        if case["budget"]:
            assert case["ratios"]["prepare/build"] >= case["budget"]
