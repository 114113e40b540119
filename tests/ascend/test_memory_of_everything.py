"""Kernels beyond those served by default: other dtypes, pools and options; no table, but they fit.

Longer than CI has: ``nox -s ascend-kernels``.
"""

from __future__ import annotations

import cases
import pytest
from test_memory import SERVED, fits, names, needs_compiler

EVERYTHING, _ = cases.launches(everything=True)
REST = [launch for launch in EVERYTHING if launch.key not in {one.key for one in SERVED}]


@needs_compiler
@pytest.mark.parametrize("launch", REST, ids=names(REST))
def test_all_other_kernels(launch):
    fits(launch)
