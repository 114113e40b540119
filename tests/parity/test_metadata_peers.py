"""Our metadata equals that of vLLM 0.33 and FLA 0.6, element for element."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from gdn_dispatch.meta import MetaSpec, build
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.types import MetaRequest

CPU = torch.device("cpu")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "metadata.py"


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("gdn_dispatch_metadata_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    try:
        return benchmark.load_peers()
    except benchmark.PeersMissingError as missing:
        pytest.skip(str(missing))


def batches():
    rng = np.random.default_rng(7)
    fixed = [[0, 4, 4, 12], [0, 4, 7], [0, 128, 1024, 1024, 4096], [0, 33_000], [0, 0, 1], [0, 1]]
    yield from (np.array(starts, np.int32) for starts in fixed)
    for _ in range(150):
        lens = rng.integers(0, 3000, rng.integers(1, 40))
        lens[rng.random(lens.size) < 0.2] = 0
        if lens.any():
            yield np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)


def meta_of(starts):
    plan = plan_batch(starts)
    return build(MetaRequest(plan, CPU), MetaSpec(64, (128, 1216, 4), 8), backend="parity")


def test_chunk_indices_are_vllms(peers):
    for starts in batches():
        meta = meta_of(starts)
        for size, table in meta.chunks.items():
            expected = peers.vllm_indices(torch.from_numpy(starts), size)
            assert table.chunk_indices.dtype == expected.dtype
            assert torch.equal(table.chunk_indices, expected)


def test_chunk_indices_are_flas_where_compact_numbers_are_looked_up(peers):
    # FLA counts empty sequences too: its kernels index cu_seqlens itself.
    for starts in batches():
        meta = meta_of(starts)
        for size, table in meta.chunks.items():
            expected = peers.fla_indices(torch.from_numpy(starts), size)
            assert torch.equal(meta.nonempty[table.chunk_indices[:, 0].long()], expected[:, 0])
            assert torch.equal(table.chunk_indices[:, 1], expected[:, 1])


def test_chunk_offsets_are_both_peers(peers):
    for starts in batches():
        meta = meta_of(starts)
        for size, table in meta.chunks.items():
            offsets = table.chunk_offsets.long()
            assert torch.equal(offsets, peers.vllm_offsets(torch.from_numpy(starts), size).long())
            assert torch.equal(offsets, peers.fla_offsets(torch.from_numpy(starts), size).long())


def test_conv_tiles_are_vllms(peers):
    # vLLM pads both arrays with -1 to a length of its own.
    for starts in batches():
        meta = meta_of(starts)
        nums, sequences, tiles = peers.vllm_conv(torch.from_numpy(starts), device=CPU)
        n = nums[8]["tot"]
        assert meta.num_conv_tiles == n
        assert torch.equal(meta.conv_tile_sequences, sequences[:n])
        assert torch.equal(meta.conv_tile_offsets, tiles[:n])
        assert (sequences[n:] == -1).all()
