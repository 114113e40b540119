"""Poisoned memory: whatever is allocated without being filled is filled with what shows."""

import threading

import pytest
import torch

from gdn_dispatch.selection.dispatch import current_backend, use_backend
from gdn_dispatch.testing.poison import PoisonedMemory, in_new_thread, with_poisoned_memory

X = torch.ones(2, 3)

ALLOCATIONS = {
    "empty": lambda: torch.empty(2, 3),
    "empty_like": lambda: torch.empty_like(X),
    "empty_strided": lambda: torch.empty_strided((2, 3), (3, 1)),
    "empty_permuted": lambda: torch.empty_permuted((2, 3), (1, 0)),
    "new_empty": lambda: X.new_empty(2, 3),
    "new_empty_strided": lambda: X.new_empty_strided((2, 3), (3, 1)),
    "the class": lambda: torch.Tensor(2, 3),
    "empty with bf16": lambda: torch.empty(2, 3, dtype=torch.bfloat16),
}
FILLED = {
    "zeros": lambda: torch.zeros(2, 3),
    "full": lambda: torch.full((2, 3), 7.0),
    "zeros_like": lambda: torch.zeros_like(X),
    "an operator": lambda: X + X,
    "clone": lambda: X.clone(),
    "a copy of strides": lambda: X.t().contiguous(),
    "cat": lambda: torch.cat([X, X]),
    "a cast": lambda: X.to(torch.float64),
}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_memory_nobody_filled_is_poison(allocation):
    with PoisonedMemory() as memory:
        found = ALLOCATIONS[allocation]()
    assert found.isnan().all()
    assert memory.count == 1


@pytest.mark.parametrize("allocation", FILLED)
def test_memory_somebody_filled_is_not(allocation):
    with PoisonedMemory():
        found = FILLED[allocation]()
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "poison"), [(torch.int32, 2**31 - 1), (torch.int64, 2**63 - 1), (torch.bool, True)]
)
def test_poison_of_other_dtypes_shows_too(dtype, poison):
    with PoisonedMemory():
        found = torch.empty(4, dtype=dtype)
    assert found.tolist() == [poison] * 4


def test_a_function_that_reads_before_writing_is_caught():
    assert with_poisoned_memory(lambda: torch.empty(3) * 0 + 1).isnan().all()
    assert with_poisoned_memory(lambda: torch.empty(3).fill_(1) * 2).eq(2).all()


def test_a_function_that_allocates_nothing_is_no_proof():
    with pytest.raises(AssertionError, match="nothing was allocated"):
        with_poisoned_memory(lambda: X.sum())


def test_scratch_memory_of_earlier_calls_is_not_there():
    """A workspace kept from call to call is kept by thread, so a new thread starts without."""
    kept = threading.local()
    kept.scratch = X
    assert with_poisoned_memory(lambda: (torch.empty(1), getattr(kept, "scratch", None))[1]) is None


def test_the_choice_of_a_backend_holds_in_the_new_thread():
    with use_backend("torch"):
        assert in_new_thread(lambda: current_backend("xpu")) == "torch"


def test_an_exception_arrives_from_the_new_thread():
    with pytest.raises(ZeroDivisionError):
        in_new_thread(lambda: 1 / 0)
