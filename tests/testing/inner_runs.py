"""pytest inside pytest: the kit on backends that differ from the torch one where a test wants it.

A run costs seconds, most of them for importing torch, so several tests look at one. That is why
this is not pytester, whose runs end with the test that started them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FEW_TESTS", "Outcome", "Run", "run_pytest"]

# Every backend here runs the functions of the torch backend, and adds a fault of its own.
CONFTEST = '''
import json
from dataclasses import replace

import torch

from gdn_dispatch import Available, Feature, GDNOutput, Unavailable, hookimpl
from gdn_dispatch.selection.dispatch import active_registry
from gdn_dispatch.torch_backend import plugin

ABSENT = Unavailable("no device; is the driver loaded?")


class Delegate:
    def __init__(self, name, *, without=(), fails=False, factor=1.0, answer=None, devices=("cpu",)):
        torch_info = plugin.backend_info()
        capability = replace(
            torch_info.capability, features=torch_info.capability.features - set(without)
        )
        self.info = replace(
            torch_info, name=name, capability=capability, device_types=devices, version="1.2.3"
        )
        self.fails, self.factor, self.answer = fails, factor, answer or Available()

    @hookimpl
    def backend_info(self):
        return self.info

    @hookimpl
    def probe(self):
        return self.answer

    @hookimpl
    def build_chunk_meta(self, request):
        meta = plugin.build_chunk_meta(request)
        meta.backend = self.info.name
        return meta

    @hookimpl
    def gated_delta_rule(self, request):
        if self.fails and request.A_log is not None:
            raise NotImplementedError("raw gates")
        output, state = plugin.gated_delta_rule(request)
        return GDNOutput(output * self.factor, state)


for delegate in (
    Delegate("modest", without=[Feature.RAW_GATE]),
    Delegate("limited", without=[Feature.RAW_GATE], fails=True),
    Delegate("boastful", fails=True),
    Delegate("coarse", factor=1 + 1e-3),
    Delegate("absent", answer=ABSENT),
    # its first device type is one that no machine of ours has
    Delegate("elsewhere", devices=("npu", "cpu")),
):
    active_registry().register(delegate, delegate.info.name)


def pytest_runtest_logreport(report):
    """One line for whatever is more than the beginning and the end of a test that runs."""
    if report.when == "call" or report.outcome != "passed":
        message = getattr(report, "wasxfail", None) or report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            message = report.longrepr[2]
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xpassed" if report.passed else "xfailed"
        record = [report.nodeid.partition("::")[2], outcome, message]
        with open("outcomes.jsonl", "a") as file:
            file.write(json.dumps(record) + "\\n")
'''

# Of the kit, as a base of test classes: two tests of the rule in both of its forms, six in all.
FEW_TESTS = """
from pathlib import Path
from gdn_dispatch.testing.conformance.accuracy import AccuracyTests
from gdn_dispatch.testing.conformance.base import Conformance
from gdn_dispatch.testing.conformance.states import StateTests

class FewTests(Conformance):
    test_raw_gates = AccuracyTests.test_raw_gates
    test_final_state_only_on_request = StateTests.test_final_state_only_on_request
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test: ``passed``, ``failed``, ``skipped``, ``xfailed`` or ``xpassed``."""

    outcome: str
    message: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run: exit status, what was printed, and every test by ``Class::name[parameters]``."""

    code: int
    out: str
    tests: dict[str, Outcome]

    def outcomes(self, prefix: str) -> list[str]:
        """Outcomes of the tests whose id begins so, sorted."""
        return sorted(o.outcome for test, o in self.tests.items() if test.startswith(prefix))

    def messages(self, prefix: str) -> set[str]:
        return {o.message for test, o in self.tests.items() if test.startswith(prefix)}


def run_pytest(folder: Path, source: str, *options: str, **files: str) -> Run:
    """Run a module of tests in ``folder``; ``files`` are written beside it, by their stem."""
    folder.mkdir(exist_ok=True)
    # its own settings: a third party has not the ones of this repository
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_kit.py").write_text(source)
    for stem, text in files.items():
        (folder / f"{stem}.txt").write_text(text)
    outcomes = folder / "outcomes.jsonl"
    outcomes.write_text("")

    ours = ("GDN_DISPATCH", "PYTEST")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    result = subprocess.run(
        command, cwd=folder, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    tests = {test: Outcome(outcome, message) for test, outcome, message in lines}
    return Run(result.returncode, result.stdout + result.stderr, tests)
