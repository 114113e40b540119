"""An initial state given away: the same numbers, in its memory where that can hold them."""

import pytest
import torch

from gdn_dispatch.testing.numbers import same_bits
from gdn_dispatch.testing.rule_inputs import Dims, inputs_with, mild_gates, random_states
from tests.support.rule_calls import recurrent, run_packed

LENGTHS = (1, 0, 3, 300)  # the last is longer than a block of steps
DIMS = Dims(H=2, HV=4, K=16, V=24)


@pytest.fixture
def inputs():
    return inputs_with(mild_gates, sum(LENGTHS), DIMS, seed=0)


@pytest.fixture(params=[False, True], ids=["K first", "V first"])
def layout(request):
    return {"state_v_first": request.param}


def states(layout):
    found = random_states(len(LENGTHS), DIMS, seed=0).float()
    return found.mT.contiguous() if layout["state_v_first"] else found


def test_final_state_is_the_donated_tensor_with_the_same_bits(inputs, layout):
    expected = run_packed(recurrent, inputs, LENGTHS, initial_state=states(layout), **layout)
    donated = states(layout)
    got = run_packed(
        recurrent, inputs, LENGTHS, initial_state=donated, donate_initial_state=True, **layout
    )
    assert got[1] is donated
    assert all(map(same_bits, got, expected))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.bfloat16(),
        lambda x: x.mT.contiguous().mT,
        lambda x: x[:1].expand(len(LENGTHS), -1, -1, -1),
        lambda x: torch.stack((x, x), dim=1)[:, 0],
    ],
    ids=["bf16", "other strides", "one state for all", "every other slot"],
)
def test_state_that_cannot_hold_the_result_keeps_its_values(inputs, change):
    donated = change(states({"state_v_first": False}))
    before = donated.clone()
    expected = run_packed(recurrent, inputs, LENGTHS, initial_state=before)
    got = run_packed(recurrent, inputs, LENGTHS, initial_state=donated, donate_initial_state=True)
    assert all(map(same_bits, got, expected))
    assert same_bits(donated, before)


def test_nothing_is_overwritten_where_gradients_are_wanted(inputs):
    donated = states({"state_v_first": False}).requires_grad_()
    before = donated.detach().clone()
    _, final = run_packed(
        recurrent, inputs, LENGTHS, initial_state=donated, donate_initial_state=True
    )
    assert same_bits(donated.detach(), before)
    (grad,) = torch.autograd.grad(final.sum(), donated)
    assert grad.isfinite().all()


def test_without_a_final_state_nothing_is_overwritten(inputs):
    donated = states({"state_v_first": False})
    before = donated.clone()
    _, final = recurrent(
        *inputs.rows(0, len(LENGTHS)).map(lambda x: x.unsqueeze(1)),
        initial_state=donated,
        donate_initial_state=True,
    )
    assert final is None
    assert same_bits(donated, before)
