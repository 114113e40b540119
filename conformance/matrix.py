"""Put the support matrix into the README: python conformance/matrix.py [--check].

What a backend declares comes from its capability, what holds from reports of the conformance kit
(``--gdn-report``) in ``conformance/results``, one for each device it was run on. A test runs this
with --check.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "conformance" / "results"
BEGIN, END = "<!-- support: conformance/matrix.py -->\n", "<!-- /support -->\n"
PACKAGES = ("cpu", "cuda", "ascend", "xpu")

sys.path[:0] = [str(ROOT), *(str(ROOT / "backends" / name) for name in PACKAGES)]

from gdn_dispatch.capability import Capability, Feature  # noqa: E402 - found through the path above


@dataclass(frozen=True)
class Column:
    """A backend on a device.

    Attributes:
        title: Heading.
        capability: What the backend declares.
        report: What the kit said there, or None: it has not run.
    """

    title: str
    capability: Capability
    report: dict[str, Any] | None = None

    def cell(self, feature: Feature) -> str:
        """Whether a feature is declared, and how many tests of it hold."""
        if feature not in self.capability.features:
            return "-"
        if self.report is None:
            return "declared"
        counts = self.report["features"].get(feature.name, {})
        total = sum(counts.values()) - counts.get("skipped", 0)
        return f"{counts.get('passed', 0)} of {total}"

    @property
    def last_run(self) -> str:
        """When, and with which torch."""
        if self.report is None:
            return "never"
        return f"{self.report['date']}, torch {self.report['torch']}"


def columns() -> list[Column]:
    """The built-in backend on every device it has run on, then the packages."""
    from gdn_dispatch.torch_backend.capability import CAPABILITY

    capabilities = {"torch": CAPABILITY}
    for name in PACKAGES:
        module = importlib.import_module(f"gdn_dispatch_{name}.capability")
        capabilities[name] = module.CAPABILITY
    paths = sorted(RESULTS.glob("*.json"))
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    found = []
    for name, capability in capabilities.items():
        mine = [report for report in reports if report["backend"] == name]
        found += [Column(f"{name} on {r['device']}", capability, r) for r in mine]
        if not mine:
            found.append(Column(name, capability))
    return found


def table() -> str:
    """The matrix as Markdown."""
    found = columns()
    lines = ["| feature | " + " | ".join(column.title for column in found) + " |"]
    lines.append("|---|" + "---|" * len(found))
    lines += [
        f"| {feature.value} | " + " | ".join(column.cell(feature) for column in found) + " |"
        for feature in Feature
    ]
    lines.append("| last run | " + " | ".join(column.last_run for column in found) + " |")
    notes = {note: None for column in found for note in column.capability.notes}
    return "\n".join(lines) + "\n\n" + "".join(f"* {note}\n" for note in notes)


def main() -> int:
    """Write the README's section; with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    updated = before + BEGIN + table() + END + after
    if check:
        return int(updated != text)
    readme.write_text(updated, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
