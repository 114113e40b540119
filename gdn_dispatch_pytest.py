"""pytest's view of the conformance kit: options, a marker, the report.

pytest imports this module in every session of an environment that has gdn-dispatch, so it stands
outside the package and imports nothing: ``gdn_dispatch`` would bring torch along.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

__all__ = ["PROPERTY"]

PROPERTY = "gdn_dispatch"
"""Name of the ``user_properties`` entry that a test of the kit leaves: what it was run on."""


def pytest_addoption(parser: Any) -> None:
    """``--gdn-backend`` and its companions."""
    group = parser.getgroup("gdn-dispatch", "conformance of gdn-dispatch backends")
    group.addoption(
        "--gdn-backend", metavar="NAME", help="backend that gdn_dispatch.testing is run on"
    )
    group.addoption(
        "--gdn-device", metavar="DEVICE", help="device, where it is not the backend's first type"
    )
    group.addoption(
        "--gdn-xfails", metavar="FILE", help="tests that may fail: 'id | reason | link' a line"
    )
    group.addoption(
        "--gdn-require",
        action="store_true",
        help="fail, instead of skipping, where the backend cannot run here",
    )
    group.addoption(
        "--gdn-report", metavar="FILE", help="write outcomes by feature to FILE, as JSON"
    )


def pytest_configure(config: Any) -> None:
    """Register the marker, and the report where one is wanted."""
    config.addinivalue_line(
        "markers", "gdn_needs(*features): what a backend must declare to be held to this test"
    )
    config.pluginmanager.register(_Outcomes(config.getoption("--gdn-report")), "gdn-outcomes")


class _Outcomes:
    """What became of the kit's tests, by feature; and the claims that are too modest."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.tests: dict[type, set[str]] = {}
        self.subjects: dict[tuple[str, str], dict[str, Any]] = {}
        self.features: dict[str, dict[str, int]] = {}
        self.undeclared: dict[tuple[str, str], set[str]] = {}

    def pytest_itemcollected(self, item: Any) -> None:
        """Names of the kit's tests by class, also of those that ``-k`` leaves out."""
        cls: Any = getattr(item, "cls", None)
        if hasattr(cls, "test_exclusions_name_tests_of_the_kit"):
            self.tests.setdefault(cls, set()).add(item.name)

    def pytest_runtest_logreport(self, report: Any) -> None:
        facts = dict(report.user_properties).get(PROPERTY)
        if facts is None or not (report.when == "call" or report.failed or report.skipped):
            return
        if report.when == "teardown" and not report.failed:
            return
        name = facts["subject"]["backend"]
        self.subjects[name, facts["subject"]["device"]] = facts["subject"]
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xpassed" if report.passed else "xfailed"
        # A test it is not held to says nothing about the other features the test needs.
        for feature in facts["features"] if not facts["undeclared"] else ():
            counts = self.features.setdefault(feature, {})
            counts[outcome] = counts.get(outcome, 0) + 1
        if outcome == "xpassed":
            for reason in facts["undeclared"]:
                self.undeclared.setdefault((name, reason), set()).add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for (name, reason), tests in sorted(self.undeclared.items()):
            terminalreporter.write_line(
                f"gdn-dispatch: {len(tests)} tests pass that {name} is not held to: {reason}"
            )
        if not self.path:
            return
        if len(self.subjects) != 1:
            ran = ", ".join(f"{name} on {device}" for name, device in sorted(self.subjects))
            terminalreporter.write_line(
                f"gdn-dispatch: no report: it is about one backend, tests ran of {ran or 'none'}"
            )
            return
        (subject,) = self.subjects.values()
        record = {
            **subject,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "features": self.features,
            "undeclared": {reason: len(tests) for (_, reason), tests in self.undeclared.items()},
        }
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        Path(self.path).write_text(text, encoding="utf-8")
        terminalreporter.write_line(f"gdn-dispatch: wrote {self.path}")
