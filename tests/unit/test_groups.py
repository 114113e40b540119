import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.plan.groups import HostGroup, split


def step(lens, drafts=()):
    starts = np.concatenate([[0], np.cumsum(lens, dtype=np.int64)])
    return plan_batch(starts, speculative=[row in drafts for row in range(len(lens))])


def kinds(lens, drafts=()):
    groups = split(step(lens, drafts), serving=True)
    return tuple(
        None if group is None else group.sequences.tolist()
        for group in (groups.prefill, groups.decode, groups.speculative)
    )


@pytest.mark.parametrize(
    ("lens", "drafts", "expected"),
    [
        ([], (), (None, None, None)),
        ([7, 9], (), ([0, 1], None, None)),
        ([1, 1], (), (None, [0, 1], None)),
        ([1, 5, 1, 0], (), ([1, 3], [0, 2], None)),
        ([5, 0], (), ([0, 1], None, None)),
        # A captured decode step, padded: rows without tokens stay decodes.
        ([1, 1, 0], (), (None, [0, 1, 2], None)),
        ([0, 0], (), (None, [0, 1], None)),
        ([3, 1], (0,), (None, [1], [0])),
        ([3, 0], (0,), (None, [1], [0])),
        ([3, 1, 4, 0], (0,), ([2, 3], [1], [0])),
        ([3, 3], (0, 1), (None, None, [0, 1])),
        ([1, 0], (0, 1), (None, None, [0, 1])),
    ],
)
def test_rows_are_sorted_by_what_has_to_be_done(lens, drafts, expected):
    assert kinds(lens, drafts) == expected


def test_without_slots_every_row_is_a_prefill():
    groups = split(step([1, 5, 0]), serving=False)
    assert groups.prefill.sequences.tolist() == [0, 1, 2]
    assert groups.decode is groups.speculative is None


def test_token_start_is_known_where_tokens_are_one_run():
    groups = split(step([1, 1, 5, 6]), serving=True)
    assert groups.decode.token_start == 0
    assert groups.prefill.token_start == 2
    groups = split(step([1, 5, 0, 1]), serving=True)
    assert groups.decode.token_start is None
    assert groups.prefill.token_start == 1
    assert split(step([3, 0, 0], (0,)), serving=True).decode.token_start == 3


def test_an_empty_group_has_no_rows_and_no_tokens():
    empty = HostGroup.empty()
    assert (empty.num_seqs, empty.num_tokens, empty.cu_seqlens.tolist()) == (0, 0, [0])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=9))
def test_groups_part_the_rows_and_the_tokens(rows):
    plan = step([n for n, _ in rows], {i for i, (_, draft) in enumerate(rows) if draft})
    groups = split(plan, serving=True)
    seen_rows, seen_tokens = [], []
    for group in (groups.prefill, groups.decode, groups.speculative):
        if group is None:
            continue
        assert group.num_seqs == group.sequences.size > 0
        assert group.max_seqlen == group.lens.max()
        tokens = np.empty(group.num_tokens, np.int32)
        group.write_token_indices(tokens)
        packed = []
        for i, row in enumerate(group.sequences):
            assert group.starts[i] == plan.query_start_loc[row]
            assert group.lens[i] == plan.seq_lens[row]
            assert group.cu_seqlens[i] == len(packed)
            packed.extend(range(plan.query_start_loc[row], plan.query_start_loc[row + 1]))
        assert tokens.tolist() == packed
        one_run = packed == list(range(packed[0], packed[0] + len(packed))) if packed else True
        assert (group.token_start is not None) == one_run
        if packed and one_run:
            assert group.token_start == packed[0]
        seen_rows += group.sequences.tolist()
        seen_tokens += packed
    assert sorted(seen_rows) == list(range(plan.num_seqs))
    assert sorted(seen_tokens) == list(range(plan.num_tokens))
