"""The detector of host reads: nothing that hands a value to Python gets past it, and nothing else
is taken for one.

Nearly all of it is on the CPU, where such a read costs nothing and only the detector sees it.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gdn_dispatch.testing.host_reads import record_host_reads

X = torch.tensor([3.0, 0.0, 1.0, 2.0])
ONE = torch.tensor(1)
COUNTS = torch.tensor([2, 0, 1, 3])
MASK = X > 0.5

READS = {
    "item": lambda: ONE.item(),
    "tolist": lambda: X.tolist(),
    "numpy": lambda: X.numpy(),
    "np.asarray": lambda: np.asarray(X),
    "np.from_dlpack": lambda: np.from_dlpack(X),
    "cpu": lambda: X.cpu(),
    "int": lambda: int(ONE),
    "float": lambda: float(ONE),
    "complex": lambda: complex(ONE),
    "bool": lambda: bool(ONE),
    "if": lambda: 1 if ONE else 0,
    "and": lambda: ONE and ONE,
    "not": lambda: not ONE,
    "comparison in a condition": lambda: 1 if X.max() > 2 else 0,
    "range": lambda: range(ONE),
    "a list's index": lambda: [10, 20][ONE],
    "a tensor's index": lambda: X[ONE],
    "the bound of a slice": lambda: X[:ONE],
    "a shape": lambda: torch.zeros(ONE),
    "in": lambda: 3.0 in X,
    "math": lambda: math.exp(ONE),
    "format": lambda: f"{ONE}",
    "repr": lambda: repr(X),
    "nonzero": lambda: X.nonzero(),
    "nonzero as a tuple": lambda: X.nonzero(as_tuple=True),
    "argwhere": lambda: torch.argwhere(X),
    "where with one argument": lambda: torch.where(MASK),
    "a boolean mask": lambda: X[MASK],
    "a boolean mask beside a slice": lambda: X[None, MASK],
    "writing through a boolean mask": lambda: X.clone().__setitem__(MASK, X[:3]),
    "masked_select": lambda: X.masked_select(MASK),
    "unique": lambda: X.unique(),
    "unique_consecutive": lambda: X.unique_consecutive(),
    "unique of rows": lambda: X[:, None].unique(dim=0),
    "bincount": lambda: COUNTS.bincount(),
    "equal": lambda: X.equal(X),
    "allclose": lambda: X.allclose(X),
    "is_nonzero": lambda: ONE.is_nonzero(),
    "repeat_interleave": lambda: X.repeat_interleave(COUNTS),
    "repeat_interleave of counts": lambda: torch.repeat_interleave(COUNTS),
}

ORDINARY = {
    "arithmetic": lambda: (X * 2 + 1).exp().sum(),
    "matmul": lambda: X[None] @ X[:, None],
    "where": lambda: torch.where(MASK, X, 0.0),
    "masked_fill": lambda: X.masked_fill(MASK, 0.0),
    "a slice": lambda: X[1:3],
    "an index": lambda: X[2],
    "gathering by a tensor": lambda: X[COUNTS],
    "index_select": lambda: X.index_select(0, COUNTS),
    "scattering by a tensor": lambda: X.clone().__setitem__(COUNTS, 0.0),
    "index_put_": lambda: X.clone().index_put_((COUNTS,), X),
    "index_add_": lambda: X.clone().index_add_(0, COUNTS, X),
    "sort and cumsum": lambda: X.sort().values.cumsum(0),
    "searchsorted": lambda: torch.searchsorted(COUNTS.cumsum(0), COUNTS),
    "topk": lambda: X.topk(2),
    "repeat_interleave by a number": lambda: X.repeat_interleave(3),
    "repeat_interleave of known length": lambda: X.repeat_interleave(COUNTS, output_size=6),
    "nonzero of known length": lambda: torch.nonzero_static(X, size=3),
    "shapes and strides": lambda: (X.shape[0], len(X), X.stride(), X.numel(), X.dim()),
    "iteration": lambda: list(X),
    "split by numbers": lambda: X.split([1, 3]),
    "unbind": lambda: X.unbind(),
    "copy and cast": lambda: X.clone().to(torch.bfloat16).copy_(X),
    "to the same device": lambda: X.to("cpu"),
    "softplus": lambda: F.softplus(X),
    "convolution": lambda: F.conv1d(X[None, None], X[None, None, :2]),
    "new memory": lambda: torch.empty_like(X).zero_(),
    "data_ptr": lambda: X.data_ptr(),
    "is None": lambda: X is None,
}  # fmt: skip


@pytest.mark.parametrize("read", READS)
def test_a_read_is_recorded(read):
    with record_host_reads() as found:
        READS[read]()
    assert found, f"{read} went unseen"


@pytest.mark.parametrize("operator", ORDINARY)
def test_an_ordinary_operator_is_none(operator):
    with record_host_reads() as found:
        ORDINARY[operator]()
    assert not found


@pytest.mark.parametrize(
    "bring",
    [
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(device=torch.device("cpu")),
        lambda x: x.to(X),
        lambda x: X.clone().copy_(x),
        lambda x: torch.zeros(4).copy_(x, non_blocking=True),
    ],
    ids=["cpu", "to", "to by keyword", "to another's device", "copy_", "copy_ without waiting"],
)
def test_bringing_a_tensor_from_a_device_is_recorded(bring):
    # meta is the one device besides the CPU that every machine has; it has no values to bring
    with record_host_reads() as found, pytest.raises((NotImplementedError, RuntimeError)):
        bring(torch.empty(4, device="meta"))
    assert found


@pytest.mark.parametrize(
    "send", [lambda x: x.to("meta"), lambda x: torch.empty(4, device="meta").copy_(x)]
)
def test_sending_a_tensor_to_a_device_is_no_read(send):
    with record_host_reads() as found:
        send(X)
    assert not found


@pytest.mark.parametrize("read", READS)
def test_of_code_for_a_device_the_cpus_tensors_may_be_read(read):
    with record_host_reads("meta") as found:
        READS[read]()
    assert not found


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.where(x),
        lambda x: COUNTS.clone().copy_(x),
    ],
    ids=["tolist", "bool", "nonzero", "a boolean mask", "where", "copy_"],
)
def test_of_code_for_a_device_a_read_of_its_tensors_is_recorded(read):
    with (
        record_host_reads("meta") as found,
        pytest.raises((NotImplementedError, RuntimeError)),
    ):
        read(torch.empty(4, dtype=torch.int64, device="meta"))
    assert found


def test_the_line_that_reads_is_named():
    with record_host_reads() as found:
        ONE.item()
    here = test_the_line_that_reads_is_named.__code__.co_firstlineno + 2
    assert found[0] == f"torch.Tensor.item at test_host_reads.py:{here}"


def test_a_read_gives_what_it_would_have_given():
    with record_host_reads():
        assert ONE.item() == 1
        assert X[MASK].tolist() == [3.0, 1.0, 2.0]


def test_nothing_is_recorded_outside():
    with record_host_reads() as found:
        pass
    ONE.item()
    assert not found
