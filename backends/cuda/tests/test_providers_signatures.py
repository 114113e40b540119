"""The signatures the stubs stand behind are those of the libraries, where one is installed."""

from __future__ import annotations

import ast
import importlib.util
import json
from importlib import metadata
from pathlib import Path

import pytest

DATA = json.loads(
    (Path(__file__).parent / "providers_data" / "signatures.json").read_text(encoding="utf-8")
)
FUNCTIONS = [(dist, name) for dist in DATA for name in DATA[dist]["functions"]]


def parameters(source, function):
    found = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == function
    ).args
    positional = found.posonlyargs + found.args
    required = len(positional) - len(found.defaults)
    names = [
        {"name": arg.arg, "kind": "positional", "default": i >= required}
        for i, arg in enumerate(positional)
    ]
    names += [
        {"name": arg.arg, "kind": "keyword", "default": default is not None}
        for arg, default in zip(found.kwonlyargs, found.kw_defaults, strict=True)
    ]
    if found.kwarg:
        names.append({"name": found.kwarg.arg, "kind": "var_keyword", "default": False})
    return names


@pytest.mark.parametrize(("dist", "name"), FUNCTIONS)
def test_signatures_are_those_of_the_installed_library(dist, name):
    try:
        version = metadata.version(dist)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{dist} is not installed")
    if version != DATA[dist]["version"]:
        pytest.skip(f"{dist} {version} is installed, not {DATA[dist]['version']}")
    entry = DATA[dist]["functions"][name]
    package, _, rest = entry["file"].partition("/")
    root = importlib.util.find_spec(package).submodule_search_locations[0]
    source = (Path(root) / rest).read_text(encoding="utf-8")
    assert parameters(source, name.partition(":")[2]) == entry["parameters"]
