"""The compiled chunk tables are the core's numpy ones, element for element, and are used."""

import numpy as np
import pytest
import torch
from gdn_dispatch_cpu.kernels.tables import CompiledTables
from hypothesis import given, settings
from hypothesis import strategies as st

from gdn_dispatch import build_chunk_meta, plan_batch
from gdn_dispatch.meta import MetaSpec, build
from gdn_dispatch.plan.layout import Contents, NumpyTables, TablesRequest, fill, measure
from gdn_dispatch.types import MetaRequest

SIZES = st.lists(st.integers(1, 2000), min_size=1, max_size=4, unique=True).map(tuple)
LENS = st.lists(st.integers(0, 5000) | st.just(0), min_size=1, max_size=40)
NEVER = -7  # no table holds it


def written(maker, request, room):
    """Every section by name, and the buffer, larger than it need be."""
    tables = maker(request)
    what = Contents({}, tables, {})
    layout = measure(what)
    flat = np.full(layout.num_words + room, NEVER, np.int32)
    fill(layout, what, flat)
    sections = {name: section.of(flat).tolist() for name, section in layout.sections.items()}
    return tables, sections, flat


@settings(max_examples=300, deadline=None)
@given(LENS, SIZES, st.integers(0, 64))
def test_they_equal_numpys_on_any_batch(lengths, sizes, tile):
    request = TablesRequest(np.array(lengths, np.int32), sizes, tile)
    ours, got, flat = written(CompiledTables, request, 32)
    numpys, expected, _ = written(NumpyTables, request, 32)
    assert got == expected
    assert (ours.num_chunks, ours.num_tiles) == (numpys.num_chunks, numpys.num_tiles)
    assert (ours.nonempty is None) == (numpys.nonempty is None)
    if ours.nonempty is not None:
        assert ours.nonempty.dtype == np.int32
        assert ours.nonempty.tolist() == numpys.nonempty.tolist()
    assert set(flat[-32:]) == {NEVER}


def test_lengths_near_the_end_of_int32_do_not_wrap():
    request = TablesRequest(np.array([2**31 - 1, 0, 5], np.int32), (2**30,), 0)
    assert written(CompiledTables, request, 0)[1] == written(NumpyTables, request, 0)[1]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.booleans()), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 700), st.booleans()), min_size=1, max_size=12),
)
def test_a_whole_step_is_the_same_and_so_is_the_next_in_its_place(first, second):
    """With rows of slots, some of them padding: built for the longer step, then updated."""
    small, big = sorted((first, second), key=lambda rows: (len(rows), sum(n for n, _ in rows)))
    spec = MetaSpec(64, (128, 1216), 8)
    made = []
    for maker in (CompiledTables, NumpyTables):
        plan = planned(big)
        request = MetaRequest(plan, torch.device("cpu"), tables_maker=maker)
        meta = build(request, spec, backend="test")
        made.append((meta, shown(meta)))
    assert made[0][1] == made[1][1]
    results = []
    for meta, _ in made:
        try:
            meta.update_(planned(small))
            results.append(shown(meta))
        except Exception as error:  # noqa: BLE001 - a step that does not fit does not, either way
            results.append(str(error))
    assert results[0] == results[1]


def planned(rows):
    slots = [-1 if padding else n for n, (_, padding) in enumerate(rows)]
    return plan_batch([0, *np.cumsum([n for n, _ in rows])], state_indices=slots)


def shown(meta):
    tables = [
        [getattr(table, name).tolist() for name in
         ("chunk_indices", "chunk_offsets", "update_chunk_offsets", "final_chunk_indices")]
        for table in meta.chunks.values()
    ]  # fmt: skip
    tiles = [x.tolist() for x in (meta.conv_tile_sequences, meta.conv_tile_offsets)]
    counts = [table.num_chunks for table in meta.chunks.values()], meta.num_conv_tiles
    return tables, tiles, meta.nonempty.tolist(), meta.cu_seqlens_nonempty.tolist(), counts


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_the_core_uses_them_for_metadata_of_any_backend(backend):
    meta = build_chunk_meta(plan_batch([0, 70, 70, 134]), "cpu", backend=backend)
    tables = meta._tables_maker(TablesRequest(np.ones(1, np.int32), (64,), 0))
    assert isinstance(tables, CompiledTables)
    assert meta.chunks[meta.chunk_size].chunk_offsets.tolist()[-1] == meta.num_chunks
