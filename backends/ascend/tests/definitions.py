"""What the tables and arguments are, written from their definitions as loops; calls no builder."""

from __future__ import annotations

import random
from itertools import pairwise

HEADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def cumsum_block(num_v_heads):
    """next_pow2(max(1, 2**18 // (HV * 64))), by trying powers."""
    wanted, power = max(1, 2**18 // (num_v_heads * 64)), 1
    while power < wanted:
        power *= 2
    return power


def chunks(length, size):
    """How many pieces of ``size`` tokens a sequence takes, by cutting them off."""
    return len(range(0, length, size))


def index_rows(lengths, size):
    """IDX(C): rows [q, i], q numbering the sequences that have tokens."""
    kept = [length for length in lengths if length]
    return [[q, i] for q, length in enumerate(kept) for i in range(chunks(length, size))]


def running(values):
    """[0] + cumsum."""
    found = [0]
    for value in values:
        found.append(found[-1] + value)
    return found


def tables(lengths, num_v_heads):
    """All of ``AscendTables`` for sequences of these lengths, as lists."""
    counts = [chunks(length, 64) for length in lengths]
    updates = running([count + 1 for count in counts])
    return {
        "cu_seqlens": running(lengths),
        "nonempty": [s for s, length in enumerate(lengths) if length],
        "chunk_indices_chunk64": index_rows(lengths, 64),
        "chunk_offsets_chunk64": running(counts),
        "update_chunk_offsets_chunk64": updates,
        "final_chunk_indices_chunk64": [end - 1 for end in updates[1:]],
        "chunk_indices_large_block": index_rows(lengths, 1216),
        "block_indices_cumsum": index_rows(lengths, cumsum_block(num_v_heads)),
        "cu_seqlens_kern": running([length for length in lengths if length]),
        "keep_meta": [length > 0 for length in lengths],
    }


def random_lengths(rng):
    """Lengths of a step: few or many sequences, short or long, with and without empty ones."""
    n = rng.choice([1, 1, 2, 3, 5, 9, 24])
    most = rng.choice([1, 64, 130, 700, 3000])
    empty = rng.choice([0.0, 0.0, 0.2, 0.9])
    return [0 if rng.random() < empty else rng.randint(1, most) for _ in range(n)]


def batches(count, seed=0):
    """``count`` pairs of lengths and HV; among the first are the edges."""
    rng = random.Random(seed)
    edges = [[], [0], [0, 0, 0], [1], [64], [65], [63, 0, 64, 0, 65], [1216], [1217, 0, 1], [4096]]
    for number in range(count):
        lengths = edges[number] if number < len(edges) else random_lengths(rng)
        yield lengths, HEADS[number % len(HEADS)]


def prefix_then(values, tensor, filler):
    """``tensor`` is ``values`` and, behind them, nothing but ``filler``."""
    got = tensor.tolist()
    assert got[: len(values)] == values
    assert got[len(values) :] == [filler] * (len(got) - len(values))


def check_tables(found, lengths, num_v_heads, *, padded=False):
    """``found`` is what the definitions say; with ``padded``, tails are as documented."""
    for name, values in tables(lengths, num_v_heads).items():
        tensor = getattr(found, name)
        if not padded:
            shape = (
                (len(values), 2) if "indices" in name and "final" not in name else (len(values),)
            )
            assert tuple(tensor.shape) == shape, name
            assert tensor.tolist() == values, name
        elif name == "cu_seqlens_kern":
            prefix_then(values, tensor, sum(lengths))
        elif name == "nonempty":
            prefix_then(values, tensor, -1)
        else:
            prefix_then(values, tensor, [-1, -1] if tensor.ndim == 2 else None)


def split_rows(lengths, speculative):
    """Row numbers by kind, as ``plan.groups`` documents them."""
    drafts = [s for s, is_draft in enumerate(speculative) if is_draft]
    others = [s for s in range(len(lengths)) if s not in drafts]
    if any(lengths[s] > 1 for s in others):
        prefill = [s for s in others if lengths[s] != 1]
        decode = [s for s in others if lengths[s] == 1]
    else:
        prefill, decode = [], others
    return {"prefill": prefill, "decode": decode, "speculative": drafts}


def token_pairs(starts):
    """Bounds of every row."""
    return list(pairwise(starts))
