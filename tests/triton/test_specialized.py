"""Kernels of specialised warps, on a Hopper GPU: no interpreter runs them; the portable ones judge.

What ``test_prefill`` shows of the portable kernels in fp32 holds these, too, if both agree: to a
fraction of what bf16 costs, in every feature. The fp64 recurrence is asked as well.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gdn_dispatch.testing.rule_inputs import Dims, no_gates, resetting_gates, strong_gates
from gdn_dispatch.triton_kernels.prefill import PrefillConfig
from gdn_dispatch.triton_kernels.rule_tensors import States
from gdn_dispatch.triton_kernels.segments import SegmentConfig
from gdn_dispatch.triton_kernels.specialized_config import SpecializedConfig, gluon_is_there
from tests.triton.prefill_inputs import check, slots_of, step_of
from tests.triton.test_prefill import as_kv, check_rows, random_pool

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_capability() != (9, 0)
    or not gluon_is_there(),
    reason="no Hopper GPU with Triton 3.6",
)

DIMS = Dims(1, 2, 128, 128)
PORTABLE = PrefillConfig(inverse_precision="fp16")
SPECIAL = [
    replace(PORTABLE, specialized=SpecializedConfig(parts=1)),
    replace(PORTABLE, specialized=SpecializedConfig(parts=2)),
    replace(PORTABLE, specialized=SpecializedConfig(parts=1, stages=2, prepare_heads=1)),
    replace(PORTABLE, specialized=SpecializedConfig(parts=2, prepare_heads=2, prepare_keys=1)),
    replace(PORTABLE, specialized=SpecializedConfig(parts=1, score_group=0)),
    replace(PORTABLE, specialized=SpecializedConfig(parts=2, score_group=0)),
]
CUT = SegmentConfig(programs=10**9, min_tokens=64, price=1.0, join_precision="tf32")
BF16_ERROR = 6e-3
SAME = 3e-4
"""Of a bf16 output: a few numbers round to the other side."""


def bf16_step(lengths, dims=DIMS, **options):
    return step_of(lengths, dims, dtype=torch.bfloat16, **options)


def agree(step, states_of, config, *, tolerance=SAME):
    """Run both kernels from states of their own; ``states_of()`` makes them, with what they write.

    Returns the output of the specialised ones, and their final states.
    """
    found = []
    for each in (replace(config, specialized=None), config):
        step.config = each
        states = states_of()
        found.append((step.run(states), states.final))
    (out, final), (special_out, special_final) = found
    assert torch.equal(out.isnan(), special_out.isnan())
    check(special_out.nan_to_num(), out.nan_to_num(), tolerance)
    if final is not None:
        assert torch.equal(final.isnan(), special_final.isnan())
        check(special_final.nan_to_num(), final.nan_to_num(), tolerance)
    return special_out, special_final


def dense(rows, dims=DIMS, *, state_v_first=True):
    first = random_pool(rows, dims, state_v_first=state_v_first)
    return first, lambda: States(
        initial=first.clone(), final=torch.full_like(first, torch.nan), state_v_first=state_v_first
    )


@pytest.mark.parametrize("config", SPECIAL)
@pytest.mark.parametrize("length", [1, 2, 15, 63, 64, 65, 127, 128, 129, 200, 1000])
def test_lengths(length, config):
    step = bf16_step([length])
    first, states = dense(1)
    out, final = agree(step, states, config)
    check_rows(step, out, first, final, tolerance=BF16_ERROR)


@pytest.mark.parametrize("config", SPECIAL)
@pytest.mark.parametrize("l2norm", [True, False])
@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (1, 4), (1, 8), (2, 4), (2, 6), (2, 10)])
def test_heads(heads, l2norm, config):
    dims = Dims(*heads, 128, 128)
    step = bf16_step([70, 0, 3, 64], dims, l2norm=l2norm)
    first, states = dense(4, dims)
    out, final = agree(step, states, config)
    check_rows(step, out, first, final, tolerance=BF16_ERROR)


@pytest.mark.parametrize("config", SPECIAL)
def test_rows_too_short_to_cut(config):
    # a configuration that cuts rows, and none that is cut
    step = bf16_step([200, 64, 1])
    first, states = dense(3)
    config = replace(config, segments=SegmentConfig(min_tokens=512))
    out, final = agree(step, states, config)
    check_rows(step, out, first, final, tolerance=BF16_ERROR)


@pytest.mark.parametrize("segments", [None, CUT], ids=["whole", "segments"])
@pytest.mark.parametrize("config", SPECIAL)
@pytest.mark.parametrize("state_v_first", [True, False])
def test_packed_with_gaps_beside_nan(state_v_first, config, segments):
    # tokens between the rows are NaN, and stay out of every row
    step = bf16_step([66, 0, 1, 0, 200], gaps=[3, 0, 7, 1, 2], spare_chunks=2)
    first, states = dense(5, state_v_first=state_v_first)
    config = replace(config, segments=segments)
    out, final = agree(step, states, config, tolerance=SAME if segments is None else 2e-3)
    check_rows(step, out, first, final, state_v_first=state_v_first, tolerance=BF16_ERROR)


@pytest.mark.parametrize("segments", [None, CUT], ids=["whole", "segments"])
@pytest.mark.parametrize("config", SPECIAL)
@pytest.mark.parametrize("pad_slot", [0, -1])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_pool_with_slots(state_dtype, pad_slot, config, segments):
    lengths, sequences = [130, 65, 9, 4, 0, 66, 131], [4, 0, 3, -1, 2, 1, 5]
    step = bf16_step(lengths, sequences=sequences)
    pool = random_pool(12, DIMS, dtype=state_dtype)
    write, read = [3, pad_slot, 1, 5, 7, 11], [3, 2, 2, 9, pad_slot, 6]
    pool[9] = torch.nan  # read by none: row 3 starts from zero
    slots = slots_of(
        write, read=read, has_initial_state=[True, True, True, False, True, True], pad_slot=pad_slot
    )

    def states():
        mine = pool.clone()
        return States(initial=mine, final=mine, slots=slots)

    config = replace(config, segments=segments)
    out, final = agree(step, states, config, tolerance=2e-3)
    for slot in set(range(12)) - {3, 5, 7, 11}:  # row 2 of the step has no tokens
        assert torch.equal(final[slot].nan_to_num(), pool[slot].nan_to_num())
    padded = sequences.index(1)
    start = step.starts[padded]
    assert (out[start : start + lengths[padded]] == 0).all()


@pytest.mark.parametrize("segments", [None, CUT], ids=["whole", "segments"])
@pytest.mark.parametrize("config", SPECIAL)
def test_checkpoints(config, segments):
    step = bf16_step([200, 20, 192])
    pool = random_pool(10, DIMS)
    checkpoints = [(0, 64, 5), (0, 192, 1), (2, 128, -1), (2, 192, 9), (-1, -1, -1)]
    slots = slots_of([4, 2, 3], checkpoints=checkpoints)

    def states():
        mine = pool.clone()
        return States(initial=mine, final=mine, slots=slots)

    config = replace(config, segments=segments)
    _, final = agree(step, states, config, tolerance=SAME if segments is None else 2e-3)
    for row, tokens, slot in checkpoints:
        if slot >= 0:
            exact = step.oracle(row, as_kv(pool[4 if row == 0 else 3]), tokens=tokens)
            check(as_kv(final[slot]), exact[1], BF16_ERROR)
    for slot in (0, 6, 7, 8):
        assert torch.equal(final[slot], pool[slot])


@pytest.mark.parametrize("config", SPECIAL[:2])
@pytest.mark.parametrize(
    "gates",
    [no_gates, strong_gates, resetting_gates(-1e4), resetting_gates(-float("inf"))],
    ids=["g = 0", "strong", "-1e4", "-inf"],
)
def test_gates(gates, config):
    step = bf16_step([150, 130], gates=gates, l2norm=True, scale=0.7)
    first, states = dense(2)
    out, final = agree(step, states, config)
    check_rows(step, out, first, final, tolerance=BF16_ERROR)


@pytest.mark.parametrize("config", SPECIAL[:2])
@pytest.mark.parametrize("neg_eigval", [False, True])
def test_raw_gates_of_any_strides(neg_eigval, config):
    step = bf16_step([90])
    rng = torch.Generator().manual_seed(3)
    a, b = (torch.randn(93, 2, generator=rng) * 4 for _ in range(2))
    step.inputs = replace(step.inputs, g=torch.stack([a, b], 2)[:, :, 0], beta=b.t().clone().t())
    step.extra = {
        "A_log": torch.tensor([0.3, -1.0]),
        "dt_bias": torch.tensor([0.5, -2.0]),
        "beta_is_logit": True,
        "allow_neg_eigval": neg_eigval,
    }
    _, states = dense(1)
    agree(step, states, config)


@pytest.mark.parametrize("config", SPECIAL)
def test_views_of_a_convolution(config):
    dims = Dims(2, 4, 128, 128)
    step = bf16_step([130], dims, l2norm=True)
    x = step.inputs
    q, k, v = torch.cat([x.q.flatten(1), x.k.flatten(1), x.v.flatten(1)], 1).split(
        [256, 256, 512], 1
    )
    step.inputs = replace(
        x, q=q.unflatten(1, (2, 128)), k=k.unflatten(1, (2, 128)), v=v.unflatten(1, (4, 128))
    )
    first, states = dense(1, dims)
    out, final = agree(step, states, config)
    check_rows(step, out, first, final, tolerance=BF16_ERROR)


@pytest.mark.parametrize("config", SPECIAL[:2])
def test_what_descriptors_cannot_address_is_left_to_the_portable_kernels(config):
    step = bf16_step([130])
    x = step.inputs
    apart = torch.cat([x.k.flatten(1), x.k.flatten(1)[:, :1]], 1)[:, :128]  # rows of 258 bytes
    step.inputs = replace(x, k=apart.unflatten(1, (1, 128)))
    _, states = dense(1)
    agree(step, states, config, tolerance=0.0)


@pytest.mark.parametrize("parts", [1, 2])
def test_no_bit_depends_on_how_it_is_launched(parts):
    step = bf16_step([300, 64, 5], Dims(2, 8, 128, 128))
    step.config = SPECIAL[2]
    _, states = dense(3, step.dims)
    one, other = states(), states()
    out = step.run(one)
    step.config = replace(PORTABLE, specialized=SpecializedConfig(parts=parts))
    assert torch.equal(step.run(other).nan_to_num(), out.nan_to_num())
    assert torch.equal(one.final, other.final)
