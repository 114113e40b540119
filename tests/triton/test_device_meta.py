"""Chunk tables built on the device, held against the host's, element for element."""

import random

import numpy as np
import pytest
import torch

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.plan import chunks as host
from gdn_dispatch.triton_kernels.device_meta import device_chunk_tables
from tests.triton.step_inputs import DEVICE

SIZES, CONV = (16, 64, 7), 8


def check(tables, lengths, sizes=SIZES, conv=CONV):
    lens = np.array(lengths, np.int32)
    live = np.flatnonzero(lens).tolist()
    ends = [0, *np.cumsum(lens).tolist()]
    n = len(lengths)

    def padded(values, tensor, filler):
        got = tensor.tolist()
        assert got == [*values, *[filler] * (len(got) - len(values))]

    padded(live, tables.nonempty, -1)
    padded([0, *(ends[s + 1] for s in live)], tables.cu_seqlens_nonempty, ends[-1])
    assert tables.num_nonempty.tolist() == [len(live)]
    for size in sizes:
        table = tables.chunks[size]
        padded(host.chunk_indices(lens, size).tolist(), table.chunk_indices, [-1, -1])
        assert table.chunk_offsets.tolist() == host.chunk_offsets(lens, size).tolist()
        expected = host.update_chunk_offsets(lens, size).tolist()
        assert table.update_chunk_offsets.tolist() == expected
        expected = host.final_chunk_indices(lens, size).tolist()
        assert table.final_chunk_indices.tolist() == expected
        assert table.final_chunk_indices.shape == (n,)
    if conv:
        for got, expected in zip(
            (tables.conv_tile_sequences, tables.conv_tile_offsets),
            host.conv_tiles(lens, conv), strict=True,
        ):  # fmt: skip
            padded(expected.tolist(), got, -1)


def on_device(lengths, dtype=torch.int32):
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=dtype, device=DEVICE)


BATCHES, PARTS = 2000, 8
LONGEST_BATCH = 840
# (chunk sizes, conv tile): one table or two a batch, as launches of the interpreter take their time
TABLES = (((16,), 0), ((64,), 0), ((7,), 0), ((64,), 8), ((7,), 8), ((16, 64), 0))


def batches():
    """``BATCHES`` different batches: lengths, dtype of cu_seqlens, and the tables to make."""
    rng = random.Random(0)
    seen = set()
    while len(seen) < BATCHES:
        n = rng.choice([1, 2, 3, 5, 9, 12])
        most = rng.choice([1, 20, 70, LONGEST_BATCH // n])
        lengths = tuple(rng.choice([0, 1, rng.randint(0, most)]) for _ in range(n))
        dtype = rng.choice([torch.int32, torch.int64])
        sizes, conv = rng.choice(TABLES)
        if lengths not in seen and sum(lengths) <= LONGEST_BATCH:
            seen.add(lengths)
            yield list(lengths), dtype, sizes, conv


@pytest.mark.parametrize("part", range(PARTS))
def test_random_batches_into_reused_tables(part):
    reused = {}
    mine = list(batches())[part::PARTS]
    for lengths, dtype, sizes, conv in mine:
        key = len(lengths), sizes, conv
        tables = device_chunk_tables(
            on_device(lengths, dtype), max_tokens=LONGEST_BATCH, chunk_sizes=sizes,
            conv_block_size=conv, out=reused.get(key),
        )  # fmt: skip
        assert reused.setdefault(key, tables) is tables
        check(tables, lengths, sizes, conv)
    assert len(mine) == BATCHES // PARTS


def test_the_random_batches_are_of_all_kinds():
    every = list(batches())
    assert len({tuple(lengths) for lengths, *_ in every}) == BATCHES
    assert {dtype for _, dtype, *_ in every} == {torch.int32, torch.int64}
    assert {(sizes, conv) for *_, sizes, conv in every} == set(TABLES)
    assert any(not any(lengths) for lengths, *_ in every)
    assert any(0 in lengths[1:-1] and lengths[0] and lengths[-1] for lengths, *_ in every)
    assert max(max(lengths) for lengths, *_ in every) > 5 * 64


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [64], [0, 65, 0, 1, 0]])
def test_small(lengths):
    cu_seqlens = on_device(lengths)
    bound = sum(lengths)
    check(
        device_chunk_tables(
            cu_seqlens, max_tokens=bound, chunk_sizes=SIZES, conv_block_size=CONV
        ),
        lengths,
    )  # fmt: skip
    check(device_chunk_tables(cu_seqlens, max_tokens=bound, chunk_sizes=(64,)), lengths, (64,), 0)


def test_more_sequences_and_chunks_than_a_block():
    rng = random.Random(1)
    lengths = [rng.choice([0, 1, 3, 40]) for _ in range(1100)]
    lengths[500] = 5000
    tables = device_chunk_tables(
        on_device(lengths), max_tokens=sum(lengths) + 77, chunk_sizes=(64,), conv_block_size=32
    )
    check(tables, lengths, (64,), 32)


def test_the_bound_is_tight():
    """One token in all sequences but one, whose last chunk has one token."""
    lengths = [1, 1, 1 + 2 * 64]
    tables = device_chunk_tables(on_device(lengths), max_tokens=131, chunk_sizes=(64,))
    assert (tables.chunks[64].chunk_indices >= 0).all()
    check(tables, lengths, (64,), 0)


def test_tables_of_other_sizes():
    tables = device_chunk_tables(on_device([3, 4]), max_tokens=9, chunk_sizes=(16,))
    with pytest.raises(InvalidArgumentError, match="max_tokens"):
        device_chunk_tables(on_device([3, 4]), max_tokens=8, chunk_sizes=(16,), out=tables)
