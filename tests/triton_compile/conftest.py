"""Compiling only: for the environment with Triton (``make triton``), without its interpreter."""

import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

FOUND = importlib.util.find_spec("triton") is not None
if not FOUND or os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    if not FOUND:
        return "tests/triton_compile: not collected, Triton is not installed (make triton)"
    return None
