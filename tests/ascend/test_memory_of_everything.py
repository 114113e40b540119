"""The rest of the table: what the backend declares beyond what is served by default.

Longer than CI has: ``nox -s ascend``.
"""

from __future__ import annotations

import cases
import memory
import pytest
from test_memory import SERVED, check, names, needs_compiler

EVERYTHING, _ = cases.launches(everything=True)
REST = [launch for launch in EVERYTHING if launch.key not in {one.key for one in SERVED}]


@needs_compiler
@pytest.mark.parametrize("launch", REST, ids=names(REST))
def test_all_other_kernels(launch):
    check(launch)


def test_the_table_has_these_kernels_and_no_others():
    ours = {(launch.kernel, launch.variant()) for launch in EVERYTHING}
    assert set(memory.committed()) == ours
    assert len(ours) == len(EVERYTHING)
