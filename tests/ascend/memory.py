"""How much memory every kernel takes in every configuration: written as a table, and compared.

    python tests/ascend/memory.py [--everything] [--keep]

writes ``backends/ascend/memory.json``, a row per compiled kernel, and ``memory.md``, a summary of
it: of what is served by default, or of everything that the backend declares. Rows that are there
are kept with ``--keep``, after a run that was broken off. Takes minutes.
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

FOLDER = HERE.parents[1] / "backends" / "ascend"
TABLE = FOLDER / "memory.json"
SUMMARY = FOLDER / "memory.md"
TOOLS = {"triton-ascend": "3.2.0", "ascendnpu-ir": "1.2.0", "target": planning.TARGET}

HEAD = """<!-- written by tests/ascend/memory.py: do not edit -->
# Memory of the kernels

What BiShengIR (ascendnpu-ir {ascendnpu-ir}) plans for {target} out of what triton-ascend
{triton-ascend} lowers: the highest byte that a buffer reaches in the unified buffer (UB, of
{ub:,}), in L1 (of {l1:,}) and in L0C (of {l0c:,}). `memory.json` has a row for each of the {rows}
compiled kernels; here are the largest of each kind. Multi-buffering is on, as triton-ascend has it:
the planner gives buffers room of their own as long as there is some, so a peak near the limit does
not say that the kernel would not fit with less. Nothing has been run on an NPU.

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
    """``memory.md`` of the table."""
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
