"""The kernels compile for every architecture, and none of them spills.

All configurations are in ``benchmarks/results/triton_resources.json``, made by ``resources.py``;
here one layer is compiled, and the table is held to the rules.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = ROOT / "benchmarks" / "results" / "triton_resources.json"
ANYWHERE = {"conv_prefill_kernel", "conv_update_kernel", "recurrent_kernel", "operands_kernel"}
PORTABLE = {"prepare_kernel", "recurrence_kernel"}
SPECIALIZED = {"specialized_prepare_kernel", "specialized_recurrence_kernel"}
SEGMENTS = {"specialized_segment_kernel", "join_segments_kernel"}

CODE = """
import json, sys
sys.path.insert(0, {here!r})
import cases, resources
from gdn_dispatch import LayerSpec, warmup
import torch

def work(backend):
    spec = LayerSpec(2, 4, 128, 128, torch.bfloat16, torch.float32, num_speculative_tokens=2)
    warmup(spec, "cpu", max_num_seqs=2, max_num_tokens=8192, backend=backend)
    cases.conversions()

found = resources.collect({arch}, work)
print(json.dumps([launch.row() | {{"grid": launch.grid}} for launch in found]))
"""


def rows():
    return json.loads(TABLE.read_text())["kernels"]


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_a_layer_compiles(arch):
    code = CODE.format(here=str(HERE), arch=arch)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    launches = json.loads(done.stdout.splitlines()[-1])
    kernels = {launch["kernel"] for launch in launches}
    assert kernels == ANYWHERE | (SPECIALIZED | SEGMENTS if arch == 90 else PORTABLE)
    for launch in launches:
        assert not launch["unwritten"], launch
        assert launch["grid"][1:] == [1, 1]  # only the first axis may be large
        assert launch["stack"] == 0, launch
        assert not launch["serialized"], launch


def test_the_table_has_every_kernel_and_architecture():
    found = {(row["kernel"], row["arch"]) for row in rows()}
    architectures = (80, 90, 100, 120)
    assert found >= {(kernel, arch) for kernel in ANYWHERE | PORTABLE for arch in architectures}
    assert found >= {(kernel, 90) for kernel in SPECIALIZED | SEGMENTS}


def test_no_kernel_spills():
    assert [row for row in rows() if row["stack"]] == []


def test_no_product_of_a_specialised_kernel_waits_for_the_one_before():
    assert [row for row in rows() if row["serialized"] and "specialized" in row["kernel"]] == []


def test_no_kernel_reads_a_register_that_nobody_wrote():
    assert [row for row in rows() if row["unwritten"]] == []
