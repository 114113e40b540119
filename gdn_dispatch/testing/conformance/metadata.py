"""The metadata of a backend: formulas at its block sizes, shared by layers, updated in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gdn_dispatch import build_chunk_meta, plan_batch
from gdn_dispatch.capability import Feature
from gdn_dispatch.errors import MetadataError
from gdn_dispatch.testing.conformance.base import Conformance, layer_test
from gdn_dispatch.testing.formulas import chunk_formulas
from gdn_dispatch.testing.layer_inputs import random_layer, random_tokens
from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.rule_inputs import starts_of


class MetadataTests(Conformance):
    """``build_chunk_meta`` and what it returns."""

    @pytest.mark.parametrize("seed", range(5))
    def test_tables_equal_the_formulas(self, subject, seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            n = int(rng.integers(0, 12))
            lengths = rng.integers(0, 4 * subject.info.chunk_size, n)
            lengths[rng.random(n) < 0.2] = 0
            lengths = tuple(lengths.tolist())
            meta = build_chunk_meta(plan_batch(starts_of(lengths)), subject.device)
            assert meta.backend == subject.name.partition("/")[0]
            assert meta.chunk_size == subject.info.chunk_size
            assert meta.cu_seqlens.tolist() == starts_of(lengths)
            assert meta.cu_seqlens_host == tuple(starts_of(lengths))
            nonempty = [s for s, length in enumerate(lengths) if length]
            assert meta.nonempty.tolist() == nonempty
            kept = [lengths[s] for s in nonempty]
            assert meta.cu_seqlens_nonempty.tolist() == starts_of(tuple(kept))
            assert {*subject.info.block_sizes, meta.chunk_size} <= set(meta.chunks)
            for size, table in meta.chunks.items():
                exact = chunk_formulas(lengths, size)
                assert table.chunk_indices.tolist() == exact.chunk_indices
                assert table.chunk_offsets.tolist() == exact.chunk_offsets
                assert table.update_chunk_offsets.tolist() == exact.update_chunk_offsets
                assert table.final_chunk_indices.tolist() == exact.final_chunk_indices
                assert table.num_chunks == len(exact.chunk_indices)

    def test_every_tensor_is_where_it_was_asked_for(self, subject):
        meta = build_chunk_meta(plan_batch([0, 40, 41], state_indices=[1, 0]), subject.device)
        for name in ("cu_seqlens", "nonempty", "cu_seqlens_nonempty", "state_indices"):
            assert getattr(meta, name).device.type == subject.device.type, name
            assert getattr(meta, name).dtype in (torch.int32, torch.int64), name

    def test_what_the_engine_has_on_the_device_is_used_as_it_is(self, subject):
        slots = torch.tensor([1, 0], device=subject.device)
        meta = build_chunk_meta(plan_batch([0, 40, 41]), subject.device, state_indices=slots)
        assert meta.state_indices is slots

    @layer_test()
    def test_one_metadata_serves_every_layer(self, subject):
        dims, lengths = subject.layer_dims(), (40, 1, 0, 33)
        tokens = random_tokens(sum(lengths), dims, dtype=subject.dtype)
        plan = {"state_indices": [2, 0, 1, 3], "has_initial_state": [False] * 4}
        shared = subject.meta(lengths, **plan)
        for seed in range(3):
            layer = random_layer(dims, dtype=subject.dtype, seed=seed)
            one, other = subject.pools(4, dims), subject.pools(4, dims)
            got = subject.layer(one, layer, tokens, shared)
            expected = subject.layer(other, layer, tokens, subject.meta(lengths, **plan))
            assert same_bits(got, expected)
            assert torch.equal(one.pages, other.pages)

    @layer_test(Feature.META_UPDATE)
    def test_metadata_updated_in_place_is_that_of_the_new_step(self, subject):
        dims = subject.layer_dims()
        layer = random_layer(dims, dtype=subject.dtype)
        steps = [
            ((50, 33, 1), [2, 0, 1]), ((33, 20, 1), [0, 1, 2]), ((2, 2, 1), [1, 3, 0]),
            ((40, 40, 1), [3, 2, 1]),
        ]  # fmt: skip
        no_state = {"has_initial_state": [False] * 3, "total_tokens": 84}
        meta = subject.meta(steps[0][0], state_indices=steps[0][1], **no_state)
        for number, (lengths, slots) in enumerate(steps):
            plan = plan_batch(starts_of(lengths), state_indices=slots, **no_state)
            if number:
                meta.update_(plan)
            tokens = random_tokens(84, dims, dtype=subject.dtype, rng=number)
            one, other = subject.pools(4, dims), subject.pools(4, dims)
            fresh = build_chunk_meta(plan, subject.device)
            got = subject.layer(one, layer, tokens, meta)
            expected = subject.layer(other, layer, tokens, fresh)
            assert same_bits(got, expected), f"step {number}"
            assert torch.equal(one.pages, other.pages), f"step {number}"

    @layer_test(Feature.META_UPDATE)
    def test_slots_of_the_engine_are_read_when_the_layer_runs(self, subject):
        dims = subject.layer_dims()
        layer = random_layer(dims, dtype=subject.dtype)
        tokens = random_tokens(1, dims, dtype=subject.dtype)
        slots = torch.tensor([0], device=subject.device)
        has_state = torch.tensor([False], device=subject.device)
        meta = subject.meta((1,), device={"state_indices": slots, "has_initial_state": has_state})
        pools = subject.pools(2, dims)
        for slot in (0, 1):
            slots[0] = slot
            subject.layer(pools, layer, tokens, meta)
        assert torch.equal(pools.pages[0], pools.pages[1])
        assert pools.state(1).isfinite().all()

    @layer_test()
    def test_metadata_of_another_backend_is_refused(self, subject):
        dims = subject.layer_dims()
        layer, tokens = random_layer(dims), random_tokens(3, dims, dtype=subject.dtype)
        meta = subject.meta((3,), state_indices=[0])
        meta.backend = "another"
        pools = subject.pools(1, dims)
        with pytest.raises(MetadataError, match="another"):
            subject.layer(pools, layer, tokens, meta)
