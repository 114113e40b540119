"""What our plan says of every row is what vLLM's own metadata builder says of it.

Both builders get the same steps, in vLLM's order of rows. What a kernel acts on is compared row by
row: which path a row takes, its tokens, the slots it reads and writes, whether it starts from zero,
how many drafts were accepted. vLLM 0.32 and 0.33 are covered, whichever is importable.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gdn_dispatch.meta import MetaSpec, build
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.types import MetaRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("vllm")
    from vllm.config import CUDAGraphMode
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.attention.backends import gdn_attn
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
    from vllm.v1.kv_cache_interface import MambaSpec

    from gdn_dispatch.integrations.vllm.metadata import DispatchGDNMetadataBuilder

CPU = torch.device("cpu")
BLOCK = 64
HV, V, K, D, W = 4, 64, 32, 384, 4
MAX_SEQS = 16


@dataclasses.dataclass
class Row:
    """A request of a step: its tokens in this step, those before it, and its drafts (-1: none)."""

    query: int
    context: int
    prefilling: bool
    drafts: int = -1
    accepted: int = 1


def configuration(num_spec, mode, full_graphs):
    graphs = CUDAGraphMode.FULL_DECODE_ONLY if full_graphs else CUDAGraphMode.NONE
    speculative = None
    if num_spec:
        speculative = SimpleNamespace(
            num_speculative_tokens=num_spec,
            parallel_drafting=False,
            use_eagle_block_drop=lambda: False,
        )
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mode=graphs, max_cudagraph_capture_size=None),
        speculative_config=speculative,
        num_hash_lookahead_tokens=0,
        additional_config={},
        model_config=SimpleNamespace(
            dtype=torch.float32,
            hf_text_config=SimpleNamespace(linear_key_head_dim=K, linear_value_head_dim=V),
        ),
        cache_config=SimpleNamespace(
            mamba_cache_mode=mode,
            block_size=BLOCK,
            mamba_block_size=BLOCK,
            prefix_match_unit=None,
            enable_prefix_caching=mode != "none",
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_SEQS),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        use_v2_model_runner=False,
    )


class Pair:
    """vLLM's builder and ours, of the same configuration."""

    def __init__(self, num_spec=0, mode="none", full_graphs=False):
        self.num_spec, self.mode = num_spec, mode
        spec = MambaSpec(
            block_size=BLOCK,
            shapes=((W - 1 + num_spec, D), (HV, V, K)),
            dtypes=(torch.float32, torch.float32),
            mamba_type=MambaAttentionBackendEnum.GDN_ATTN,
            mamba_cache_mode=mode,
            num_speculative_blocks=num_spec,
        )
        arguments = (spec, ["model.layers.0.linear_attn"])
        config = configuration(num_spec, mode, full_graphs)
        self.theirs = gdn_attn.GDNAttentionMetadataBuilder(*arguments, config, CPU)
        self.ours = DispatchGDNMetadataBuilder(*arguments, config, CPU)

    def step(self, rows, *, padded=0, tokens=0, seed=0):
        """The runner's description of ``rows``, and ``padded`` requests without tokens."""
        generator = torch.Generator().manual_seed(seed)
        rows = [*rows, *(Row(0, 0, False) for _ in range(padded))]
        starts = torch.tensor([0, *np.cumsum([row.query for row in rows])], dtype=torch.int32)
        lengths = torch.tensor([row.query + row.context for row in rows], dtype=torch.int32)
        blocks = 1 + self.num_spec
        if self.mode == "align":
            blocks += int(lengths.max()) // BLOCK + 1
        slots = 1 + torch.randperm(len(rows) * blocks, generator=generator)
        table = slots.to(torch.int32).view(len(rows), blocks)
        table[len(rows) - padded :] = 0
        common = CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts.clone(),
            seq_lens=lengths,
            num_reqs=len(rows),
            num_actual_tokens=max(int(starts[-1]), tokens),
            max_query_len=max(row.query for row in rows),
            max_seq_len=int(lengths.max()),
            block_table_tensor=table,
            slot_mapping=torch.arange(int(starts[-1])),
            is_prefilling=torch.tensor([row.prefilling for row in rows]),
            seq_lens_cpu_upper_bound=lengths.clone(),
        )
        extra = {}
        if self.num_spec:
            extra["num_accepted_tokens"] = torch.tensor(
                [row.accepted for row in rows], dtype=torch.int32
            )
            extra["num_decode_draft_tokens_cpu"] = torch.tensor(
                [row.drafts for row in rows], dtype=torch.int32
            )
        return common, extra

    def compare(self, rows, **words):
        common, extra = self.step(rows, **words)
        theirs = self.theirs.build(0, common, **extra)
        ours = self.ours.build(0, common, **extra)
        same_as_theirs(ours, theirs)
        expected, got = facts_of_vllm(theirs, common, extra), facts_of_plan(ours.chunk_meta)
        assert got == expected
        chunk_tables(ours.chunk_meta, theirs)
        return ours


def same_as_theirs(ours, theirs):
    """What vLLM's fields say, they still say; but for the chunk tables, which nobody reads."""
    for field in dataclasses.fields(theirs):
        if field.name in ("chunk_indices", "chunk_offsets"):
            continue
        left, right = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(left, torch.Tensor):
            assert torch.equal(left, right), field.name
        elif field.name not in ("nums_dict", "batch_ptr", "token_chunk_offset_ptr"):
            assert left == right, field.name


def facts_of_vllm(md, common, extra):
    """(kind, tokens, slots, from zero, accepted) of every row that has tokens."""
    starts = common.query_start_loc_cpu.tolist()
    spans = [tuple(pair) for pair in itertools.pairwise(starts)]
    facts = []
    if md.num_spec_decodes:
        speculative = (extra["num_decode_draft_tokens_cpu"] >= 0).tolist()
        others = [row for row, is_spec in enumerate(speculative) if not is_spec]
        chosen = [row for row, is_spec in enumerate(speculative) if is_spec]
        for number, row in enumerate(chosen):
            slots = md.spec_state_indices_tensor[number].tolist()
            assert md.spec_query_start_loc.diff()[number] == spans[row][1] - spans[row][0]
            accepted = int(md.num_accepted_tokens[number])
            facts.append(("speculative", spans[row], tuple(slots), False, accepted))
        spec_tokens = [t for row in chosen for t in range(*spans[row])]
        other_tokens = [t for row in others for t in range(*spans[row])]
        assert md.spec_token_indx.tolist() == spec_tokens
        assert md.non_spec_token_indx.tolist() == other_tokens
    else:
        others = range(len(spans))
    for number, row in enumerate(others):
        begin, end = spans[row]
        if begin == end:
            continue
        decode = number < md.num_decodes
        fresh = not decode and not bool(md.has_initial_state[number])
        # A prefill of one token is the same work as a decode; our plan calls it one.
        kind = "decode" if decode or end - begin == 1 else "prefill"
        slot = int(md.non_spec_state_indices_tensor[number])
        facts.append((kind, (begin, end), (slot,), fresh, 1))
    return sorted(facts, key=lambda fact: fact[1])


def facts_of_plan(meta):
    """The same, as ``gdn_attention`` will read it."""
    facts = []
    slots = meta.state_indices if meta.state_indices.ndim == 2 else meta.state_indices[:, None]
    for kind in ("prefill", "decode", "speculative"):
        group = getattr(meta, kind)
        if group is None:
            continue
        for row, begin, length in zip(
            group.sequences.tolist(),
            group.seq_starts.tolist(),
            group.host.lens.tolist(),
            strict=False,
        ):
            if not length:
                continue
            speculative = kind == "speculative"
            has_state = meta.has_initial_state
            facts.append(
                (
                    kind,
                    (begin, begin + length),
                    tuple(slots[row].tolist()) if speculative else (int(slots[row, 0]),),
                    has_state is not None and not bool(has_state[row]),
                    int(meta.num_accepted_tokens[row]) if speculative else 1,
                )
            )
    return sorted(facts, key=lambda fact: fact[1])


def chunk_tables(meta, theirs):
    """Where both have the same rows in the prefill group, its tables are vLLM's too."""
    if not theirs.num_prefills or theirs.chunk_indices is None:
        return
    starts = theirs.prefill_query_start_loc
    lens = [length for length in starts.diff().tolist() if length]
    if 1 in lens or meta.prefill is None:
        return
    plan = plan_batch(meta.plan.query_start_loc, speculative=meta.plan.speculative)
    words = {"state_indices": meta.state_indices}
    if meta.num_accepted_tokens is not None:
        words["num_accepted_tokens"] = meta.num_accepted_tokens
    ours = build(MetaRequest(plan, CPU, **words), MetaSpec(64), backend="parity")
    assert torch.equal(ours.chunk_indices, theirs.chunk_indices)
    count = len(lens) + 1
    assert torch.equal(ours.chunk_offsets[:count].long(), theirs.chunk_offsets[:count].long())
    assert torch.equal(ours.prefill.cu_seqlens[:count], starts[:count])


def decode(rng):
    return Row(1, rng.randint(1, 300), False)


def prefill(rng, mode):
    context = rng.choice([0, rng.randint(1, 200)])
    if mode == "align":
        context = context // BLOCK * BLOCK
    query = rng.choice([1, 2, 63, 64, 65, rng.randint(1, 300)])
    return Row(query, context, True)


def draft(rng, num_spec):
    drafts = rng.randint(0, num_spec)
    return Row(1 + drafts, rng.randint(5, 300), False, drafts, rng.randint(1, num_spec + 1))


def random_rows(rng, num_spec, mode):
    """In the runner's order: what decodes first, then what prefills."""
    decodes = rng.choice([0, 0, 1, rng.randint(0, 6)])
    prefills = rng.choice([0, 1, rng.randint(0, 5)])
    rows = [
        draft(rng, num_spec) if num_spec and rng.random() < 0.7 else decode(rng)
        for _ in range(decodes)
    ]
    # a resumed chunk of one token counts among the decodes, a first one among the prefills
    rest = [prefill(rng, mode) for _ in range(prefills)]
    rest.sort(key=lambda row: row.query != 1 or row.context == 0)
    return rows + rest or [decode(rng)]


# -- the cases ---------------------------------------------------------------------------------


def test_decodes_and_prefills_mixed():
    Pair().compare([Row(1, 20, False), Row(1, 5, False), Row(130, 0, True), Row(70, 64, True)])


def test_decodes_alone():
    ours = Pair().compare([Row(1, 20, False), Row(1, 5, False), Row(1, 9, False)])
    assert ours.chunk_meta.has_initial_state is None
    assert ours.chunk_meta.prefill is None


def test_a_first_chunk_of_one_token_starts_from_zero():
    ours = Pair().compare([Row(65, 0, True), Row(1, 0, True)])
    assert ours.chunk_meta.has_initial_state.tolist() == [False, False]


def test_ragged_drafts():
    Pair(2).compare([Row(3, 20, False, 2, 2), Row(2, 30, False, 1, 1)])


def test_drafts_beside_a_prefill_and_a_plain_decode():
    rows = [Row(3, 20, False, 2, 3), Row(66, 0, True), Row(1, 40, False)]
    ours = Pair(2).compare(rows)
    meta = ours.chunk_meta
    assert [g.host.sequences.tolist() for g in (meta.speculative, meta.prefill, meta.decode)] == [
        [0], [1], [2],
    ]  # fmt: skip


def test_a_captured_decode_step_with_padded_requests():
    Pair(full_graphs=True).compare([Row(1, 20, False), Row(1, 5, False)], padded=2, tokens=4)


def test_align_mode_takes_the_slot_of_the_block_being_filled():
    Pair(mode="align").compare([Row(1, 130, False), Row(66, 64, True)])


@pytest.mark.parametrize("mode", ["none", "align"])
@pytest.mark.parametrize("num_spec", [0, 1, 2, 3])
@pytest.mark.parametrize("full_graphs", [False, True], ids=["eager", "graphs"])
def test_random_steps(num_spec, mode, full_graphs):
    """16 configurations of 150 steps: 2,400."""
    rng = random.Random(f"{num_spec} {mode} {full_graphs}")
    pair = Pair(num_spec, mode, full_graphs)
    for seed in range(150):
        rows = random_rows(rng, num_spec, mode)
        alone = all(row.drafts >= 0 for row in rows) or not any(
            row.prefilling or row.drafts >= 0 for row in rows
        )
        padded = rng.randint(0, 3) if full_graphs and alone else 0
        pair.compare(rows, padded=padded, seed=seed)


@pytest.mark.parametrize("num_spec", [0, 2])
def test_a_captured_step_is_updated_in_place(num_spec):
    """A graph captured with N requests goes on reading the same memory."""
    rng = random.Random(num_spec)
    pair = Pair(num_spec, full_graphs=True)
    size = 1 + num_spec
    for N in (8, 4, 1):
        rows = [Row(size, 0, False) for _ in range(N)]
        common, _ = pair.step(rows)
        captured = pair.ours.build_for_cudagraph_capture(common).chunk_meta
        flat = captured._flat.data_ptr()
        for seed in range(40):
            live = rng.randint(1, N)
            rows = [draft(rng, num_spec) if num_spec else decode(rng) for _ in range(live)]
            ours = pair.compare(rows, padded=N - live, tokens=N * size, seed=seed)
            assert ours.chunk_meta is captured
            assert ours.chunk_meta._flat.data_ptr() == flat


def test_a_missing_field_is_named():
    from gdn_dispatch.errors import MetadataError

    pair = Pair(2)
    common, extra = pair.step([Row(3, 20, False, 2, 3), Row(66, 0, True)])
    theirs = pair.theirs.build(0, common, **extra)
    with pytest.raises(MetadataError, match="seq_lens_cpu_upper_bound"):
        pair.ours._plan(
            theirs,
            common.replace(seq_lens_cpu_upper_bound=None),
            extra["num_decode_draft_tokens_cpu"],
        )
    with pytest.raises(MetadataError, match="num_decode_draft_tokens_cpu"):
        pair.ours._plan(theirs, common, None)
