"""A backend has one name, one shape and one way in; and nobody writes into another's module."""

import importlib

import pytest
from packaging.requirements import Requirement

from gdn_dispatch.plugins.discovery import GROUP
from gdn_dispatch.selection.resolver import OFFICIAL
from gdn_dispatch.testing.xfails import read_exclusions
from tests.packaging.layout import BACKENDS, ROOT, folder, package, pyproject
from tests.packaging.sources import foreign_imports, writes_to_imports

CORE = pyproject(ROOT)["project"]
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for top in (ROOT / "gdn_dispatch", ROOT / "backends")
    for path in top.rglob("*.py")
    if "tests" not in path.parts[-2:]  # tests play libraries that are not installed
)

backends = pytest.mark.parametrize("name", BACKENDS)


def test_the_folders_are_the_backends_the_core_knows():
    assert {path.parent.name for path in ROOT.glob("backends/*/pyproject.toml")} == set(OFFICIAL)
    assert set(BACKENDS) == set(OFFICIAL)


@backends
def test_one_name_in_four_places(name):
    own = pyproject(folder(name))["project"]
    (extra,) = map(Requirement, CORE["optional-dependencies"][name])
    ((entry_point, module),) = own["entry-points"][GROUP].items()
    plugin = importlib.import_module(module)

    assert own["name"] == extra.name == f"gdn-dispatch-{name}"
    assert module == f"gdn_dispatch_{name}.plugin"
    assert entry_point == plugin.backend_info().name == name


@backends
def test_the_core_and_its_backends_ask_for_each_other_in_versions_that_exist(name):
    own = pyproject(folder(name))["project"]
    (extra,) = map(Requirement, CORE["optional-dependencies"][name])
    (core,) = map(Requirement, own["dependencies"])
    assert core.name == "gdn-dispatch"
    assert core.specifier.contains(CORE["version"])
    assert extra.specifier.contains(own["version"])
    assert own["requires-python"] == CORE["requires-python"]
    assert own["license"] == CORE["license"]


@backends
def test_the_vendor_stack_is_an_extra_of_the_backend_and_the_cores_extra_asks_for_it(name):
    own = pyproject(folder(name))["project"]
    (extra,) = map(Requirement, CORE["optional-dependencies"][name])
    assert extra.extras == set(own.get("optional-dependencies", ()))
    assert bool(extra.extras) == (name != "cpu")


def test_the_accelerators_extras_are_declared_to_exclude_each_other():
    (conflict,) = pyproject(ROOT)["tool"]["uv"]["conflicts"]
    assert {entry["extra"] for entry in conflict} == set(OFFICIAL) - {"cpu"}


def shape_of(name):
    """Every file of a project; its kernels, adapters and their tests are its own affair."""
    common = ("test_conformance.py", "xfails.txt")
    compiled = ("csrc", "CMakeLists.txt")  # kernels outside the import package
    return {
        path.relative_to(folder(name)).as_posix().replace(f"gdn_dispatch_{name}", "PACKAGE")
        for path in folder(name).rglob("*")
        if path.is_file()
        and not {"__pycache__", ".pytest_cache"} & set(path.parts)
        and (path.parent.name not in ("kernels", "providers") or path.name == "__init__.py")
        and path.relative_to(folder(name)).parts[0] not in compiled
        and path.parent.name != "metadata"  # what meta.py is made of, where it is more than sizes
        and ("tests" not in path.parts[-3:] or path.name in common)
    }


@backends
def test_the_same_files_in_every_backend(name):
    assert shape_of(name) == shape_of(BACKENDS[0])
    assert "PACKAGE/plugin.py" in shape_of(name)


@backends
def test_the_entry_module_loads_the_standard_library_and_the_core_only(name):
    top = package(name)
    core = frozenset({"gdn_dispatch", "torch"})  # the core has loaded torch already
    assert foreign_imports(top / "plugin.py", top, core) == set()


@backends
def test_the_probe_loads_torch_and_no_vendors_package(name):
    top = package(name)
    allowed = frozenset({"gdn_dispatch", "torch"})
    assert foreign_imports(top / "probe.py", top, allowed) == set()


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        ("import triton.language as tl", {"triton"}),
        ("try:\n    from torch_npu import npu\nexcept ImportError:\n    npu = None", {"torch_npu"}),
        ("class A:\n    import fla", {"fla"}),
        ("from gdn_dispatch_x import deep", {"flashinfer"}),
        ("from . import deep", {"."}),
        ("def hook():\n    import triton", set()),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import triton", set()),
        ("import sys, gdn_dispatch.types", set()),
    ],
)
def test_an_import_at_load_is_found_wherever_it_stands(tmp_path, plugin, expected):
    top = tmp_path / "gdn_dispatch_x"
    top.mkdir()
    (top / "__init__.py").write_text("")
    (top / "deep.py").write_text("import flashinfer")
    (top / "plugin.py").write_text(plugin)
    found = foreign_imports(top / "plugin.py", top, frozenset({"gdn_dispatch"}))
    assert found == expected


@pytest.mark.parametrize("module", MODULES)
def test_no_module_writes_into_another(module):
    assert writes_to_imports((ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.compile = None",
        "import torch.nn as nn\nnn.functional.silu = fast",
        "from vllm import layer\nlayer.GDN.forward = ours",
        "import a\na.b[0].c += 1",
        "import a\nx, a.b = 1, 2",
        "import a\ndel a.b",
        "import a\na.b: int = 1",
        "import a\nfor a.b in range(3): pass",
        "import a\nwith open('x') as a.b: pass",
        "import a\nvars(a)['b'] = 1",
        "from a import TABLE\nTABLE['b'] = 1",
        "def f():\n    import a\n    setattr(a, 'b', 1)",
        "import a\ndelattr(a.b, 'c')",
    ],
)
def test_a_write_into_another_module_is_found(source):
    assert len(writes_to_imports(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import a\nb = a.c",
        "import a\nself.a = a",
        "import a\na = None",
        "import a\nx = a.make()\nx.b = 1",
        "import a\na.register('b', c)",
    ],
)
def test_what_is_ones_own_may_be_written(source):
    assert writes_to_imports(source) == []


@backends
def test_the_list_of_expected_failures_can_be_read(name):
    assert read_exclusions(folder(name) / "tests" / "xfails.txt") == ()


@backends
def test_every_backend_has_a_workflow_of_its_name(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    assert "uses: ./.github/workflows/_device.yml" in text
    assert f"backend: {name}\n" in text
