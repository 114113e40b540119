"""The wheels, built, read and used: in new environments, from other folders, without the tree.

Builds six wheels and makes two environments with torch in them, so it is run by ``make packaging``
and not by ``make test``. The wheel of the cpu backend is built twice, with and without a compiler.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from gdn_dispatch.plugins.discovery import GROUP
from tests.packaging.layout import BACKENDS, ROOT, folder

pytestmark = pytest.mark.packaging

KERNELS = "gdn_dispatch_cpu/libgdn_cpu.so"
PROJECTS = {"gdn_dispatch": ROOT, **{f"gdn_dispatch_{name}": folder(name) for name in BACKENDS}}


def run(*command, cwd, **more):
    """Run a command where nothing of this tree can be imported; returns what it prints."""
    hidden = ("PYTHONPATH", "GDN_DISPATCH", "PYTEST_")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(hidden)} | more
    environ["OMP_NUM_THREADS"] = "1"  # operators here are small; see tests/conftest.py
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def build(project, where, **environ):
    """Build a wheel with whatever the project's pyproject.toml names."""
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", where, project, cwd=where, **environ,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with the wheels of all five projects."""
    where = tmp_path_factory.mktemp("wheels")
    for project in PROJECTS.values():
        build(project, where)
    return where


@pytest.fixture(scope="module")
def without_kernels(tmp_path_factory, wheels):
    """The same folder as it would be had the machine no compiler."""
    where = tmp_path_factory.mktemp("without_kernels")
    for wheel in wheels.glob("*.whl"):
        if not wheel.name.startswith("gdn_dispatch_cpu-"):
            shutil.copy(wheel, where)
    build(folder("cpu"), where, CXX="/no/compiler/here")
    return where


class Environment:
    """A new virtual environment with torch in it, and an empty folder to work in."""

    def __init__(self, where, wheels):
        self.bin = where / "venv" / "bin"
        self.cwd = where / "elsewhere"
        self.wheels = wheels
        self.cwd.mkdir()
        venv.create(where / "venv", with_pip=True)
        self.install("torch")

    def install(self, *requirements):
        """Returns what was installed: the file name of every distribution's source by its name."""
        report = self.cwd.parent / "report.json"
        self(
            "pip", "install", "--quiet", "--report", report, "-c", ROOT / "constraints.txt",
            "--find-links", self.wheels, *requirements,
        )  # fmt: skip
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
        return {i["metadata"]["name"]: i["download_info"]["url"] for i in installed}

    def __call__(self, program, *arguments):
        return run(self.bin / program, *arguments, cwd=self.cwd)

    def doctor(self):
        return json.loads(self("gdn-dispatch", "doctor", "--json"))


@pytest.fixture(scope="module")
def cpu_only(tmp_path_factory, wheels):
    """What a user of the CPU backend has, who wants to run the conformance kit."""
    environment = Environment(tmp_path_factory.mktemp("cpu"), wheels)
    environment.installed = environment.install("gdn-dispatch[cpu,testing]")
    return environment


@pytest.fixture(scope="module")
def all_four(tmp_path_factory, without_kernels):
    """Every backend without its vendor's stack, on a machine without the devices or a compiler."""
    environment = Environment(tmp_path_factory.mktemp("all"), without_kernels)
    environment.installed = environment.install(
        "gdn-dispatch[cpu]", *(f"gdn-dispatch-{name}" for name in BACKENDS)
    )
    return environment


@pytest.mark.parametrize("package", PROJECTS)
def test_a_wheel_holds_the_package_and_nothing_else(wheels, package):
    (wheel,) = wheels.glob(f"{package}-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = PROJECTS[package]
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if package == "gdn_dispatch_cpu":
        expected.add(KERNELS)
        assert re.search(r"-py3-none-\w+\.whl$", wheel.name)  # any Python 3, this platform
        assert not wheel.name.endswith("-any.whl")
    if package == "gdn_dispatch":
        expected.add("gdn_dispatch_pytest.py")
        assert "gdn_dispatch/cli/demo_text.txt" in held
        assert "gdn_dispatch/testing/test_backend.py" in held
    assert f"{package}/py.typed" in held
    assert held == expected


def test_a_wheel_built_without_a_compiler_is_pure(without_kernels):
    (wheel,) = without_kernels.glob("gdn_dispatch_cpu-*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "gdn_dispatch_cpu/plugin.py" in held
    assert KERNELS not in held


def test_the_backend_and_the_core_come_from_the_folder(cpu_only, wheels):
    ours = {name for name in cpu_only.installed if name.startswith("gdn-dispatch")}
    assert ours == {"gdn-dispatch", "gdn-dispatch-cpu"}
    for name in ours:
        assert Path(cpu_only.installed[name].removeprefix("file://")).parent == wheels


def test_the_entry_point_is_found(cpu_only):
    code = (
        "from importlib import metadata\n"
        f"print(*(f'{{e.name}} {{e.dist.name}}' for e in metadata.entry_points(group={GROUP!r})))"
    )
    assert cpu_only("python", "-c", code).split() == ["cpu", "gdn-dispatch-cpu"]


def test_doctor_runs_from_another_folder(cpu_only):
    report = cpu_only.doctor()
    rows = {row["name"]: row for row in report["backends"]}
    assert report["smoke"]["passed"]
    assert report["selection"]["chosen"] == "cpu"
    assert "kernels for" in rows["cpu"]["why"]
    assert rows["cuda"]["why"] == "pip install 'gdn-dispatch[cuda]'"


def test_the_kit_runs_from_the_wheel(cpu_only):
    code = "import gdn_dispatch, gdn_dispatch_pytest as p; print(gdn_dispatch.__file__, p.__file__)"
    for file in cpu_only("python", "-c", code).split():
        assert Path(file).is_relative_to(cpu_only.bin.parent)
    report = cpu_only.cwd / "report.json"
    output = cpu_only(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "--pyargs", "gdn_dispatch.testing", "--gdn-backend", "cpu", "--gdn-require",
        "--gdn-report", report,
    )  # fmt: skip
    assert " passed" in output
    features = json.loads(report.read_text(encoding="utf-8"))["features"]
    assert features
    assert not [name for name, counts in features.items() if counts.get("failed")]


def test_the_kit_says_why_a_backend_without_kernels_was_not_tested(all_four):
    all_four.install("gdn-dispatch[testing]")
    output = all_four(
        "python", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
        "--pyargs", "gdn_dispatch.testing", "--gdn-backend", "cpu",
    )  # fmt: skip
    assert " skipped" in output
    assert " passed" not in output
    assert "no compiled kernels (libgdn_cpu.so is not installed)" in output


def test_all_backends_live_in_one_environment_without_their_vendors(all_four):
    all_four("pip", "check")
    ours = {name for name in all_four.installed if name.startswith("gdn-dispatch")}
    assert ours == {"gdn-dispatch", *(f"gdn-dispatch-{name}" for name in BACKENDS)}
    vendors = {"triton", "triton-ascend", "torch-npu", "vllm-xpu-kernels"}
    assert not vendors & all_four.installed.keys()

    rows = {row["name"]: row for row in all_four.doctor()["backends"]}
    assert rows["torch"]["status"] == "available"
    for name in BACKENDS:
        assert rows[name]["status"] == "unavailable"
        assert rows[name]["distribution"] == f"gdn-dispatch-{name}"


def test_doctor_says_what_is_lost_without_a_compiler_and_torch_serves(all_four):
    report = all_four.doctor()
    (row,) = (row for row in report["backends"] if row["name"] == "cpu")
    assert "no compiled kernels (libgdn_cpu.so is not installed)" in row["why"]
    assert "the slower torch backend serves this CPU" in row["why"]
    assert report["selection"]["chosen"] == "torch"
    assert report["smoke"]["passed"]
