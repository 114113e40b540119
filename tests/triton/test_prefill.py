"""The chunked rule in Triton's interpreter, against the fp64 recurrence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gdn_dispatch.testing.rule_inputs import Dims, no_gates, resetting_gates, strong_gates
from gdn_dispatch.torch_backend.reference import reference_gates
from gdn_dispatch.triton_kernels import segments
from gdn_dispatch.triton_kernels.rule_tensors import States
from gdn_dispatch.triton_kernels.segments import SegmentConfig, segment_tokens
from tests.triton.prefill_inputs import PRECISE, check, slots_of, step_of

SMALL = Dims(1, 2, 16, 32)
TOLERANCE = 2e-6
SEGMENTS = SegmentConfig(
    programs=10**9, min_tokens=64, price=1.0, num_stages=1, join_precision="ieee"
)
CUT = replace(PRECISE, segments=SEGMENTS)
IN_PARTS = replace(PRECISE, block_v=16, prepare_columns=16, parts=8)


def random_pool(slots, dims, *, state_v_first=True, dtype=torch.float32, seed=0):
    shape = (dims.V, dims.K) if state_v_first else (dims.K, dims.V)
    rng = torch.Generator().manual_seed(100 + seed)
    return torch.randn(slots, dims.HV, *shape, generator=rng).to(dtype)


def as_kv(state, state_v_first=True):
    return state.transpose(-1, -2) if state_v_first else state


def check_rows(step, out, states, final, *, state_v_first=True, tolerance=TOLERANCE):
    """Every row against the oracle; ``states`` and ``final``: by row, in the layout asked for."""
    for row, (start, length) in enumerate(zip(step.starts, step.lengths, strict=True)):
        first = None if states is None else as_kv(states[row], state_v_first)
        exact, exact_state = step.oracle(row, first)
        if length:
            check(out[start : start + length], exact, tolerance)
        if final is not None:
            check(as_kv(final[row], state_v_first), exact_state, tolerance)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
def test_lengths(length):
    step = step_of([length], SMALL)
    final = torch.full((1, 2, 32, 16), torch.nan)
    check_rows(step, step.run(States(final=final)), None, final)


@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (1, 4), (1, 8), (2, 4)])
def test_heads(heads):
    step = step_of([70, 0, 3], Dims(*heads, 16, 16))
    first = random_pool(3, step.dims)
    final = torch.full_like(first, torch.nan)
    check_rows(step, step.run(States(initial=first, final=final)), first, final)


@pytest.mark.parametrize(
    ("K", "V"), [(16, 64), (64, 16), (20, 33), (33, 20), (128, 64), (256, 16), (16, 256)]
)
def test_dims(K, V):
    step = step_of([67, 5], Dims(1, 1, K, V))
    first = random_pool(2, step.dims)
    final = torch.full_like(first, torch.nan)
    check_rows(step, step.run(States(initial=first, final=final)), first, final)


@pytest.mark.parametrize("l2norm", [True, False])
@pytest.mark.parametrize(("K", "V"), [(32, 16), (40, 20), (128, 16), (256, 16)])
def test_operands_in_parts(K, V, l2norm):
    step = step_of([67, 0, 64], Dims(1, 2, K, V), l2norm=l2norm, config=IN_PARTS)
    first = random_pool(3, step.dims)
    final = torch.full_like(first, torch.nan)
    check_rows(step, step.run(States(initial=first, final=final)), first, final)


@pytest.mark.parametrize("config", [IN_PARTS, replace(IN_PARTS, segments=SEGMENTS)])
def test_a_pool_and_checkpoints_in_parts(config):
    step = step_of([200, 20], Dims(1, 2, 32, 32), config=config)
    pool = random_pool(6, step.dims, state_v_first=False)
    before = pool.clone()
    slots = slots_of([4, 2], read=[1, 2], checkpoints=[(0, 64, 5), (0, 192, 0)])
    out = step.run(States(initial=pool, final=pool, slots=slots, state_v_first=False))
    check_rows(step, out, before[[1, 2]], pool[[4, 2]], state_v_first=False)
    for tokens, slot in ((64, 5), (192, 0)):
        check(pool[slot], step.oracle(0, before[1], tokens=tokens)[1], TOLERANCE)


@pytest.mark.parametrize(
    ("columns", "dtype"), [(16, torch.float32), (32, torch.float32), (32, torch.float16)]
)
def test_the_preparation_by_columns(columns, dtype):
    """Where products are made of some columns at a time, with descriptors behind them."""
    config = replace(PRECISE, prepare_columns=columns, late_reads=True)
    step = step_of([67, 130], Dims(2, 4, 64, 32), l2norm=True, config=config, dtype=dtype)
    first = random_pool(2, step.dims)
    final = torch.full_like(first, torch.nan)
    out = step.run(States(initial=first, final=final))
    tolerance = TOLERANCE if dtype == torch.float32 else 1e-3
    check_rows(step, out, first, final, tolerance=tolerance)


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("state_v_first", [True, False])
@pytest.mark.parametrize("config", [PRECISE, CUT], ids=["whole", "segments"])
def test_packed_with_gaps(config, state_v_first, descriptors):
    config = replace(config, use_descriptors=descriptors)
    step = step_of([66, 0, 1, 0, 200], SMALL, gaps=[3, 0, 7, 1, 2], spare_chunks=2, config=config)
    first = random_pool(5, SMALL, state_v_first=state_v_first)
    final = torch.full_like(first, torch.nan)
    out = step.run(States(initial=first, final=final, state_v_first=state_v_first))
    check_rows(step, out, first, final, state_v_first=state_v_first)
    untouched = torch.ones(out.shape[0], dtype=torch.bool)
    for start, length in zip(step.starts, step.lengths, strict=True):
        untouched[start : start + length] = False
    assert out[untouched].isnan().all()


def test_a_row_of_no_tokens_leaves_zeros_without_a_state():
    step = step_of([0, 4, 0], SMALL)
    final = torch.full((3, 2, 32, 16), torch.nan)
    step.run(States(final=final))
    assert (final[[0, 2]] == 0).all()


@pytest.mark.parametrize("config", [PRECISE, CUT], ids=["whole", "segments"])
@pytest.mark.parametrize("pad_slot", [0, -1])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float16])
def test_pool_with_slots(config, pad_slot, state_dtype):
    # rows of the group are rows 4, 0, 3, -, 2, 1, 5 of the step
    lengths = [130, 65, 9, 4, 0, 66, 131]
    sequences = [4, 0, 3, -1, 2, 1, 5]
    step = step_of(lengths, SMALL, sequences=sequences, config=config)
    pool = random_pool(12, SMALL, dtype=state_dtype)
    #       row of the step 0  1         2  3  4  5
    write = [3, pad_slot, 1, 5, 7, 11]
    read = [3, 2, 2, 9, pad_slot, 6]
    has_initial_state = [True, True, True, False, True, True]
    pool[9] = torch.nan  # read by none: row 3 starts from zero
    if pad_slot >= 0:
        pool[pad_slot] = torch.nan
    before = pool.clone()
    slots = slots_of(write, read=read, has_initial_state=has_initial_state, pad_slot=pad_slot)
    out = step.run(States(initial=pool, final=pool, slots=slots))

    written = set()
    for row, sequence in enumerate(sequences):
        start, length = step.starts[row], step.lengths[row]
        mine = out[start : start + length]
        if sequence < 0:
            assert mine.isnan().all()
            continue
        if write[sequence] == pad_slot:
            assert (mine == 0).all()
            continue
        if length == 0:
            continue
        zero = read[sequence] == pad_slot or not has_initial_state[sequence]
        first = None if zero else before[read[sequence]].transpose(-1, -2)
        exact, exact_state = step.oracle(row, first)
        check(mine, exact, TOLERANCE)
        tolerance = TOLERANCE if state_dtype == torch.float32 else 1e-3
        check(pool[write[sequence]].transpose(-1, -2), exact_state, tolerance)
        written.add(write[sequence])
    for slot in set(range(12)) - written:
        same = pool[slot].view(torch.uint8 if state_dtype.itemsize == 1 else torch.int16)
        assert torch.equal(same, before[slot].view(torch.int16))


def test_slots_outside_the_pool_are_padding():
    step = step_of([5, 6], SMALL)
    pool = random_pool(2, SMALL)
    before = pool.clone()
    out = step.run(States(initial=pool, final=pool, slots=slots_of([2, 1], read=[0, 7])))
    assert (out[:5] == 0).all()
    check(out[5:11], step.oracle(1)[0], TOLERANCE)
    assert torch.equal(pool[0], before[0])


@pytest.mark.parametrize("config", [PRECISE, CUT], ids=["whole", "segments"])
def test_checkpoints(config):
    step = step_of([200, 20, 192], SMALL, config=config)
    pool = random_pool(10, SMALL)
    before = pool.clone()
    checkpoints = [(0, 64, 5), (0, 192, 1), (2, 128, -1), (2, 192, 9), (-1, -1, -1)]
    slots = slots_of([1 + 3, 2, 3], checkpoints=checkpoints)
    out = step.run(States(initial=pool, final=pool, slots=slots))
    check_rows(step, out, before[[4, 2, 3]], pool[[4, 2, 3]])
    for row, tokens, slot in checkpoints:
        if slot >= 0:
            exact = step.oracle(
                row, before[4 - 0 if row == 0 else 3].transpose(-1, -2), tokens=tokens
            )
            check(pool[slot].transpose(-1, -2), exact[1], TOLERANCE)
    for slot in (0, 6, 7, 8):
        assert torch.equal(pool[slot], before[slot])


@pytest.mark.parametrize("config", [PRECISE, CUT], ids=["whole", "segments"])
@pytest.mark.parametrize(
    "gates",
    [no_gates, strong_gates, resetting_gates(-1e4), resetting_gates(-float("inf"))],
    ids=["g = 0", "strong", "-1e4", "-inf"],
)
def test_gates(gates, config):
    step = step_of([150, 130], SMALL, gates=gates, config=config, l2norm=True, scale=0.7)
    first = random_pool(2, SMALL)
    final = torch.full_like(first, torch.nan)
    check_rows(step, step.run(States(initial=first, final=final)), first, final)


def test_a_reset_forgets_all_and_nothing_else():
    step = step_of([100], SMALL, gates=no_gates)
    step.inputs.g[70] = -float("inf")
    first = torch.full((1, 2, 32, 16), 1e30)
    final = torch.full_like(first, torch.nan)
    out = step.run(States(initial=first, final=final))
    exact, exact_state = step.oracle(0, as_kv(first[0]))
    check(out[70:100], exact[70:], TOLERANCE)
    check(as_kv(final[0]), exact_state, TOLERANCE)


# With beta = 2 every step is nearly a reflection, and rounding grows: to 7e-6 .. 1e-4 in fp32, by
# the order in which the interpreter's BLAS adds (its kernels for SkylakeX .. for Haswell).
@pytest.mark.parametrize(("beta", "tolerance"), [(1.0, 1e-5), (1.5, 1e-5), (2.0, 5e-4)])
def test_keys_that_are_nearly_the_same(beta, tolerance):
    step = step_of([140], SMALL, gates=no_gates, correlated=True)
    step.inputs.beta[:140] = beta
    final = torch.full((1, 2, 32, 16), torch.nan)
    check_rows(step, step.run(States(final=final)), None, final, tolerance=tolerance)


@pytest.mark.parametrize("inverse_precision", ["ieee", "fp16"])
def test_fp16_inputs_with_states_beyond_fp16(inverse_precision):
    config = replace(PRECISE, inverse_precision=inverse_precision)
    step = step_of([130], SMALL, dtype=torch.float16, config=config)
    first = random_pool(1, SMALL) * 1e6
    final = torch.full_like(first, torch.nan)
    out = step.run(States(initial=first, final=final))
    exact, exact_state = step.oracle(0, as_kv(first[0]))
    assert torch.isfinite(final).all()
    check(as_kv(final[0]), exact_state, TOLERANCE if inverse_precision == "ieee" else 1e-3)
    finite = exact.abs() < 6e4
    check(out[:130][finite], exact[finite], 1e-3)


@pytest.mark.parametrize("neg_eigval", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_raw_gates(neg_eigval, biased):
    step = step_of([90], SMALL)
    rng = torch.Generator().manual_seed(3)
    a, b = (torch.randn(93, 2, generator=rng) * 4 for _ in range(2))
    a[5], a[6], b[7] = 40.0, -40.0, -120.0
    A_log = torch.tensor([0.3, -1.0])
    dt_bias = torch.tensor([0.5, -2.0]) if biased else None
    g, beta = reference_gates(
        a, b, A_log, torch.zeros(2) if dt_bias is None else dt_bias, allow_neg_eigval=neg_eigval
    )
    exact_inputs = replace(step.inputs, g=g, beta=beta)
    # gates as columns of a projection, of any strides
    step.inputs = replace(step.inputs, g=torch.stack([a, b], 2)[:, :, 0], beta=b.t().clone().t())
    step.extra = {
        "A_log": A_log,
        "dt_bias": dt_bias,
        "beta_is_logit": True,
        "allow_neg_eigval": neg_eigval,
    }
    final = torch.full((1, 2, 32, 16), torch.nan)
    out = step.run(States(final=final))
    step.inputs = exact_inputs
    check_rows(step, out, None, final)


@pytest.mark.parametrize("descriptors", [True, False])
def test_views_of_a_convolution(descriptors):
    dims = Dims(2, 4, 16, 32)
    step = step_of([130], dims, l2norm=True, config=replace(PRECISE, use_descriptors=descriptors))
    x = step.inputs
    packed = torch.cat([x.q.flatten(1), x.k.flatten(1), x.v.flatten(1)], 1)
    q, k, v = packed.split([32, 32, 128], 1)
    step.inputs = replace(
        x, q=q.unflatten(1, (2, 16)), k=k.unflatten(1, (2, 16)), v=v.unflatten(1, (4, 32))
    )
    final = torch.full((1, 4, 32, 16), torch.nan)
    out = torch.full((133, 4, 32), torch.nan)
    out = step.run(States(final=final))
    check_rows(step, out, None, final)


def test_segments_only_where_they_pay():
    config = SegmentConfig(programs=264, min_tokens=512, price=3.0)
    alone = {"programs": 16, "rows": 1}
    assert segment_tokens(config, tokens=32768, max_seqlen=32768, **alone) == 2048
    assert segment_tokens(config, tokens=1024, max_seqlen=1024, **alone) == 0
    assert segment_tokens(config, tokens=32768, max_seqlen=32768, programs=128, rows=1) == 0


@pytest.mark.parametrize("rows", [1, 4])
def test_every_row_costs_something_to_cut(rows):
    config = SegmentConfig(programs=128, min_tokens=64, price=1.5, fixed_tokens=300)
    size = segment_tokens(config, tokens=2048, max_seqlen=2048, programs=64, rows=rows)
    assert size == (1024 if rows == 1 else 0)


def test_a_captured_launch_serves_longer_rows_than_it_was_captured_with(monkeypatch):
    """What the host knew when it launched was the first step; the tensors hold a later one."""
    monkeypatch.setattr(segments, "is_capturing", lambda device: True)
    step = step_of([200, 3], SMALL, spare_chunks=2, config=CUT)
    step.rows = replace(step.rows, max_seqlen=130)
    first = random_pool(2, SMALL)
    final = torch.full_like(first, torch.nan)
    out = step.run(States(initial=first, final=final))
    check_rows(step, out, first, final)
