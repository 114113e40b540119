"""Ascend's tables are what their definitions say, in the host mode and in the device mode."""

from __future__ import annotations

import importlib.util
import random

import pytest
import torch
from gdn_dispatch_ascend.meta import build_chunk_meta, spec_for
from gdn_dispatch_ascend.metadata.device_tables import DeviceTablePool, available_mode
from gdn_dispatch_ascend.metadata.tables import cumsum_block_size
from torch._subclasses.fake_tensor import FakeTensorMode

from backends.ascend.tests import definitions
from gdn_dispatch import plan_batch
from gdn_dispatch.errors import BackendUnavailableError, InvalidArgumentError, MetadataError
from gdn_dispatch.meta import MetaSpec, build
from gdn_dispatch.testing.host_reads import record_host_reads
from gdn_dispatch.types import MetaRequest

CPU = torch.device("cpu")
TRITON = importlib.util.find_spec("triton") is not None
NUMBER = 10_000
NUMBER_INTERPRETED = 200
"""In Triton's interpreter, which takes much longer for a batch than tensor operations."""

modes = pytest.mark.parametrize(
    "mode",
    [
        "torch",
        pytest.param(
            "triton",
            marks=[
                pytest.mark.skipif(not TRITON, reason="Triton is not installed: make triton"),
                # the interpreter computes in numpy, which warns of what overflows behind a mask
                pytest.mark.filterwarnings("ignore"),
            ],
        ),
    ],
)


def host(lengths, num_v_heads=8):
    plan = plan_batch(definitions.running(lengths))
    return build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=num_v_heads))


def on_device(lengths, dtype=torch.int32):
    return torch.tensor(definitions.running(lengths), dtype=dtype)


# cu_seqlens, C; chunk_indices, chunk_offsets, update_chunk_offsets, final_chunk_indices
WORKED = [
    ([0, 4, 4, 12], 4, [[0, 0], [1, 0], [1, 1]], [0, 1, 1, 3], [0, 2, 3, 6], [1, 2, 5]),
    ([0, 128, 1024, 1024, 4096], 64, None, [0, 2, 16, 16, 64], [0, 3, 18, 19, 68], [2, 17, 18, 67]),
    ([0, 4, 7], 64, [[0, 0], [1, 0]], [0, 1, 2], [0, 2, 4], [1, 3]),
]


@pytest.mark.parametrize(("cu", "size", "indices", "offsets", "updates", "finals"), WORKED)
class TestWorkedExamples:
    def test_on_the_host(self, cu, size, indices, offsets, updates, finals):
        scaled = [start * 64 // size for start in cu]
        tables = host([b - a for a, b in definitions.token_pairs(scaled)]).tables
        self.check(tables, indices, offsets, updates, finals)

    def test_of_the_size_itself(self, cu, size, indices, offsets, updates, finals):
        meta = build(MetaRequest(plan_batch(cu), CPU), MetaSpec(size), backend="ascend")
        if indices is not None:
            assert meta.chunk_indices.tolist() == indices
        assert meta.chunk_offsets.tolist() == offsets
        assert meta.update_chunk_offsets.tolist() == updates
        assert meta.final_chunk_indices.tolist() == finals

    @modes
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_on_the_device(self, cu, size, indices, offsets, updates, finals, mode, dtype):
        scaled = torch.tensor([start * 64 // size for start in cu], dtype=dtype)
        pool = DeviceTablePool(
            max_seqs=4, max_tokens=4096, num_v_heads=8, device="cpu", mode=mode
        )  # fmt: skip
        tables = pool.fill(scaled)
        assert {tables.chunk_indices_chunk64.dtype, tables.chunk_offsets_chunk64.dtype} == {
            torch.int32
        }
        self.check(tables, indices, offsets, updates, finals)

    def check(self, tables, indices, offsets, updates, finals):
        if indices is not None:
            assert tables.chunk_indices_chunk64[: len(indices)].tolist() == indices
        assert tables.chunk_offsets_chunk64.tolist() == offsets
        assert tables.update_chunk_offsets_chunk64.tolist() == updates
        assert tables.final_chunk_indices_chunk64.tolist() == finals


def test_compact_numbers_are_looked_up_in_what_has_no_empty_sequences():
    """The row [1, 0] of [0, 4, 4, 12] is the third sequence, which ``cu_seqlens`` has at 2."""
    tables = host([4, 0, 8]).tables
    assert tables.chunk_indices_chunk64.tolist() == [[0, 0], [1, 0]]
    assert tables.cu_seqlens.tolist() == [0, 4, 4, 12]
    assert tables.cu_seqlens_kern.tolist() == [0, 4, 12]
    assert tables.keep_meta.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("heads", "size"),
    [
        (1, 4096), (2, 2048), (3, 2048), (4, 1024), (6, 1024), (8, 512), (12, 512), (16, 256),
        (24, 256), (32, 128), (48, 128), (64, 64), (96, 64), (128, 32),
    ],
)  # fmt: skip
def test_the_block_of_the_cumulative_sum(heads, size):
    assert cumsum_block_size(heads) == definitions.cumsum_block(heads) == size
    assert spec_for(heads).table_sizes == tuple(dict.fromkeys((64, 1216, size)))


@pytest.mark.parametrize("heads", [4096, 4097, 10_000])
def test_more_heads_than_the_working_set(heads):
    assert cumsum_block_size(heads) == definitions.cumsum_block(heads) == 1


def test_host_tables_of_random_batches():
    for lengths, heads in definitions.batches(NUMBER + 1):  # one has no sequence
        if lengths:
            definitions.check_tables(host(lengths, heads).tables, lengths, heads)


@modes
def test_device_tables_of_random_batches(mode):
    """Every batch into the pool the one before it has left full."""
    pools = {
        heads: DeviceTablePool(
            max_seqs=24, max_tokens=24 * 3000, num_v_heads=heads, device="cpu", mode=mode
        )
        for heads in definitions.HEADS
    }
    small = {
        heads: DeviceTablePool(
            max_seqs=24, max_tokens=4097, num_v_heads=heads, device="cpu", mode=mode
        )
        for heads in definitions.HEADS
    }
    rng = random.Random(1)
    number = NUMBER if mode == "torch" else NUMBER_INTERPRETED
    for lengths, heads in definitions.batches(number):
        pool = (small if sum(lengths) <= 4097 else pools)[heads]
        cu = on_device(lengths, rng.choice([torch.int32, torch.int64]))
        definitions.check_tables(pool.fill(cu), lengths, heads, padded=True)


def test_no_size_depends_on_a_value_and_nothing_is_read_back():
    """Fake tensors have no values: an operation that wanted one would raise."""
    with FakeTensorMode():
        pool = DeviceTablePool(
            max_seqs=9, max_tokens=900, num_v_heads=8, device="cpu", mode="torch"
        )  # fmt: skip
        for n in (0, 1, 9):
            tables = pool.fill(torch.empty(n + 1, dtype=torch.int64))
            assert tables.chunk_indices_chunk64.shape == (pool.capacity(64, n), 2)
    pool = DeviceTablePool(max_seqs=9, max_tokens=900, num_v_heads=8, device="cpu", mode="torch")
    with record_host_reads() as reads:
        pool.fill(on_device([5, 0, 700]))
    assert reads == []


@modes
def test_a_pool_keeps_its_tensors(mode):
    pool = DeviceTablePool(max_seqs=9, max_tokens=900, num_v_heads=8, device="cpu", mode=mode)
    first, second = pool.fill(on_device([5, 0, 700])), pool.fill(on_device([1, 2, 3]))
    for name in definitions.tables([], 8):
        if name != "cu_seqlens":
            assert getattr(first, name).data_ptr() == getattr(second, name).data_ptr()
    definitions.check_tables(second, [1, 2, 3], 8, padded=True)


@modes
def test_the_bound_is_tight(mode):
    """One token in all sequences but one, whose last chunk has one token."""
    lengths = [1, 1, 1 + 2 * 64]
    pool = DeviceTablePool(max_seqs=3, max_tokens=131, num_v_heads=8, device="cpu", mode=mode)
    tables = pool.fill(on_device(lengths))
    assert (tables.chunk_indices_chunk64 >= 0).all()
    definitions.check_tables(tables, lengths, 8, padded=True)


@modes
def test_more_sequences_than_a_block(mode):
    rng = random.Random(2)
    lengths = [rng.choice([0, 1, 3, 40]) for _ in range(2100)]
    lengths[1500] = 40_000
    pool = DeviceTablePool(
        max_seqs=2100, max_tokens=sum(lengths) + 77, num_v_heads=32, device="cpu", mode=mode
    )  # fmt: skip
    definitions.check_tables(pool.fill(on_device(lengths)), lengths, 32, padded=True)


def test_the_mode_is_triton_where_there_is_one():
    assert available_mode() == ("triton" if TRITON else "torch")
    pool = DeviceTablePool(max_seqs=1, max_tokens=1, num_v_heads=8, device="cpu")
    assert pool.mode == available_mode()


def test_a_missing_triton_is_told_where_it_was_asked_for(monkeypatch):
    monkeypatch.setattr("gdn_dispatch_ascend.metadata.device_tables._has_triton", lambda: False)
    with pytest.raises(BackendUnavailableError, match="mode='torch'"):
        DeviceTablePool(max_seqs=1, max_tokens=1, num_v_heads=8, device="cpu", mode="triton")
    assert available_mode() == "torch"


@pytest.mark.parametrize(
    ("cu", "complaint"),
    [
        ([0, 4], "list"),
        (torch.tensor([0.0, 4.0]), "float32"),
        (torch.tensor([0, 4], dtype=torch.int16), "int16"),
        (torch.zeros(2, 2, dtype=torch.int32), r"\[2, 2\]"),
        (torch.zeros(0, dtype=torch.int32), r"\[0\]"),
        (torch.arange(6, dtype=torch.int32)[::2], "stride 2"),
        (torch.zeros(6, dtype=torch.int32), "5 sequences"),
        (torch.zeros(3, dtype=torch.int32, device="meta"), "meta"),
    ],
)
def test_lengths_that_are_refused(cu, complaint):
    pool = DeviceTablePool(max_seqs=4, max_tokens=9, num_v_heads=8, device="cpu", mode="torch")
    with pytest.raises(InvalidArgumentError, match=complaint) as caught:
        pool.fill(cu)
    assert caught.value.argument == "cu_seqlens"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("max_seqs", {"max_seqs": -1}),
        ("max_tokens", {"max_tokens": 2**31}),
        ("num_v_heads", {"num_v_heads": 0}),
        ("mode", {"mode": "cann"}),
    ],
)
def test_pools_that_are_refused(field, change):
    wanted = {"max_seqs": 1, "max_tokens": 1, "num_v_heads": 8, "device": "cpu"}
    with pytest.raises(InvalidArgumentError) as caught:
        DeviceTablePool(**{**wanted, **change})
    assert caught.value.argument == field


class TestWhatIsMissing:
    def refused(self, field, meta, read):
        with pytest.raises(MetadataError) as caught:
            read(meta)
        assert caught.value.field == field
        assert str(caught.value).startswith(field)

    def test_heads(self):
        self.refused("block_indices_cumsum", host([4], None), lambda meta: meta.tables)

    def test_prefill_rows(self):
        plan = plan_batch([0, 1], state_indices=[3])
        meta = build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=8))
        self.refused("prefill", meta, lambda meta: meta.tables)
        self.refused("prefill", meta, lambda meta: meta.rule_host_arguments)
        self.refused("prefill", meta, lambda meta: meta.conv_host_arguments("prefill"))

    @pytest.mark.parametrize(
        ("sizes", "field"),
        [((512,), "chunk_indices_large_block"), ((1216,), "block_indices_cumsum")],
    )
    def test_tables(self, sizes, field):
        from gdn_dispatch_ascend.metadata.tables import named_tables

        meta = build(
            MetaRequest(plan_batch([0, 4]), CPU), MetaSpec(64, sizes), backend="somebody"
        )  # fmt: skip
        keep = torch.tensor([True])
        self.refused(field, meta, lambda meta: named_tables(meta, 8, keep))

    def test_heads_that_were_not_built_for(self):
        from gdn_dispatch_ascend.metadata.tables import named_tables

        meta = host([4], 8)
        keep = torch.tensor([True])
        self.refused("block_indices_cumsum", meta, lambda meta: named_tables(meta, 32, keep))
