import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdn_dispatch.errors import InvalidArgumentError, InvalidPlanError, MetadataError
from gdn_dispatch.meta import ChunkMeta, MetaSpec, build
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.plan.chunks import chunk_indices, conv_tiles
from gdn_dispatch.staging import PinnedArena
from gdn_dispatch.types import MetaRequest

CPU = torch.device("cpu")
SPEC = MetaSpec(4, (8, 4), conv_block_size=2)
MIXED = {
    # a decode, a prefill, a draft, a padding row without tokens, a prefill
    "query_start_loc": [0, 1, 10, 12, 12, 18],
    "state_indices": [[1, 0], [2, 0], [3, 4], [-1, 0], [5, 0]],
    "has_initial_state": [True, False, True, False, True],
    "speculative": [False, False, True, False, False],
    "num_accepted_tokens": [1, 1, 2, 1, 1],
}


def meta_of(plan, spec=SPEC, **more):
    return build(MetaRequest(plan, CPU, **more), spec, backend="test")


def tensors_of(meta):
    found = {
        name: getattr(meta, name)
        for name in ("cu_seqlens", "nonempty", "cu_seqlens_nonempty", "conv_tile_sequences",
                     "conv_tile_offsets", "state_indices", "initial_state_indices",
                     "has_initial_state", "num_accepted_tokens", "checkpoint_sequences",
                     "checkpoint_offsets", "checkpoint_slots")
    }  # fmt: skip
    for size, table in meta.chunks.items():
        for name in ("chunk_indices", "chunk_offsets", "update_chunk_offsets",
                     "final_chunk_indices"):  # fmt: skip
            found[f"{name}/{size}"] = getattr(table, name)
    for kind in ("prefill", "decode", "speculative"):
        group = getattr(meta, kind)
        for name in ("sequences", "seq_starts", "cu_seqlens", "token_indices"):
            found[f"{name}/{kind}"] = None if group is None else getattr(group, name)
    return {name: tensor for name, tensor in found.items() if tensor is not None}


class TestRecurrenceOnly:
    def test_every_row_is_in_the_prefill_group(self):
        meta = meta_of(plan_batch([0, 4, 4, 12]))
        assert not meta.serving
        assert meta.decode is meta.speculative is meta.state_indices is None
        assert meta.prefill.sequences.tolist() == [0, 1, 2]
        assert meta.prefill.token_start == 0

    def test_worked_values(self):
        meta = meta_of(plan_batch([0, 4, 4, 12]))
        assert meta.cu_seqlens.tolist() == [0, 4, 4, 12]
        assert meta.chunk_indices.tolist() == [[0, 0], [1, 0], [1, 1]]
        assert meta.chunk_offsets.tolist() == [0, 1, 1, 3]
        assert meta.update_chunk_offsets.tolist() == [0, 2, 3, 6]
        assert meta.final_chunk_indices.tolist() == [1, 2, 5]
        assert meta.nonempty.tolist() == [0, 2]
        assert meta.cu_seqlens_nonempty.tolist() == [0, 4, 12]
        assert meta.conv_tile_sequences.tolist() == [0, 0, 2, 2, 2, 2]
        assert meta.conv_tile_offsets.tolist() == [0, 1, 0, 1, 2, 3]
        assert (meta.num_chunks, meta.num_conv_tiles) == (3, 6)
        assert list(meta.chunks) == [4, 8]
        assert meta.chunks[8].chunk_indices.tolist() == [[0, 0], [1, 0]]

    def test_host_values_are_python_ints(self):
        meta = meta_of(plan_batch([0, 4, 4, 12]))
        assert meta.cu_seqlens_host == (0, 4, 4, 12)
        assert meta.chunk_indices_host == (0, 0, 1, 0, 1, 1)
        assert all(type(value) is int for value in meta.chunk_indices_host)

    def test_no_conv_tiles_unless_asked_for(self):
        meta = meta_of(plan_batch([0, 4]), MetaSpec(4))
        assert meta.conv_tile_sequences is meta.conv_tile_offsets is None
        assert meta.num_conv_tiles == 0

    def test_an_empty_step(self):
        meta = meta_of(plan_batch([0]))
        assert meta.cu_seqlens.tolist() == meta.chunk_offsets.tolist() == [0]
        assert meta.chunk_indices.shape == (0, 2)
        assert meta.final_chunk_indices.numel() == meta.conv_tile_offsets.numel() == 0
        assert meta.chunk_indices_host == ()
        assert "no rows" in repr(meta)


class TestServing:
    def test_rows_go_to_their_groups(self):
        meta = meta_of(plan_batch(**MIXED))
        assert meta.serving
        assert meta.prefill.sequences.tolist() == [1, 3, 4]
        assert meta.prefill.cu_seqlens.tolist() == [0, 9, 9, 15]
        assert meta.prefill.seq_starts.tolist() == [1, 12, 12]
        assert meta.prefill.token_indices.tolist() == [*range(1, 10), *range(12, 18)]
        assert meta.decode.sequences.tolist() == [0]
        assert meta.speculative.sequences.tolist() == [2]
        assert (meta.speculative.token_start, meta.speculative.token_indices) == (10, None)
        assert "prefill=3, decode=1, speculative=1" in repr(meta)

    def test_chunks_are_those_of_the_prefill_group(self):
        meta = meta_of(plan_batch(**MIXED))
        assert meta.nonempty.tolist() == [0, 2]
        assert meta.cu_seqlens_nonempty.tolist() == [0, 9, 15]
        assert meta.chunk_indices.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
        assert meta.chunk_indices_host == (0, 0, 0, 1, 0, 2, 1, 0, 1, 1)

    def test_host_fields_arrive(self):
        meta = meta_of(plan_batch(**MIXED, initial_state_indices=MIXED["state_indices"]))
        assert meta.state_indices.tolist() == MIXED["state_indices"]
        assert meta.initial_state_indices.tolist() == MIXED["state_indices"]
        assert meta.has_initial_state.dtype == torch.bool
        assert meta.has_initial_state.tolist() == MIXED["has_initial_state"]
        assert meta.num_accepted_tokens.tolist() == MIXED["num_accepted_tokens"]

    def test_a_decode_step_has_empty_chunk_tables(self):
        meta = meta_of(plan_batch([0, 1, 2], state_indices=[3, 4]))
        assert meta.prefill is None
        assert meta.chunk_indices.shape == (0, 2)
        assert meta.update_chunk_offsets.tolist() == meta.cu_seqlens_nonempty.tolist() == [0]
        assert meta.num_chunks == meta.num_conv_tiles == 0

    def test_checkpoints_arrive(self):
        plan = plan_batch(
            [0, 9, 10], state_indices=[1, 2], checkpoint_offsets=[[4, 8], []],
            checkpoint_indices=[[7, 8], []],
        )  # fmt: skip
        meta = meta_of(plan)
        assert meta.checkpoint_sequences.tolist() == [0, 0]
        assert meta.checkpoint_offsets.tolist() == [4, 8]
        assert meta.checkpoint_slots.tolist() == [7, 8]
        with pytest.raises(InvalidPlanError, match="multiples of 8, the backend's chunk size"):
            meta_of(plan, MetaSpec(8))

    def test_device_tensors_are_used_as_they_are(self):
        given = {
            "state_indices": torch.tensor(MIXED["state_indices"]),
            "initial_state_indices": torch.tensor(MIXED["state_indices"]),
            "has_initial_state": torch.tensor(MIXED["has_initial_state"]),
            "num_accepted_tokens": torch.tensor(MIXED["num_accepted_tokens"]),
        }
        plan = plan_batch(MIXED["query_start_loc"], speculative=MIXED["speculative"])
        meta = meta_of(plan, **given)
        assert meta.serving
        for name, tensor in given.items():
            assert getattr(meta, name) is tensor
        meta.update_(plan)
        for name, tensor in given.items():
            assert getattr(meta, name) is tensor


class TestMemory:
    def test_all_tensors_are_aligned_views_of_one_buffer(self):
        plan = plan_batch(**MIXED, initial_state_indices=MIXED["state_indices"])
        tensors = tensors_of(meta_of(plan))
        storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
        assert len(storages) == 1
        for name, tensor in tensors.items():
            assert tensor.is_contiguous(), name
            if tensor.numel():
                assert tensor.data_ptr() % 64 == 0, name
            assert tensor.dtype == (torch.bool if name == "has_initial_state" else torch.int32)

    def test_one_copy_moves_everything(self):
        class Engine:
            copies = 0

            def allocate_host(self, num_words):
                return torch.empty(num_words, dtype=torch.int32)

            allocate_device = allocate_host

            def copy(self, target, source):
                self.copies += 1
                target.copy_(source)
                return self

            def query(self):
                return True

        engine = Engine()
        request = MetaRequest(plan_batch(**MIXED), CPU)
        meta = build(request, SPEC, backend="test", arena=PinnedArena(engine))
        assert engine.copies == 1
        expected = tensors_of(meta_of(plan_batch(**MIXED)))
        for name, tensor in tensors_of(meta).items():
            assert torch.equal(tensor, expected[name]), name
        meta.update_(plan_batch(**MIXED))
        assert engine.copies == 2

    def test_backends_may_subclass(self):
        class Mine(ChunkMeta):
            pass

        meta = build(MetaRequest(plan_batch([0, 3]), CPU), SPEC, backend="mine", cls=Mine)
        assert type(meta) is Mine
        assert meta.backend == "mine"


class TestRefusals:
    def refusal(self, plan, match, **given):
        with pytest.raises(InvalidPlanError, match=match):
            meta_of(plan, **given)

    @pytest.mark.parametrize("name", ["state_indices", "has_initial_state", "num_accepted_tokens"])
    def test_a_field_given_twice(self, name):
        value = {"has_initial_state": [True]}.get(name, [1])
        plan = plan_batch([0, 1], **{"state_indices": [1], name: value})
        self.refusal(plan, f"^{name}: got values in the plan and", **{name: torch.tensor(value)})

    def test_a_device_tensor_of_other_rows(self):
        slots = torch.zeros(3, dtype=torch.int32)
        self.refusal(plan_batch([0, 1]), "1 rows, one per sequence", state_indices=slots)
        self.refusal(plan_batch([0, 1]), "1 rows", state_indices=torch.tensor(3))

    def test_read_slots_of_another_shape(self):
        plan = plan_batch([0, 1], initial_state_indices=[1])
        self.refusal(plan, "^initial_state_indices", state_indices=torch.tensor([[1, 2]]))

    @pytest.mark.parametrize(
        "fields",
        [
            {"has_initial_state": [True]},
            {"initial_state_indices": [1]},
            {"num_accepted_tokens": [1]},
            {"speculative": [True], "num_accepted_tokens": [1]},
            {"checkpoint_offsets": [[4]], "checkpoint_indices": [[1]]},
        ],
    )
    def test_fields_without_slots(self, fields):
        self.refusal(plan_batch([0, 4], **fields), "^state_indices: got None with")

    def test_speculative_rows_that_lack_something(self):
        plan = plan_batch([0, 2], speculative=[True])
        ones = torch.ones(1, dtype=torch.int32)
        self.refusal(plan, "^num_accepted_tokens", state_indices=torch.tensor([[1, 2]]))
        self.refusal(plan, "one slot per draft", state_indices=ones, num_accepted_tokens=ones)
        self.refusal(plan, "at most S = 1", state_indices=ones[None], num_accepted_tokens=ones)
        plan = plan_batch([0, 2], speculative=[True], num_accepted_tokens=[3])
        self.refusal(plan, "^num_accepted_tokens: got 3", state_indices=torch.tensor([[1, 2]]))

    @pytest.mark.parametrize("sizes", [(0,), (64, (0,)), (64, (), -1)])
    def test_block_sizes(self, sizes):
        with pytest.raises(InvalidArgumentError):
            MetaSpec(*sizes)


def filled(meta):
    return {name: (tensor.data_ptr(), tensor.shape) for name, tensor in tensors_of(meta).items()}


class TestUpdate:
    def test_a_captured_decode_step(self):
        meta = meta_of(plan_batch([0, 1, 2, 3], state_indices=[5, 6, 7]))
        before = filled(meta)
        plan = plan_batch([0, 1, 1], state_indices=[9, -1])
        meta.update_(plan)
        assert filled(meta) == before
        assert meta.plan is plan
        assert meta.cu_seqlens.tolist() == [0, 1, 1, 1]
        assert meta.state_indices.tolist() == [9, -1, -1]
        assert meta.decode.sequences.tolist() == [0, 1, -1]
        assert meta.decode.seq_starts.tolist() == [0, 1, 1]
        assert meta.decode.num_seqs == 2
        meta.update_(plan_batch([0, 1, 2, 3], state_indices=[1, 2, 3]))
        assert meta.state_indices.tolist() == [1, 2, 3]

    def test_tails_are_padded(self):
        full = {**MIXED, "initial_state_indices": MIXED["state_indices"]}
        meta = meta_of(plan_batch(**full, pad_slot=9))
        before = filled(meta)
        meta.update_(plan_batch([0, 5], state_indices=[[2, 0]], pad_slot=9))
        assert filled(meta) == before
        assert meta.chunk_indices.tolist() == [[0, 0], [0, 1], [-1, -1], [-1, -1], [-1, -1]]
        assert meta.chunk_offsets.tolist() == [0, 2, 2, 2]
        assert meta.update_chunk_offsets.tolist() == [0, 3, 3, 3]
        assert meta.final_chunk_indices.tolist() == [2, 2, 2]
        assert meta.nonempty.tolist() == [0, -1]
        assert meta.cu_seqlens_nonempty.tolist() == [0, 5, 5]
        assert meta.conv_tile_sequences.tolist() == [0, 0, 0] + [-1] * 5
        assert meta.state_indices.tolist() == [[2, 0]] + [[9, 9]] * 4
        assert meta.initial_state_indices.tolist() == [[2, 0]] + [[9, 9]] * 4
        assert meta.has_initial_state.tolist() == [True] + [False] * 4
        assert meta.num_accepted_tokens.tolist() == [1] * 5
        assert meta.prefill.token_indices.tolist() == [0, 1, 2, 3, 4] + [-1] * 10
        assert meta.decode.num_seqs == meta.decode.num_tokens == 0
        assert meta.decode.cu_seqlens.tolist() == [0, 0]
        assert meta.speculative.sequences.tolist() == [-1]
        assert (meta.num_chunks, meta.num_conv_tiles) == (2, 3)
        assert meta.chunk_indices_host == (0, 0, 0, 1)

    def refused(self, meta, match, *arguments, error=MetadataError, **fields):
        before = {name: tensor.clone() for name, tensor in tensors_of(meta).items()}
        plan = meta.plan
        with pytest.raises(error, match=match):
            meta.update_(plan_batch(*arguments, **fields))
        assert meta.plan is plan
        for name, tensor in tensors_of(meta).items():
            assert torch.equal(tensor, before[name]), name

    def test_a_step_that_does_not_fit_is_refused_before_anything_is_written(self):
        decode = meta_of(plan_batch([0, 1, 2], state_indices=[5, 6]))
        self.refused(decode, "^num_seqs: got 3", [0, 1, 2, 2], state_indices=[1, 2, 3])
        self.refused(decode, "^total_tokens: got 3", [0, 2], state_indices=[1], total_tokens=3)
        self.refused(decode, "prefill|chunk_indices", [0, 2], state_indices=[1])
        self.refused(decode, "^state_indices: got no slots", [0, 1])
        self.refused(decode, "^state_indices: got shape", [0, 1], state_indices=[[1, 2]])
        self.refused(decode, "^pad_slot", [0, 1], state_indices=[1], pad_slot=3)
        self.refused(
            decode, "^has_initial_state", [0, 1], state_indices=[1], has_initial_state=[False]
        )
        prefill = meta_of(plan_batch([0, 8]))
        self.refused(prefill, "^state_indices: got slots", [0, 8], state_indices=[1])
        two = meta_of(plan_batch([0, 4, 8]))
        self.refused(two, r"^chunk_indices/4: got shape \[3, 2\]", [0, 1, 8])
        one = meta_of(plan_batch([0, 8, 8]))
        self.refused(one, r"^chunk_indices/8: got shape \[2, 2\]", [0, 4, 8])

    def test_capacity_does_not_shrink(self):
        meta = meta_of(plan_batch([0, 4, 8]))
        meta.update_(plan_batch([0, 1]))
        meta.update_(plan_batch([0, 4, 8]))
        assert meta.cu_seqlens.tolist() == [0, 4, 8]

    def test_device_fields_stay_on_the_device(self):
        slots = torch.tensor([4, 5, 6])
        meta = meta_of(plan_batch([0, 1, 2, 3]), state_indices=slots)
        self.refused(meta, "^state_indices: got values in the plan", [0, 1], state_indices=[1],
                     error=InvalidPlanError)  # fmt: skip
        meta.update_(plan_batch([0, 1]))
        assert meta.state_indices is slots
        plan = plan_batch([0, 1, 2, 3], initial_state_indices=[1, 2, 3])
        meta = meta_of(plan, state_indices=slots)
        self.refused(meta, "^initial_state_indices: got None", [0, 1])


@st.composite
def steps(draw):
    lens = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 9, 17]), min_size=1, max_size=6))
    drafts = [draw(st.booleans()) and 0 < n <= 3 for n in lens]
    return lens, drafts


def plan_of(step):
    lens, drafts = step
    n = len(lens)
    return plan_batch(
        np.concatenate([[0], np.cumsum(lens)]),
        state_indices=np.arange(3 * n).reshape(n, 3),
        has_initial_state=[row % 2 == 0 for row in range(n)],
        speculative=drafts,
        num_accepted_tokens=[1 + row % 3 for row in range(n)],
        total_tokens=200,
    )


@settings(max_examples=150, deadline=None)
@given(steps(), steps())
def test_update_equals_a_fresh_build_up_to_padding(first, second):
    # Together they are as large as either in every section, whatever the groups.
    meta = meta_of(plan_of((first[0] + second[0], first[1] + second[1])))
    before = filled(meta)
    plan = plan_of(second)
    fresh = meta_of(plan)
    refusal = None
    try:
        meta.update_(plan)
    except MetadataError as error:
        refusal = error
    if refusal is not None:
        # Only rows without tokens may change their group.
        assert 0 in second[0] or refusal.field.startswith("token_indices")
        return
    assert filled(meta) == before
    updated = tensors_of(meta)
    for name, expected in tensors_of(fresh).items():
        assert torch.equal(updated[name][: expected.shape[0]], expected), name
    assert meta.num_chunks == fresh.num_chunks
    assert meta.chunk_indices_host == fresh.chunk_indices_host


@settings(max_examples=100, deadline=None)
@given(steps())
def test_chunks_equal_the_formulas_of_the_prefill_group(step):
    meta = meta_of(plan_of(step))
    lens = np.empty(0, np.int32) if meta.prefill is None else meta.prefill.host.lens
    for size, table in meta.chunks.items():
        assert table.chunk_indices.tolist() == chunk_indices(lens, size).tolist()
        assert table.num_chunks == len(table.chunk_indices)
    sequences, tiles = conv_tiles(lens, 2)
    assert meta.conv_tile_sequences.tolist() == sequences.tolist()
    assert meta.conv_tile_offsets.tolist() == tiles.tolist()
    assert meta.nonempty.tolist() == np.flatnonzero(lens).tolist()
