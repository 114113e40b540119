"""Arguments of Ascend's operators, device tensors and ints, against loops over a step's rows."""

from __future__ import annotations

import random

import pytest
import torch
from gdn_dispatch_ascend.meta import build_chunk_meta

from backends.ascend.tests import definitions
from gdn_dispatch import plan_batch
from gdn_dispatch.errors import InvalidArgumentError, MetadataError
from gdn_dispatch.types import MetaRequest

CPU = torch.device("cpu")
S = 4


class Step:
    """A random step with slots; what is in it, as lists."""

    def __init__(self, rng, *, kinds=("prefill", "decode", "speculative"), rows=None):
        self.lengths, self.speculative = [], []
        for _ in range(rng.randint(1, 9) if rows is None else rows):
            kind = rng.choice(kinds)
            length = {
                "prefill": rng.choice([0, rng.randint(2, 400)]),
                "decode": 1,
                "speculative": S,
            }[kind]
            self.lengths.append(length)
            self.speculative.append(kind == "speculative")
        n = len(self.lengths)
        slots = rng.sample(range(1, 10 * n * S), n * S)
        self.slots = [slots[s * S : (s + 1) * S] for s in range(n)]
        self.has = [is_draft or rng.random() < 0.5 for is_draft in self.speculative]
        self.accepted = [rng.randint(1, S) for _ in range(n)]
        self.starts = definitions.running(self.lengths)
        self.kinds = definitions.split_rows(self.lengths, self.speculative)

    def plan(self, *, slots=True, pad_slot=-1, total_tokens=None):
        values = {
            "state_indices": self.slots,
            "has_initial_state": self.has,
            "num_accepted_tokens": self.accepted,
        }
        return plan_batch(
            self.starts, speculative=self.speculative, pad_slot=pad_slot,
            total_tokens=total_tokens, **(values if slots else {}),
        )  # fmt: skip

    def tensors(self, dtype=torch.int32):
        return {
            "state_indices": torch.tensor(self.slots, dtype=dtype),
            "has_initial_state": torch.tensor(self.has),
            "num_accepted_tokens": torch.tensor(self.accepted, dtype=dtype),
        }

    def expected(self, kind):
        """The fields of ``GroupArguments``; None where there is none."""
        rows = self.kinds[kind]
        lengths = [self.lengths[s] for s in rows]
        cu = definitions.running(lengths)
        own = [self.slots[s][0] for s in rows]
        drafts = kind == "speculative"
        return {
            "query_start_loc": cu,
            "actual_seq_lengths": [cu[0], *lengths],
            "keep_meta": [length > 0 for length in lengths],
            "cache_indices": own,
            "initial_state_mode": [self.has[s] for s in rows] if kind == "prefill" else None,
            "num_accepted_tokens": [self.accepted[s] for s in rows] if drafts else None,
            "ssm_state_indices": {
                "prefill": None,
                "decode": own,
                "speculative": [slot for s in rows for slot in self.slots[s]],
            }[kind],
        }


def check(meta, step):
    assert set(meta.arguments) == {kind for kind, rows in step.kinds.items() if rows}
    for kind, found in meta.arguments.items():
        assert found.lengths.tolist() == step.expected(kind)["actual_seq_lengths"][1:]
        for name, values in step.expected(kind).items():
            tensor = getattr(found, name)
            assert (None if tensor is None else tensor.tolist()) == values, (kind, name)


def host_expected(step, kind):
    expected = step.expected(kind)
    mode = expected["initial_state_mode"]
    return (
        tuple(expected["query_start_loc"]),
        tuple(expected["cache_indices"]),
        None if mode is None else tuple(int(x) for x in mode),
        None if kind != "speculative" else tuple(expected["num_accepted_tokens"]),
    )


def as_tuple(found):
    return (
        found.query_start_loc, found.cache_indices, found.initial_state_mode,
        found.num_accepted_tokens,
    )  # fmt: skip


def test_random_steps():
    rng = random.Random(0)
    for _ in range(1000):
        step = Step(rng)
        meta = build_chunk_meta(MetaRequest(step.plan(), CPU, num_v_heads=8))
        check(meta, step)
        for kind, rows in step.kinds.items():
            if rows:
                assert as_tuple(meta.conv_host_arguments(kind)) == host_expected(step, kind)
        if step.kinds["prefill"]:
            lengths = [step.lengths[s] for s in step.kinds["prefill"]]
            definitions.check_tables(meta.tables, lengths, 8)
            check_rule_arguments(meta.rule_host_arguments, lengths)


def check_rule_arguments(found, lengths):
    kept = [length for length in lengths if length]
    rows = definitions.index_rows(lengths, 64)
    assert found.cu_seqlens == tuple(definitions.running(lengths))
    assert found.chunk_indices_chunk64 == tuple(x for row in rows for x in row)
    assert found.actual_seq_lengths == tuple(kept)
    if len(kept) == len(lengths):
        assert found.cu_seqlens_kern is found.keep is None
    else:
        assert found.cu_seqlens_kern == tuple(definitions.running(kept))
        assert found.keep == tuple(length > 0 for length in lengths)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_random_steps_with_slots_that_only_the_device_knows(dtype):
    rng = random.Random(1)
    for _ in range(300):
        step = Step(rng)
        tensors = step.tensors(dtype)
        meta = build_chunk_meta(
            MetaRequest(step.plan(slots=False), CPU, num_v_heads=8, **tensors)
        )  # fmt: skip
        check(meta, step)
        kind = next(iter(meta.arguments))
        assert meta.arguments[kind].cache_indices.dtype == dtype
        with pytest.raises(MetadataError, match="state_indices") as caught:
            meta.conv_host_arguments(kind)
        assert caught.value.field == "state_indices"


def test_slots_of_a_step_of_one_kind_are_those_given():
    slots = torch.tensor([4, 5, 6])
    plan = plan_batch([0, 1, 2, 3])
    meta = build_chunk_meta(MetaRequest(plan, CPU, state_indices=slots, num_v_heads=8))
    assert meta.arguments["decode"].cache_indices.data_ptr() == slots.data_ptr()


@pytest.mark.parametrize("missing", ["has_initial_state", "num_accepted_tokens"])
def test_a_field_that_only_the_device_knows_is_named(missing):
    step = Step(random.Random(0), kinds=("prefill", "speculative"), rows=6)
    tensor = {missing: step.tensors()[missing]}
    plan = plan_batch(
        step.starts, state_indices=step.slots, speculative=step.speculative,
        **{
            name: values
            for name, values in (
                ("has_initial_state", step.has), ("num_accepted_tokens", step.accepted),
            )
            if name != missing
        },
    )  # fmt: skip
    meta = build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=8, **tensor))
    kind = "prefill" if missing == "has_initial_state" else "speculative"
    with pytest.raises(MetadataError) as caught:
        meta.conv_host_arguments(kind)
    assert caught.value.field == missing
    assert "plan_batch" in str(caught.value)


def test_rows_that_all_have_a_state():
    plan = plan_batch([0, 5, 9], state_indices=[1, 2])
    meta = build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=8))
    assert meta.conv_host_arguments("prefill").initial_state_mode == (1, 1)
    assert meta.arguments["prefill"].initial_state_mode is None


def test_a_recurrence_alone_has_no_slots():
    meta = build_chunk_meta(MetaRequest(plan_batch([0, 5, 5]), CPU, num_v_heads=8))
    found = meta.arguments["prefill"]
    assert found.cache_indices is found.ssm_state_indices is None
    assert found.actual_seq_lengths.tolist() == [0, 5, 0]
    with pytest.raises(MetadataError, match="state_indices"):
        meta.conv_host_arguments("prefill")


@pytest.mark.parametrize("kind", ["speculative", "nobody"])
def test_rows_there_are_none_of(kind):
    meta = build_chunk_meta(MetaRequest(plan_batch([0, 5]), CPU, num_v_heads=8))
    with pytest.raises(MetadataError) as caught:
        meta.conv_host_arguments(kind)
    assert caught.value.field == kind


class TestUpdates:
    """A captured graph reads the same tensors: what is in them is the new step, and padding."""

    def padded(self, step, kind, field, rows):
        values = step.expected(kind)[field]
        tail = {
            "query_start_loc": (values or [0])[-1],
            "actual_seq_lengths": 0,
            "keep_meta": False,
            "cache_indices": -7,
            "initial_state_mode": False,
            "num_accepted_tokens": 1,
            "ssm_state_indices": -7,
        }[field]
        return values + [tail] * (rows - len(values))

    @pytest.mark.parametrize(
        "kinds", [("decode",), ("speculative",), ("prefill", "decode", "speculative")]
    )
    def test_smaller_steps(self, kinds):
        rng = random.Random(5)
        tried = 0
        while tried < 60:
            built = Step(rng, kinds=kinds, rows=8)
            if {kind for kind, rows in built.kinds.items() if rows} != set(kinds):
                continue
            tried += 1
            total = built.starts[-1]
            request = MetaRequest(built.plan(pad_slot=-7), CPU, num_v_heads=8)
            meta = build_chunk_meta(request)
            addresses = self.addresses(meta)
            for _ in range(4):
                step = Step(rng, kinds=kinds, rows=rng.randint(1, 8))
                try:
                    meta.update_(step.plan(pad_slot=-7))
                except MetadataError:
                    continue  # does not fit
                assert step.starts[-1] <= total
                assert self.addresses(meta) == addresses
                for kind, found in meta.arguments.items():
                    for name in step.expected(kind):
                        tensor = getattr(found, name)
                        if tensor is not None:
                            expected = self.padded(step, kind, name, tensor.shape[0])
                            assert tensor.tolist() == expected, (kind, name)

    def addresses(self, meta):
        return {
            (kind, name): tensor.data_ptr()
            for kind, found in meta.arguments.items()
            for name in ("query_start_loc", "actual_seq_lengths", "keep_meta", "cache_indices",
                         "initial_state_mode", "num_accepted_tokens", "ssm_state_indices")
            if (tensor := getattr(found, name)) is not None
        }  # fmt: skip

    def drafts(self, lengths):
        n = len(lengths)
        return plan_batch(
            definitions.running(lengths), speculative=[True] * n, num_accepted_tokens=[1] * n,
            state_indices=[[9 * s + t for t in range(3)] for s in range(n)],
        )  # fmt: skip

    @pytest.mark.parametrize("lengths", [[3, 3, 3], [3, 3, 0], [3, 0, 3], [1, 2, 3], [2, 0, 0]])
    def test_every_draft_token_has_its_slot(self, lengths):
        slots = [9 * s + t for s, length in enumerate(lengths) for t in range(length)]
        built = build_chunk_meta(MetaRequest(self.drafts(lengths), CPU))
        updated = build_chunk_meta(MetaRequest(self.drafts([3, 3, 3]), CPU))
        before = updated.arguments["speculative"].ssm_state_indices.data_ptr()
        updated.update_(self.drafts(lengths))
        for meta in (built, updated):
            found = meta.arguments["speculative"].ssm_state_indices
            assert found.shape == (9,)
            assert found[: len(slots)].tolist() == slots
        assert found.data_ptr() == before

    def test_tensors_of_the_caller_stay_the_callers(self):
        slots = torch.tensor([[4, 0], [5, 0], [6, 0]])[:, 0]
        plan = plan_batch([0, 1, 2, 3])
        meta = build_chunk_meta(MetaRequest(plan, CPU, state_indices=slots, num_v_heads=8))
        slots.copy_(torch.tensor([9, 8, 7]))
        meta.update_(plan_batch([0, 1, 2]))
        assert slots.tolist() == [9, 8, 7]
        assert meta.arguments["decode"].cache_indices.tolist() == [9, 8, 7]


class TestGraphPadding:
    """Rows are added until what the graph was captured with is accounted for."""

    def test_decode(self):
        plan = plan_batch([0, 1, 2, 3], state_indices=[4, 5, 6])
        meta = build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=8))
        padded = meta.conv_host_arguments("decode").padded(5, pad_slot=-1)
        assert as_tuple(padded) == ((0, 1, 2, 3, 4, 5), (4, 5, 6, -1, -1), None, None)

    def test_speculative(self):
        plan = plan_batch(
            [0, 3], state_indices=[[1, 2, 3]], speculative=[True], num_accepted_tokens=[2]
        )
        meta = build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=8))
        padded = meta.conv_host_arguments("speculative").padded(9, tokens_per_seq=3, pad_slot=0)
        assert as_tuple(padded) == ((0, 3, 6, 9), (1, 0, 0), None, (2, 1, 1))

    def test_prefill(self):
        plan = plan_batch([0, 3], state_indices=[1])
        meta = build_chunk_meta(MetaRequest(plan, CPU, num_v_heads=8))
        padded = meta.conv_host_arguments("prefill").padded(5)
        assert as_tuple(padded) == ((0, 3, 4, 5), (1, -1, -1), (1, 0, 0), None)

    def test_nothing_is_missing(self):
        plan = plan_batch([0, 1], state_indices=[1])
        arguments = build_chunk_meta(MetaRequest(plan, CPU)).conv_host_arguments("decode")
        assert arguments.padded(1) == arguments

    @pytest.mark.parametrize(
        ("num_tokens", "tokens_per_seq", "field", "complaint"),
        [
            (1, 1, "num_tokens", "at least 2"),
            (5, 2, "num_tokens", "3 more than the rows have"),
            (5, 0, "tokens_per_seq", "at least 1"),
        ],
    )
    def test_what_cannot_be_padded(self, num_tokens, tokens_per_seq, field, complaint):
        plan = plan_batch([0, 1, 2], state_indices=[1, 2])
        arguments = build_chunk_meta(MetaRequest(plan, CPU)).conv_host_arguments("decode")
        with pytest.raises(InvalidArgumentError, match=complaint) as caught:
            arguments.padded(num_tokens, tokens_per_seq=tokens_per_seq)
        assert caught.value.argument == field
