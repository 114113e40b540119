"""Ascend without an NPU: triton-ascend's interpreter, its lowering, BiShengIR's memory planning.

triton-ascend is in an environment of its own: ``make ascend``. Elsewhere nothing but the lint is
collected.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

found = importlib.util.find_spec("triton")
FOUND = found is not None and (Path(found.origin).parent / "backends" / "ascend").is_dir()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = []
if INTERPRETED:
    collect_ignore_glob += ["test_lint.py"]
if not FOUND or INTERPRETED:
    collect_ignore_glob += ["test_lowering.py", "test_memory*.py"]
if not INTERPRETED or found is None:
    collect_ignore_glob += ["test_interpreted_*.py"]


def pytest_report_header():
    if found is None:
        return "tests/ascend: the lint alone, triton-ascend is not installed (make ascend)"
    which = "triton-ascend" if FOUND else "triton"
    return f"tests/ascend: {which}, {'interpreted' if INTERPRETED else 'lowered, not run'}"


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
