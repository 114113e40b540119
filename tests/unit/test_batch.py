import numpy as np
import pytest

from gdn_dispatch.errors import InvalidPlanError
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.plan.checkpoints import check_checkpoints

SPEC = {
    "query_start_loc": [0, 3, 4],
    "state_indices": [[1, 2, 3], [4, 5, 6]],
    "speculative": [True, False],
}


def refusal(**arguments):
    with pytest.raises(InvalidPlanError) as caught:
        plan_batch(**arguments)
    return caught.value


def test_a_plan_states_the_step():
    plan = plan_batch([0, 4, 4, 12], state_indices=[5, 6, 7], total_tokens=16)
    assert (plan.num_seqs, plan.num_tokens, plan.total_tokens, plan.max_seqlen) == (3, 12, 16, 8)
    assert plan.seq_lens.tolist() == [4, 0, 8]
    assert "num_seqs=3" in repr(plan)
    assert "state_indices" in repr(plan)


@pytest.mark.parametrize(
    "starts", [[0, 2, 5], (0, 2, 5), range(0, 6, 5), np.array([0, 5]), np.array([0, 5], np.uint8)]
)
def test_host_sequences_of_ints_are_accepted(starts):
    plan = plan_batch(starts)
    assert plan.query_start_loc.dtype == np.int32
    assert plan.num_tokens == 5
    assert plan.total_tokens == 5


def test_an_empty_step_is_a_step():
    plan = plan_batch([0], state_indices=[], has_initial_state=[], checkpoint_offsets=[],
                      checkpoint_indices=[])  # fmt: skip
    assert (plan.num_seqs, plan.num_tokens, plan.max_seqlen) == (0, 0, 0)


def test_a_plan_shares_no_memory_and_cannot_be_changed():
    starts = np.array([0, 3], np.int32)
    plan = plan_batch(starts)
    starts[1] = 9
    assert plan.query_start_loc.tolist() == [0, 3]
    for array in (plan.query_start_loc, plan.seq_lens):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        plan.num_tokens = 1


@pytest.mark.parametrize(
    ("starts", "got"),
    [
        ([0.0, 1.0], "float64"),
        ([0, True], "bool"),
        (np.array([False, True]), "bool"),
        ([[0, 1]], "shape"),
        (5, "int"),
        ("012", "str"),
        ([0, [1]], "lengths"),
        ([], "no values"),
        (np.array([], np.float32), "float32"),
        ([1, 2], "1 at position 0"),
        ([0, 5, 3], "5 followed by 3 (row 1)"),
        ([0, 2**31], str(2**31)),
        ([0, -(2**40)], str(-(2**40))),
        ([0, 2**80], "object"),
    ],
)
def test_query_start_loc_is_checked(starts, got):
    error = refusal(query_start_loc=starts)
    assert error.argument == "query_start_loc"
    assert got in error.got


@pytest.mark.parametrize(
    ("argument", "value", "got"),
    [
        ("state_indices", [1, 2, 3], "3 rows"),
        ("state_indices", [1.0, 2.0], "float64"),
        ("state_indices", [[True], [2]], "bool"),
        ("state_indices", np.zeros((2, 0), np.int32), "shape [2, 0]"),
        ("state_indices", np.zeros((2, 1, 1), np.int32), "shape [2, 1, 1]"),
        ("initial_state_indices", [1], "1 rows"),
        ("has_initial_state", [1, 0], "dtype int64"),
        ("has_initial_state", [[True, False]], "shape"),
        ("has_initial_state", [True], "1 rows"),
        ("speculative", [0, 1], "dtype int64"),
        ("speculative", [True], "1 rows"),
        ("num_accepted_tokens", [1], "1 rows"),
        ("num_accepted_tokens", [[1, 1]], "shape"),
        ("total_tokens", 4, "4"),
        ("total_tokens", True, "bool"),
        ("total_tokens", 7.0, "float"),
        ("total_tokens", 2**31, str(2**31)),
        ("pad_slot", None, "NoneType"),
        ("pad_slot", np.bool_(1), "bool"),
        ("checkpoint_offsets", [[], []], "None"),
        ("checkpoint_indices", [[], []], "None"),
    ],
)
def test_every_argument_is_checked(argument, value, got):
    error = refusal(query_start_loc=[0, 3, 5], **{argument: value})
    assert argument.startswith("checkpoint") or error.argument == argument
    assert got in error.got
    assert error.expected


def test_read_slots_have_the_shape_of_write_slots():
    error = refusal(query_start_loc=[0, 1], state_indices=[[1, 2]], initial_state_indices=[1])
    assert error.argument == "initial_state_indices"
    assert "[1, 2]" in error.expected


def test_read_slots_may_come_without_write_slots():
    plan = plan_batch([0, 1], initial_state_indices=[4])
    assert plan.initial_state_indices.tolist() == [4]


def test_no_speculative_row_means_none():
    assert plan_batch([0, 1], speculative=[False]).speculative is None


class TestSpeculative:
    def test_needs_a_slot_per_draft_token(self):
        error = refusal(query_start_loc=[0, 2], state_indices=[1], speculative=[True])
        assert error.argument == "state_indices"
        error = refusal(query_start_loc=[0, 2], initial_state_indices=[1], speculative=[True])
        assert error.argument == "initial_state_indices"
        error = refusal(query_start_loc=[0, 3], state_indices=[[1, 2]], speculative=[True])
        assert error.argument == "speculative"
        assert "row 0 with 3 draft tokens" in error.got

    @pytest.mark.parametrize("accepted", [[0, 1], [4, 1], [-1, 1]])
    def test_accepted_counts_are_columns(self, accepted):
        error = refusal(**SPEC, num_accepted_tokens=accepted)
        assert error.argument == "num_accepted_tokens"
        assert "1..3" in error.expected

    def test_accepted_counts_of_other_rows_are_ignored(self):
        plan = plan_batch(**SPEC, num_accepted_tokens=[3, 99])
        assert plan.num_accepted_tokens.tolist() == [3, 99]

    def test_accepted_counts_of_padding_are_ignored(self):
        plan_batch([0, 3], state_indices=[[-1, 2, 3]], speculative=[True], num_accepted_tokens=[0])
        plan_batch([0, 0], state_indices=[[1, 2, 3]], speculative=[True], num_accepted_tokens=[0])

    def test_slots_may_come_from_the_device(self):
        plan = plan_batch([0, 3], speculative=[True], num_accepted_tokens=[7])
        assert plan.speculative.tolist() == [True]
        assert refusal(query_start_loc=[0, 3], speculative=[True], num_accepted_tokens=[0])


class TestRaces:
    """Rows of a step run at the same time."""

    def test_two_rows_must_not_write_one_slot(self):
        error = refusal(query_start_loc=[0, 1, 2, 3], state_indices=[7, 3, 7])
        assert "slot 7 written by rows 0 and 2" in error.got

    @pytest.mark.parametrize("slots", [[-1, -1, 2], [0, 0, 2], [-5, 0, 2]])
    def test_padding_slots_are_no_slots(self, slots):
        plan_batch([0, 1, 2, 3], state_indices=slots, pad_slot=0)

    def test_pad_slot_is_padding_only_where_it_is_given(self):
        assert refusal(query_start_loc=[0, 1, 2], state_indices=[0, 0])

    def test_rows_without_tokens_write_nothing(self):
        plan_batch([0, 1, 1, 1], state_indices=[7, 7, 7])

    def test_draft_columns_are_written(self):
        slots = [[1, 2, 3], [2, 5, 6]]
        error = refusal(query_start_loc=[0, 3, 4], state_indices=slots, speculative=[True, False])
        assert "slot 2 written by rows 0 and 1" in error.got

    def test_columns_past_the_draft_are_not_written(self):
        slots = [[1, 2, 3], [3, 2, 1]]
        plan_batch([0, 2, 3], state_indices=slots, speculative=[True, False])

    def test_checkpoint_slots_are_written(self):
        error = refusal(
            query_start_loc=[0, 128, 129],
            state_indices=[1, 2],
            checkpoint_offsets=[[64], []],
            checkpoint_indices=[[2], []],
        )
        assert "slot 2 written by rows 0 and 1" in error.got

    def test_a_row_must_not_read_what_another_writes(self):
        error = refusal(
            query_start_loc=[0, 1, 2], state_indices=[1, 2], initial_state_indices=[1, 1]
        )
        assert error.argument == "initial_state_indices"
        assert "slot 1 read by row 1 and written by row 0" in error.got

    def test_reading_is_harmless_where_nothing_is_read(self):
        step = {"query_start_loc": [0, 1, 2], "state_indices": [1, 2]}
        plan_batch(**step, initial_state_indices=[1, 1], has_initial_state=[True, False])
        plan_batch(**step, initial_state_indices=[9, 9])
        plan_batch(**step, initial_state_indices=[-1, -1])
        plan_batch(**step, initial_state_indices=[1, 2])

    def test_the_accepted_column_is_read(self):
        slots = [[1, 2, 3], [3, 5, 6]]
        step = {"query_start_loc": [0, 2, 3], "state_indices": slots, "speculative": [True, False]}
        plan_batch(**step, num_accepted_tokens=[2, 1])
        error = refusal(**step, num_accepted_tokens=[3, 1])
        assert error.argument == "state_indices"
        assert "slot 3 read by row 0 and written by row 1" in error.got


class TestCheckpoints:
    def plan(self, offsets, slots, **more):
        return plan_batch(
            [0, 100, 300], checkpoint_offsets=offsets, checkpoint_indices=slots, **more
        )

    def test_are_sorted_by_row_and_offset(self):
        kept = self.plan([[64], [64, 128]], [[3], [1, 2]]).checkpoints
        assert kept.sequences.tolist() == [0, 1, 1]
        assert kept.offsets.tolist() == [64, 64, 128]
        assert kept.slots.tolist() == [3, 1, 2]
        assert not kept.slots.flags.writeable

    def test_padding_slots_and_rows_are_dropped(self):
        kept = self.plan([[64], [64, 128]], [[9], [-1, 0]], pad_slot=0)
        assert kept.checkpoints.slots.tolist() == [9]
        assert self.plan([[], [64]], [[], [-1]]).checkpoints is None
        assert self.plan([[64], []], [[9], []], state_indices=[-1, 2]).checkpoints is None

    @pytest.mark.parametrize(
        ("offsets", "slots"),
        [
            ([[0], []], [[1], []]),
            ([[101], []], [[1], []]),
            ([[64, 64], []], [[1, 2], []]),
            ([[64, 32], []], [[1, 2], []]),
            ([[64], []], [[1, 2], []]),
            ([[64]], [[1]]),
            ([[64], []], [[1]]),
            ([[64.0], []], [[1], []]),
            (np.array([[64], [64]]), [[1], [2]]),
        ],
    )
    def test_are_checked(self, offsets, slots):
        with pytest.raises(InvalidPlanError, match="checkpoint_"):
            self.plan(offsets, slots)

    def test_speculative_rows_have_none(self):
        with pytest.raises(InvalidPlanError, match="speculative row"):
            plan_batch([0, 2], state_indices=[[1, 2]], speculative=[True],
                       checkpoint_offsets=[[1]], checkpoint_indices=[[4]])  # fmt: skip

    def test_fall_between_chunks(self):
        plan = self.plan([[64], [64, 160]], [[3], [1, 2]])
        check_checkpoints(plan, 32)
        with pytest.raises(InvalidPlanError, match="160 in row 1, expected multiples of 64"):
            check_checkpoints(plan, 64)
        check_checkpoints(plan_batch([0, 3]), 64)
