"""BiShengIR's memory planning of a lowered kernel, for Ascend910B3, without CANN.

The compiler runs up to the tool of CANN that makes the object file, ``hivmc``; a stand-in for it
takes what it is given and says yes. By then buffers have been given their places in the unified
buffer, L1 and L0C, and what did not fit has been refused.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path

TARGET = "Ascend910B3"
CAPACITY = {"ub": 192 * 1024, "l1": 512 * 1024, "l0c": 128 * 1024}
_SPACES = {"ub": "ub", "cbuf": "l1", "cc": "l0c"}
_BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f16": 16, "bf16": 16, "f32": 32}
_BUFFER = re.compile(
    r"hivm\.hir\.pointer_cast\(([^)]*)\)[^\n]*?:\s*memref<([^,>]*(?:, strided<[^>]*>)?)"
    r"[^\n]*?#hivm\.address_space<(\w+)>"
)
_HIVMC = """#!/bin/sh
for word in "$@"; do
  case "$word" in --version) echo "hivmc stand-in"; exit 0;; esac
  if [ "$last" = "-o" ]; then : > "$word"; fi
  last="$word"
done
exit 0
"""


class NotPlanned(Exception):
    """A kernel that does not fit, or that the compiler refuses."""


def compiler():
    """Path of bishengir-compile, or None where it is not installed."""
    found = importlib.util.find_spec("ascendnpuir")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "bin" / "bishengir-compile"
    return path if path.exists() else None


def plan(linalg):
    """Peak use in bytes, by space: ``{"ub": ..., "l1": ..., "l0c": ...}``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "kernel.mlir"
        source.write_text(re.sub(r', mix_mode\s*=\s*"[^"]*"', "", linalg))
        stand_in = folder / "bin" / "hivmc"
        stand_in.parent.mkdir()
        stand_in.write_text(_HIVMC)
        stand_in.chmod(0o755)
        kept = folder / "kept"
        kept.mkdir()
        # the flags with which triton-ascend 3.2.0 calls it
        done = subprocess.run(
            [
                compiler(), source, f"--target={TARGET}",
                "--enable-auto-multi-buffer=True", "--enable-auto-bind-sub-block=True",
                "--enable-hfusion-compile=true", "--enable-hivm-compile=true",
                "--enable-triton-kernel-compile=true",
                f"--save-temps={kept}", "-o", folder / "kernel",
            ],
            capture_output=True, text=True, check=False,
            env={"PATH": f"{stand_in.parent}:/usr/bin:/bin", "HOME": os.fspath(folder)},
        )  # fmt: skip
        planned = kept / "module.hivm.opt.mlir"
        if done.returncode or not planned.exists():
            said = re.findall(r"error: [^\n]*", done.stdout + done.stderr)
            raise NotPlanned("; ".join(dict.fromkeys(said)) or (done.stdout + done.stderr)[-2000:])
        return peaks(planned.read_text())


def peaks(planned):
    """The highest byte that a buffer of each space reaches."""
    constants = dict(re.findall(r"(%[\w]+) = arith\.constant (-?\d+) : i64", planned))
    found = {"ub": 0, "l1": 0, "l0c": 0}
    for offsets, shape, space in _BUFFER.findall(planned):
        if space not in _SPACES:
            continue
        *dims, dtype = shape.split(",")[0].split("x")
        size = _BITS[dtype]
        for dim in dims:
            size *= int(dim)
        for offset in offsets.split(","):
            end = int(constants[offset.strip()]) + -(-size // 8)
            name = _SPACES[space]
            found[name] = max(found[name], end)
    return found
