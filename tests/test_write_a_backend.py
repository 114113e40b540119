"""The example backend as a third party has it: built, installed, found, chosen, held to the kit.

And the page that leads there: what it shows runs, and no hook is missing from it.
"""

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gdn_dispatch.plugins.inspection import SPECS

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "examples" / "write_a_backend"
PAGE = (ROOT / "docs" / "writing_a_backend.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CONSOLE = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
HEADINGS = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the project."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    pip(
        "wheel", "--no-index", "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder / "dist", folder / "project",
    )  # fmt: skip
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder the wheel is installed into."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-index", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture
def python(installed, tmp_path):
    """Run a fresh interpreter that has the package, somewhere else than in the repository."""
    env = {name: value for name, value in os.environ.items() if "GDN_DISPATCH" not in name}
    env |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def python(*arguments, cwd=tmp_path):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)

    return python


def row(table, name):
    """The words of the line of ``table`` that begins with ``name``."""
    (found,) = [line.split() for line in table.splitlines() if line.split()[:1] == [name]]
    return found


def test_wheel_is_what_pip_would_publish(wheel):
    assert wheel.name == "gdn_dispatch_numpy-0.1.0-py3-none-any.whl"


def test_entry_point_is_found(python):
    code = (
        "from importlib.metadata import entry_points\n"
        "(e,) = [e for e in entry_points(group='gdn_dispatch.backends') if e.name == 'numpy']\n"
        "print(e.value, e.dist.name, e.dist.version)"
    )
    result = python("-c", code)
    assert result.stdout.split() == ["gdn_dispatch_numpy.plugin", "gdn-dispatch-numpy", "0.1.0"]


def test_import_of_the_core_loads_the_hooks_and_no_kernel(python):
    code = (
        "import sys, gdn_dispatch\n"
        "print(*sorted(m for m in sys.modules if m.startswith('gdn_dispatch_numpy')))"
    )
    loaded = {name.rpartition(".")[2] for name in python("-c", code).stdout.split()}
    assert loaded == {"gdn_dispatch_numpy", "plugin", "capability", "probe"}


def test_doctor_lists_it_and_leaves_the_choice_as_it_was(python):
    result = python("-m", "gdn_dispatch", "doctor")
    assert row(result.stdout, "numpy")[:3] == ["numpy", "0.1.0", "available"]
    assert row(result.stdout, "torch")[2] == "selected"


def test_doctor_runs_it_when_asked_to(python):
    result = python("-m", "gdn_dispatch", "doctor", "--backend", "numpy")
    assert result.returncode == 0, result.stdout + result.stderr
    assert row(result.stdout, "numpy")[2] == "selected"
    assert result.stdout.splitlines()[-1] == "OK: numpy will run gdn_attention on cpu tensors"


def test_explain_chooses_it_by_name_only(python):
    code = (
        "from gdn_dispatch import explain\n"
        "ops = 'gdn_attention', 'chunk_gated_delta_rule', 'fused_recurrent_gated_delta_rule'\n"
        "facts = {'dtype': 'bfloat16', 'state_dtype': 'float32'}\n"
        "print(*(explain(op, **facts, backend='numpy').chosen for op in ops))\n"
        "print(*(explain(op, **facts).chosen for op in ops))"
    )
    assert python("-c", code).stdout.split() == ["numpy"] * 3 + ["torch"] * 3


def test_explain_says_what_it_does_not_do(python):
    result = python(
        "-m", "gdn_dispatch", "explain", "--op", "chunk_gated_delta_rule", "--feature", "autograd",
        "--backend", "numpy",
    )  # fmt: skip
    assert result.returncode == 1
    assert "does not implement gradients" in result.stdout


def test_it_passes_the_conformance_kit(python, tmp_path):
    """What it declares was tested, each of it, and nothing was excluded or left out."""
    shutil.copytree(PROJECT / "tests", tmp_path / "tests")
    report = tmp_path / "report.json"
    result = python(
        "-m", "pytest", "tests", "-q", "--gdn-require", "--gdn-report", report, "-p",
        "no:cacheprovider",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    record = json.loads(report.read_text(encoding="utf-8"))
    assert record["backend"] == "numpy"
    assert record["undeclared"] == {}, "it can do more than it says"

    code = (
        "from gdn_dispatch_numpy.capability import CAPABILITY\n"
        "print(*sorted(feature.name for feature in CAPABILITY.features))"
    )
    for feature in python("-c", code).stdout.split():
        assert record["features"][feature]["passed"] > 0, feature


def test_the_kit_needs_no_test_file(python):
    result = python(
        "-m", "pytest", "--pyargs", "gdn_dispatch.testing", "--gdn-backend", "numpy",
        "--gdn-require", "-k", "test_scale or test_every_tensor", "-p", "no:cacheprovider",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^=+ \d+ passed, \d+ deselected", result.stdout, re.MULTILINE)


def test_there_is_something_on_the_page():
    assert len(PYTHON) >= 4
    assert len(CONSOLE) >= 2


@pytest.mark.parametrize(
    "hook", [f"{name}({', '.join(parameters)})" for name, parameters in SPECS.items()]
)
def test_every_hook_has_a_heading(hook):
    assert [heading for heading in HEADINGS if f"`{hook}`" in heading]


def test_the_page_shows_files_of_the_example():
    test_file = (PROJECT / "tests" / "test_conformance.py").read_text(encoding="utf-8")
    shown = textwrap.indent(
        test_file.replace('"numpy"', '"mine"'), "    ", lambda line: line.strip()
    )
    assert shown in PAGE
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert toml in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    files = {path.name for path in PROJECT.glob("*/[a-z]*.py")}
    assert set(re.findall(r"── (\w+\.py) ", PAGE)) == files


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_block_runs(python, code):
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("block", CONSOLE, ids=range(len(CONSOLE)))
def test_console_block_shows_what_the_command_prints(python, block):
    """``...`` on the page stands for anything, as in a doctest."""
    command, shown = block.removeprefix("$ ").split("\n", 1)
    program, *arguments = shlex.split(command)
    assert program == "gdn-dispatch"
    result = python("-m", "gdn_dispatch", *arguments)
    same = doctest.OutputChecker().check_output(
        shown, result.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert same, result.stdout + result.stderr


def test_files_named_in_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
