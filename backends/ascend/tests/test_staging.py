"""10,000 steps through the pinned buffers of a device that copies late and out of step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from gdn_dispatch_ascend.meta import build_chunk_meta

from backends.ascend.tests import definitions
from backends.ascend.tests.streams import (
    NOT_COPIED,
    LateDevice,
    PromptDevice,
    UnguardedDevice,
)
from gdn_dispatch import plan_batch
from gdn_dispatch.staging import PinnedArena
from gdn_dispatch.testing.host_reads import record_host_reads
from gdn_dispatch.types import MetaRequest

CPU = torch.device("cpu")
STEPS = 10_000
MOST_BUFFERS = 8
NAMES = [name for name in definitions.tables([], 8) if name != "keep_meta"]


class TwoSlots(PinnedArena):
    """Two buffers in turn and no event: what vllm-ascend's first pool did (#7487)."""

    def __init__(self, engine):
        super().__init__(engine)
        self._turn = 0

    def _take(self, engine, num_words):
        if len(self._buffers) < 2:
            return super()._take(engine, 1 << 14)
        self._buffers[0].event = None
        return self._buffers.pop(0)


def step(rng):
    return definitions.random_lengths(rng), rng.choice(definitions.HEADS)


def run_steps(device, arena, steps):
    """Steps of a host that never waits; numbers of those whose metadata came out wrong."""
    rng = random.Random(3)
    waiting, wrong = [], []

    def judge(number, meta, lengths, heads):
        expected = definitions.tables(lengths, heads)
        if any(getattr(meta.tables, name).tolist() != expected[name] for name in NAMES):
            wrong.append(number)

    for number in range(steps):
        lengths, heads = step(rng)
        plan = plan_batch(definitions.running(lengths))
        meta = build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=heads), arena=arena)
        copy = device.pending[-1]
        waiting.append((copy, (number, meta, lengths, heads)))
        device.run_some()
        for found in [found for found in waiting if found[0] not in device.pending]:
            waiting.remove(found)
            judge(*found[1])
    device.run_all()
    for _, what in waiting:
        judge(*what)
    return wrong


def test_no_buffer_is_overwritten_and_no_buffer_is_hoarded():
    device = LateDevice()
    arena = PinnedArena(device, max_buffers=MOST_BUFFERS)
    assert run_steps(device, arena, STEPS) == []
    assert device.copies == STEPS
    assert device.most_in_flight > 3
    assert arena.num_buffers <= MOST_BUFFERS
    # a buffer too small is replaced, from 4096 words on by one of twice the words or more
    assert device.host_allocations <= 3 * MOST_BUFFERS


@pytest.mark.parametrize(
    ("device", "arena"),
    [(UnguardedDevice(), PinnedArena), (LateDevice(), TwoSlots)],
    ids=["events that lie", "two slots and no event"],
)
def test_without_the_guard_the_same_steps_go_wrong(device, arena):
    """The test above would fail: metadata of one step arrives as that of another."""
    assert run_steps(device, arena(device), 300)


def test_the_host_waits_only_where_every_buffer_is_in_flight():
    device = LateDevice()
    arena = PinnedArena(device, max_buffers=3)
    for value in range(3):
        arena.upload(10, lambda host, value=value: host.fill(value))
    assert device.waits == 0
    arena.upload(10, lambda host: host.fill(3))
    assert device.waits == 1


class TestOneCopy:
    """Of a step, whatever is in it: vllm-ascend made six, from memory that is not pinned."""

    STARTS = (0, 100, 101, 101, 104, 400)

    def plan(self):
        return plan_batch(
            self.STARTS,
            state_indices=[[3, -1, -1], [5, -1, -1], [11, -1, -1], [7, 8, 9], [10, -1, -1]],
            has_initial_state=[False, True, True, True, True],
            speculative=[False, False, False, True, False],
            num_accepted_tokens=[1, 1, 1, 2, 1],
        )

    def build(self, device):
        request = MetaRequest(self.plan(), CPU, num_v_heads=8)
        return build_chunk_meta(request, arena=PinnedArena(device))

    def test_of_a_step_with_all_kinds_of_rows(self):
        device = PromptDevice()
        meta = self.build(device)
        assert device.copies == 1
        definitions.check_tables(meta.tables, [100, 0, 296], 8)

    def test_and_of_an_update(self):
        device = PromptDevice()
        meta = self.build(device)
        meta.update_(self.plan())
        assert device.copies == 2

    def test_bytes_are_those_of_what_is_in_it_and_gaps_of_less_than_a_line(self):
        device = PromptDevice()
        meta = self.build(device)
        sections = meta._layout.sections.values()
        words = sum(section.words for section in sections)
        assert words <= device.words < words + 16 * len(sections)
        tables = sum(
            np.prod(table.shape, dtype=int)
            for table in (
                meta.tables.chunk_indices_chunk64, meta.tables.chunk_offsets_chunk64,
                meta.tables.update_chunk_offsets_chunk64, meta.tables.final_chunk_indices_chunk64,
                meta.tables.chunk_indices_large_block, meta.tables.block_indices_cumsum,
            )
        )  # fmt: skip
        assert tables < words

    def test_every_table_is_a_view_of_what_was_copied(self):
        meta = self.build(PromptDevice())
        flat = meta._flat.untyped_storage().data_ptr()
        for name in NAMES:
            assert getattr(meta.tables, name).untyped_storage().data_ptr() == flat, name

    def test_nothing_is_read_on_the_host(self):
        with record_host_reads() as reads:
            meta = self.build(PromptDevice())
            assert meta.tables.num_v_heads == 8
            assert meta.rule_host_arguments.keep == (True, False, True)
            assert meta.conv_host_arguments("speculative").num_accepted_tokens == (2,)
        # the pinned buffer as the core fills it, and the number of a handle: both are on the host
        where = {read.rpartition(" at ")[2].partition(":")[0] for read in reads}
        assert where <= {"staging.py", "handles.py"}

    def test_what_is_not_copied_yet_is_told_from_what_is(self):
        device = LateDevice()
        meta = self.build(device)
        assert set(meta.cu_seqlens.tolist()) == {NOT_COPIED}
        device.run_all()
        assert tuple(meta.cu_seqlens.tolist()) == self.STARTS
