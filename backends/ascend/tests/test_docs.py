"""What the documentation shows runs, and what the README says of a bare machine is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gdn_dispatch_ascend import probe

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")
README = (ROOT / "backends" / "ascend" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number):
    exec(compile(EXAMPLES[number], f"docs/ascend.md, example {number}", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) == 2


def test_the_readme_shows_what_is_said_on_a_machine_that_has_nothing():
    bare = probe.Facts("2.13.0+cpu", None, False, (), None, None, pybind11=False)
    said = "; ".join(probe.reasons(bare))
    assert f"    ascend   0.1.0       unavailable    {said}\n" in README


def test_links_lead_somewhere():
    for where, text in ((ROOT / "docs", PAGE), (ROOT / "backends" / "ascend", README)):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            file = (where / path) if path else None
            found = (file.read_text(encoding="utf-8") if file else text).lower()
            if anchor:
                titles = re.findall(r"^#+ (.*)$", found, re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles]
                assert anchor in slugs, target
