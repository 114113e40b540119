"""What a conversion copies."""

from __future__ import annotations

import pytest
import torch
from gdn_dispatch_cuda.providers.convert import Batch, initial_states, result
from torch.utils._python_dispatch import TorchDispatchMode

from backends.cuda.tests.test_providers import HV, D, request


class Copies(TorchDispatchMode):
    """Counts what would be a launch on a device: everything but views and empty memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_v_first", [False, True])
def test_states_are_copied_once_at_most(dtype, state_v_first):
    r = request()
    r.initial_state = r.initial_state.to(dtype)
    r.state_v_first = state_v_first
    batch = Batch.of(r)
    same = state_v_first and dtype == torch.float32
    with Copies() as copies:
        state = initial_states(r, batch, v_first=True)
    assert len(copies.names) == (0 if same else 1), copies.names
    assert state.is_contiguous()
    assert state.dtype == torch.float32
    output = torch.zeros(1, sum((70, 33)), HV, D, dtype=r.v.dtype)
    with Copies() as copies:
        given = result(r, batch, output, state, v_first=True)
    assert len(copies.names) == (0 if state_v_first else 1), copies.names
    torch.testing.assert_close(given.final_state, r.initial_state.float())
