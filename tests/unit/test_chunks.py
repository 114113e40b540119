import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdn_dispatch.plan.chunks import (
    ChunkTables,
    ConvTiles,
    chunk_indices,
    chunk_offsets,
    conv_tiles,
    final_chunk_indices,
    first_numbers,
    update_chunk_offsets,
)


def naive(lens, block_size):
    """The formulas of ``gdn_dispatch.plan.chunks``, as loops."""
    found = {"indices": [], "offsets": [0], "updates": [0], "finals": [], "tiles": []}
    q = 0
    for s, length in enumerate(lens):
        n = -(-length // block_size)
        for i in range(n):
            found["indices"] += [q, i]
            found["tiles"].append((s, i))
        q += n > 0
        found["offsets"].append(found["offsets"][-1] + n)
        found["updates"].append(found["updates"][-1] + n + 1)
        found["finals"].append(found["updates"][-1] - 1)
    return found


@pytest.mark.parametrize(
    ("cu_seqlens", "block_size", "indices", "offsets", "updates", "finals"),
    [
        ([0, 4, 4, 12], 4, [[0, 0], [1, 0], [1, 1]], [0, 1, 1, 3], [0, 2, 3, 6], [1, 2, 5]),
        ([0, 4, 7], 4, [[0, 0], [1, 0]], [0, 1, 2], [0, 2, 4], [1, 3]),
        ([0, 128, 1024, 1024, 4096], 64, None, [0, 2, 16, 16, 64], [0, 3, 18, 19, 68],
         [2, 17, 18, 67]),
    ],
)  # fmt: skip
def test_worked_values(cu_seqlens, block_size, indices, offsets, updates, finals):
    lens = np.diff(cu_seqlens).astype(np.int32)
    if indices is not None:
        assert chunk_indices(lens, block_size).tolist() == indices
    assert chunk_offsets(lens, block_size).tolist() == offsets
    assert update_chunk_offsets(lens, block_size).tolist() == updates
    assert final_chunk_indices(lens, block_size).tolist() == finals


def test_ten_thousand_random_batches_equal_the_formulas():
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        n = int(rng.integers(1, 10))
        lens = rng.integers(0, 40, n, dtype=np.int32)
        lens[rng.random(n) < 0.2] = 0
        sizes = tuple(int(size) for size in rng.choice([1, 2, 3, 4, 7, 8, 16, 64], 2, False))
        tables = ChunkTables(lens, sizes)
        starts = [0, tables.num_chunks[0] + int(rng.integers(0, 3))]
        flat = np.full(2 * (starts[1] + tables.num_chunks[1]), -7, np.int32)
        tables.write_indices(flat, starts)
        offsets, updates = np.empty((2, 2, n + 1), np.int32)
        finals = np.empty((2, n), np.int32)
        tables.write_offsets(offsets)
        tables.write_update_offsets(updates)
        tables.write_final_indices(finals)
        for row, size in enumerate(sizes):
            expected = naive(lens.tolist(), size)
            count = tables.num_chunks[row]
            written = flat[2 * starts[row] : 2 * (starts[row] + count)]
            assert written.tolist() == expected["indices"]
            assert offsets[row].tolist() == expected["offsets"]
            assert updates[row].tolist() == expected["updates"]
            assert finals[row].tolist() == expected["finals"]
        assert (
            list(zip(*map(np.ndarray.tolist, conv_tiles(lens, sizes[0])), strict=True))
            == (naive(lens.tolist(), sizes[0])["tiles"])
        )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=40), st.integers(1, 2000))
def test_one_block_size_equals_the_formulas(lengths, block_size):
    lens = np.array(lengths, np.int32)
    expected = naive(lengths, block_size)
    assert chunk_indices(lens, block_size).reshape(-1).tolist() == expected["indices"]
    assert chunk_offsets(lens, block_size).tolist() == expected["offsets"]
    assert update_chunk_offsets(lens, block_size).tolist() == expected["updates"]
    assert final_chunk_indices(lens, block_size).tolist() == expected["finals"]


@pytest.mark.parametrize("function", [chunk_offsets, update_chunk_offsets, final_chunk_indices])
def test_results_can_go_into_a_slice(function):
    lens = np.array([5, 0, 9, 64, 3, 1], np.int32)
    expected = function(lens, 4)
    flat = np.full(32, -7, np.int32)
    written = function(lens, 4, out=flat[8 : 8 + expected.size])
    assert np.shares_memory(written, flat)
    assert flat[8 : 8 + expected.size].tolist() == expected.tolist()
    assert set(flat[:8]) == set(flat[8 + expected.size :]) == {-7}


def test_chunk_indices_can_go_into_a_slice():
    lens = np.array([5, 0, 9, 64, 3, 1], np.int32)
    expected = chunk_indices(lens, 4)
    flat = np.full(2 * len(expected) + 16, -7, np.int32)
    chunk_indices(lens, 4, out=flat[8:-8].reshape(-1, 2))
    assert flat[8:-8].reshape(-1, 2).tolist() == expected.tolist()
    assert set(flat[:8]) == set(flat[-8:]) == {-7}


def test_lengths_near_the_end_of_int32_do_not_wrap():
    lens = np.array([2**31 - 1, 0], np.int32)
    assert chunk_offsets(lens, 2**30).tolist() == [0, 2, 2]
    assert chunk_offsets(lens[:1], 2**30).tolist() == [0, 2]


@pytest.mark.parametrize("length", [8 * ((1 << 16) - 1), 8 * (1 << 16), 8 * (1 << 16) + 1])
def test_conv_tiles_past_sixteen_bits(length):
    lens = np.array([3, length, 0, 9, 1], np.int32)
    sequences, tiles = conv_tiles(lens, 8)
    counts = [1, -(-length // 8), 0, 2, 1]
    assert sequences.tolist() == np.repeat(np.arange(5), counts).tolist()
    assert tiles.tolist() == [i for n in counts for i in range(n)]


def test_conv_tiles_of_more_sequences_than_sixteen_bits():
    lens = np.ones((1 << 16) + 1, np.int32)
    sequences, tiles = conv_tiles(lens, 8)
    assert (sequences == np.arange(lens.size)).all()
    assert not tiles.any()


def test_tables_of_nothing():
    none = np.empty(0, np.int32)
    assert chunk_indices(none, 64).shape == (0, 2)
    assert chunk_offsets(none, 64).tolist() == [0]
    assert final_chunk_indices(none, 64).size == 0
    assert ConvTiles(none, 8).num_tiles == 0
    assert ChunkTables(np.zeros(3, np.int32), (64,)).nonempty.size == 0


def test_number_tables_grow_and_are_read_only():
    numbers = first_numbers(1 << 19)
    assert numbers[-1] == (1 << 19) - 1
    assert not numbers.flags.writeable
