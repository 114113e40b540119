"""What ptxas says of every kernel in every configuration: ``python resources.py --write FILE``.

    python tests/triton_compile/resources.py --write benchmarks/results/triton_resources.json

One row per kernel, configuration and architecture: registers and bytes of stack per thread, bytes
of shared memory per block. Takes minutes; compiled kernels are kept in Triton's own cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import triton

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402 - beside this file
import compile_only  # noqa: E402
import compiled  # noqa: E402

from gdn_dispatch.config import Config  # noqa: E402
from gdn_dispatch.plugins.registry import Registry  # noqa: E402
from gdn_dispatch.selection import dispatch  # noqa: E402

ARCHITECTURES = tuple(compile_only.SHARED_MEMORY)


def collect(arch, work, *, gluon=True):
    """Launches of ``work(backend)`` with the CUDA package's table for ``arch``, each once."""
    registry = Registry()
    registry.register(compiled.Plugin(arch, gluon=gluon), compiled.NAME)
    dispatch.install(registry, Config())
    launches = compile_only.compiled(arch, lambda: work(compiled.NAME))
    return list({launch.key: launch for launch in launches}.values())


def everything(backend):
    """All of ``cases``."""
    for spec in cases.specs():
        cases.layer(spec, backend)
    cases.rules(backend)
    cases.rows(backend)
    cases.conversions()


def both(arch):
    """Launches of everything, with Gluon and, where that makes a difference, without."""
    launches = collect(arch, everything)
    if arch == 90:
        launches += collect(arch, everything, gluon=False)
    return list({launch.key: launch for launch in launches}.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for arch in ARCHITECTURES:
        rows += [launch.row() for launch in both(arch)]
        print(f"sm_{arch}: {len(rows)} rows so far", flush=True)
    rows.sort(key=lambda row: json.dumps(row))
    result = {"triton": triton.__version__, "torch": torch.__version__, "kernels": rows}
    options.write.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
