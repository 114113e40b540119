"""The portable kernels in Triton's interpreter, on CPU tensors; on a GPU where there is one.

Triton is in an environment of its own: ``make triton``. Elsewhere nothing here is collected.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FOUND = importlib.util.find_spec("triton") is not None
if FOUND and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is decorated
if not FOUND:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    if not FOUND:
        return "tests/triton: not collected, Triton is not installed (make triton)"
    how = "interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "device"
    return f"tests/triton: {how}"


def pytest_collection_modifyitems(items):
    # the interpreter computes in numpy, which warns of what overflows behind a mask
    quiet = pytest.mark.filterwarnings("ignore")
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(quiet)


@pytest.fixture(autouse=True)
def _one_thread():
    """The interpreter's arrays are small; threads of torch only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
