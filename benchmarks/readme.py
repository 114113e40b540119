"""Put the committed measurements into the README: python benchmarks/readme.py [--check].

The README shows no number that is not in ``benchmarks/results``; a test runs this with --check.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: benchmarks/readme.py -->\n", "<!-- /measured -->\n"


def cell(value: float | None, unit: str) -> str:
    """A number of a sensible number of digits with its unit."""
    if value is None:
        return ""
    return f"{value:.3g} {unit}"


def backend_rows(report: dict[str, Any]) -> list[str]:
    """One row for each case of ``gdn-dispatch bench``."""
    rows = []
    for result in report["results"]:
        better = "≥" if result["more_is_better"] else "≤"
        budget = cell(result["budget"], result["unit"])
        value = cell(result["value"], result["unit"])
        low, high = (cell(x, result["unit"]) for x in result["quartiles"])
        met = {True: "met", False: "**missed**", None: ""}[result["met"]]
        rows.append(
            f"| {result['suite']} {result['case']} | {result['peer']} | {value} ({low} to {high}) "
            f"| {better + ' ' + budget if budget else ''} | {met} |"
        )
    return rows


def metadata_rows(report: dict[str, Any]) -> list[str]:
    """One row for each batch of ``benchmarks/metadata.py``."""
    rows = []
    for case in report["cases"]:
        name = f"host metadata N={case['num_seqs']}"
        for peer, key in (("vLLM 0.33", "vllm/sections"), ("FLA 0.6", "fla/sections")):
            ratio, budget = case["ratios"][key], case["budget_peers"]
            met = "met" if ratio >= budget else "**missed**"
            rows.append(f"| {name} | {peer} | {cell(ratio, 'x')} | ≥ {cell(budget, 'x')} | {met} |")
    return rows


def section() -> str:
    """The measured part of the README."""
    backend, host, metadata = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("cpu.json", "host.json", "metadata.json")
    )
    header = backend["header"]
    lines = [
        "| what | against | measured: median (quartiles) | budget | |",
        "|---|---|---|---|---|",
        *backend_rows(backend),
        *backend_rows(host),
        *metadata_rows(metadata),
        "",
        f"{header['cpu']}, {header['threads']} threads, torch {header['torch']}, "
        f"{header['date'][:10]}; {header['shape']}. Paired ratios in one process",
        "(`make bench`, `make bench-metadata`); every case checks its numbers first.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the README, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    wanted = before + BEGIN + section() + END + after
    if check:
        return 0 if wanted == text else 1
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
