"""How much memory every kernel takes in every configuration: written as a table, and compared.

    python tests/ascend/memory.py [--everything] [--keep]

writes ``benchmarks/results/ascend_memory.json``, a row per compiled kernel, and
``docs/ascend_memory.md``, a summary of it: of what is served by default, or of everything that the
backend declares. Rows that are there are kept with ``--keep``, after a run that was broken off.
Takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402 - beside this file
import lowering  # noqa: E402
import planning  # noqa: E402

ROOT = HERE.parents[1]
TABLE = ROOT / "benchmarks" / "results" / "ascend_memory.json"
SUMMARY = ROOT / "docs" / "ascend_memory.md"
TOOLS = {"triton-ascend": "3.2.0", "ascendnpu-ir": "1.2.0", "target": planning.TARGET}

HEAD = """<!-- written by tests/ascend/memory.py: do not edit -->
# Memory of the Ascend kernels

What BiShengIR (ascendnpu-ir {ascendnpu-ir}) plans for {target} out of what triton-ascend
{triton-ascend} lowers: the highest byte that a buffer reaches in the unified buffer (UB, of
{ub:,} bytes), in L1 (of {l1:,}) and in L0C (of {l0c:,}). There is a row for each of the {rows}
compiled kernels in `benchmarks/results/ascend_memory.json`; here are the largest of each kind.
Multi-buffering is on, as triton-ascend has it. How much less a kernel could do with, a peak does
not say: those near the limit hardly fell with smaller tiles. Nothing has been run on an NPU.

| kernel | cores | K | activations | configurations | UB | L1 | L0C |
|---|---|---|---|---|---|---|---|
"""


def row(launch):
    """Lower and plan one kernel."""
    linalg = lowering.lower(launch)
    return {
        "kernel": launch.kernel,
        "variant": launch.variant(),
        "mode": lowering.mix_mode(linalg),
        **planning.plan(linalg),
    }


def committed():
    """Rows of the committed table, by kernel and variant."""
    rows = json.loads(TABLE.read_text())["kernels"]
    return {(found["kernel"], found["variant"]): found for found in rows}


def summary(result):
    """``ascend_memory.md`` of the table."""
    groups = {}
    for found in result["kernels"]:
        words = dict(word.split("=") for word in found["variant"].split())
        key = (found["kernel"], found["mode"], words.get("K", ""), words.get("q", words.get("x")))
        groups.setdefault(key, []).append(found)
    text = HEAD.format(**result["tools"], **planning.CAPACITY, rows=len(result["kernels"]))
    for (kernel, mode, K, dtype), rows in sorted(groups.items(), key=str):
        cores = {"aiv": "vector", "mix": "cube and vector", "aic": "cube"}[mode]
        most = " | ".join(f"{max(found[name] for found in rows):,}" for name in planning.CAPACITY)
        text += f"| {kernel} | {cores} | {K} | {dtype or ''} | {len(rows)} | {most} |\n"
    return text


def write(rows):
    """Both files, of the rows there are."""
    rows = sorted(rows, key=lambda found: (found["kernel"], found["variant"]))
    result = {"tools": TOOLS, "capacity": planning.CAPACITY, "kernels": rows}
    TABLE.write_text(json.dumps(result, indent=1) + "\n")
    SUMMARY.write_text(summary(result))


def main():
    """Write both files; 1 where a kernel is refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    launches, _ = cases.launches(everything=options.everything)
    wanted = {(launch.kernel, launch.variant()): launch for launch in launches}
    rows = {}
    if options.keep and TABLE.exists():
        rows = {key: found for key, found in committed().items() if key in wanted}
    refused = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        missing = [launch for key, launch in wanted.items() if key not in rows]
        for launch, done in [(launch, pool.submit(row, launch)) for launch in missing]:
            try:
                rows[launch.kernel, launch.variant()] = done.result()
                write(rows.values())
            except (lowering.NotLowered, planning.NotPlanned) as error:
                print(f"{launch.kernel} {launch.variant()}: {error}", flush=True)
                refused += 1
    write(rows.values())
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
