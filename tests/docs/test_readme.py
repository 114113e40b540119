"""Everything the README shows runs, and every number in it was measured."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def run(command):
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def shape_of(line):
    """A line without what differs from machine to machine: numbers, builds, column widths."""
    line = re.sub(r"\+(cpu|cu\d+)|, \d+ threads?| \(triton from: triton\)", "", line)
    line = re.sub(r"CPU capability \w+", "CPU capability", line)
    return re.sub(r"[\d.]+(e[-+]\d+)?", "0", re.sub(r"\s+", " ", line)).strip()


def test_there_are_blocks_to_run():
    assert len(PYTHON) >= 3
    assert len(CONSOLE) >= 1


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_block_runs(code):
    result = run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("block", CONSOLE, ids=range(len(CONSOLE)))
def test_console_block_shows_what_the_command_prints(block):
    command, *shown = block.strip().splitlines()
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "gdn-dispatch"
    result = run([sys.executable, "-m", "gdn_dispatch", *arguments])
    assert result.returncode == 0, result.stderr
    printed = [shape_of(line) for line in result.stdout.strip().splitlines()]
    assert printed == [shape_of(line) for line in shown]


def test_numbers_are_those_of_the_committed_results():
    result = run([sys.executable, "benchmarks/readme.py", "--check"])
    assert result.returncode == 0, "run python benchmarks/readme.py"


def test_support_matrix_is_that_of_the_capabilities_and_reports():
    result = run([sys.executable, "conformance/matrix.py", "--check"])
    assert result.returncode == 0, "run python conformance/matrix.py"


def test_files_named_in_links_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    pictures = re.findall(r'src(?:set)?="([^"]+)"', README)
    for target in links + pictures:
        assert (ROOT / target).exists(), target
