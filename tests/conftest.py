"""Settings of every test.

One thread: operators here are small, and two processes that both use every core wait for each
other more than they compute. Tests that are about threads set their own number.
"""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
