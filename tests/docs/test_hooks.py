"""The hooks are the contract with strangers: each is explained, in the guide, and tested."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from gdn_dispatch import hookspecs
from gdn_dispatch.plugins.inspection import SPECS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "writing_a_backend.md"
TESTS = ROOT / "tests" / "dispatch" / "test_hooks.py"


@pytest.mark.parametrize("hook", SPECS)
@pytest.mark.parametrize(
    "says",
    [r"\bCalled (once|by)\b", r"\bMay assume\b", r"\bMust return\b", r"\.\. versionadded:: \d"],
    ids=["when it is called", "what it may assume", "what it must return", "since when"],
)
def test_docstring_says(hook, says):
    assert re.search(says, inspect.getdoc(getattr(hookspecs, hook)))


@pytest.mark.parametrize(("hook", "parameters"), SPECS.items())
def test_the_guide_has_a_section_for_it(hook, parameters):
    headings = re.findall(r"^#+ +(.+?) *$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert f"`{hook}({', '.join(parameters)})`" in headings


@pytest.mark.parametrize("hook", SPECS)
def test_there_is_a_test_of_it(hook):
    tree = ast.parse(TESTS.read_text(encoding="utf-8"))
    tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [name for name in tests if name.startswith(f"test_hook_{hook}_")]
