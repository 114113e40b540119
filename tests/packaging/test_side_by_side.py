"""All four backends in one environment, on a machine where no vendor's package can be imported."""

import json
import os
import subprocess
import sys

import pytest

from tests.packaging.layout import BACKENDS, ROOT, folder, write_metadata

VENDORS = (
    "torch_npu",
    "triton",
    "intel_extension_for_pytorch",
    "vllm_xpu_kernels",
    "flashinfer",
    "fla",
)

# torch itself looks for some of them while it is imported, and lives without
PRELUDE = f"""
import sys

class Blocked:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {VENDORS}:
            self.asked.append(name)
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
import torch
Blocked.asked.clear()
"""

REASONS = {
    "ascend": ["torch-npu is not installed", "triton-ascend is not installed"],
    "cpu": ["the slower torch backend serves this CPU"],
    "cuda": ["triton is not installed"],
    "xpu": ["vllm-xpu-kernels is not installed"],
}


@pytest.fixture
def fresh_python(tmp_path):
    """Run code in a new process in which the four backends are installed."""
    for name in BACKENDS:
        write_metadata(name, tmp_path)
    path = [tmp_path, ROOT, *map(folder, BACKENDS)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GDN_DISPATCH")}
    environ |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}

    def fresh_python(code):
        result = subprocess.run(
            [sys.executable, "-c", PRELUDE + code],
            env=environ, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return fresh_python


def test_all_are_found_and_none_is_probed_before_an_answer_is_needed(fresh_python):
    seen = fresh_python(
        "import json, gdn_dispatch\n"
        "from gdn_dispatch.selection.dispatch import active_registry\n"
        "loaded = sorted(m for m in sys.modules if m.startswith('gdn_dispatch_'))\n"
        "print(json.dumps([sorted(active_registry().names), loaded, Blocked.asked]))"
    )
    names, loaded, asked = seen
    assert names == sorted([*BACKENDS, "torch"])
    assert {f"gdn_dispatch_{name}.plugin" for name in BACKENDS} <= set(loaded)
    assert not {f"gdn_dispatch_{name}.probe" for name in BACKENDS} & set(loaded)
    assert asked == []


def test_each_is_listed_with_its_distribution_and_every_reason(fresh_python):
    rows, asked = fresh_python(
        "import json, gdn_dispatch\n"
        "rows = {r.name: [r.status, r.distribution, r.version, r.why]\n"
        "        for r in gdn_dispatch.list_backends()}\n"
        "print(json.dumps([rows, Blocked.asked]))"
    )
    assert rows.pop("torch")[0] == "available"
    assert set(rows) == set(BACKENDS)
    for name, (status, distribution, version, why) in rows.items():
        assert (status, distribution, version) == ("unavailable", f"gdn-dispatch-{name}", "0.1.0")
        assert not [reason for reason in REASONS[name] if reason not in why], why
    assert asked == []


def test_doctor_works_and_names_each_reason(fresh_python):
    code, text, asked = fresh_python(
        "import contextlib, io, json\n"
        "from gdn_dispatch.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    code = main(['doctor', '--backend', 'torch'])\n"
        "print(json.dumps([code, out.getvalue(), Blocked.asked]))"
    )
    assert code == 0, text
    for name in BACKENDS:
        (row,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert "unavailable" in row
        assert not [reason for reason in REASONS[name] if reason not in row]
    assert "their kernel stacks exclude each other" in text
    assert asked == []


def test_asking_for_one_is_refused_with_its_reasons_and_does_not_fall_back(fresh_python):
    refusals = fresh_python(
        "import json, gdn_dispatch as g\n"
        "x = torch.ones(1, 1, 1, 1)\n"
        "refusals = {}\n"
        "for row in g.list_backends():\n"
        "    try:\n"
        "        g.chunk_gated_delta_rule(x, x, x, x[..., 0], x[..., 0], backend=row.name)\n"
        "    except g.BackendUnavailableError as error:\n"
        "        refusals[row.name] = str(error)\n"
        "print(json.dumps(refusals))"
    )
    assert set(refusals) == set(BACKENDS)
    for name, text in refusals.items():
        assert not [reason for reason in REASONS[name] if reason not in text], text
