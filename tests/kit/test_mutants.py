"""The conformance kit finds every fault of ``mutants.py``, and finds none where there is none."""

import ast
import re

import pytest

from tests.kit.harness import SOURCE, hunt, mutated, publish, run_kit
from tests.kit.mutants import MUTANTS
from tests.kit.table import TABLE

every_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)


@every_mutant
def test_the_fault_has_one_place_and_leaves_python(mutant):
    assert (SOURCE / mutant.file).name != "reference.py", "that is the kit's oracle"
    ast.parse(mutated(mutant))


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_table_is_of_these_mutants():
    rows = re.findall(r"^\| (\w+) \| (.*) \| `(test_.*)` \|$", TABLE.read_text("utf-8"), re.M)
    assert [row[:2] for row in rows] == [(mutant.name, mutant.what) for mutant in MUTANTS]


@pytest.mark.mutants
def test_the_healthy_copy_passes(tmp_path):
    """So what kills a mutant is its fault, and not that it is a copy."""
    publish(tmp_path, None)
    outcome = run_kit(tmp_path)
    assert outcome.code == 0, outcome.output[-5000:]
    assert re.search(r"^\d+ passed in", outcome.output, re.M), outcome.output[-500:]


@pytest.mark.mutants
@every_mutant
def test_the_kit_kills(mutant, tmp_path):
    publish(tmp_path, mutant)
    outcome = hunt(tmp_path)
    assert outcome.code == 1, f"{mutant.name} lives: {mutant.what}"
    assert outcome.killed_by, f"{mutant.name} broke down: {outcome.output[-5000:]}"
