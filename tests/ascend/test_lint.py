"""The lint finds what it is for, leaves alone what is right, and finds nothing in our kernels."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from kernel_lint import violations

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "backends" / "ascend" / "gdn_dispatch_ascend" / "kernels"
SHARED = [ROOT / "gdn_dispatch" / "triton_kernels" / "slots_kernel.py"]
METADATA = KERNELS.parent / "metadata"
FILES = [*sorted(KERNELS.glob("*.py")), *sorted(METADATA.glob("*_triton.py")),
         *sorted(METADATA.glob("*_kernel.py")), *SHARED]  # fmt: skip

HEAD = "@triton.jit\ndef kernel(x, y, out, n, m, N: tl.constexpr, FLAG: tl.constexpr):\n"


def rules(body):
    """Rules broken by a kernel's body, with the lines of the body they are found in."""
    return [
        (one.rule, one.line - 2)
        for one in violations(HEAD + textwrap.indent(textwrap.dedent(body).strip(), "    "))
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_kernels_of_the_backend(path):
    assert violations(path.read_text()) == []


def test_there_are_kernels():
    assert sum("triton.jit" in path.read_text() for path in FILES) >= 7


DOT = 'tl.dot({}, {}, input_precision="ieee")'

WRONG = {
    "read again": ("left operand", 2, f"c = {DOT.format('a', 'b')}\nd = a + c"),
    "read again as the right one": (
        "left operand", 2, f"c = {DOT.format('a', 'b')}\nd = {DOT.format('c', 'a')}",
    ),
    "read again under another name": (
        "left operand", 3, f"t = tl.trans(a)\nc = {DOT.format('a', 'b')}\nd = t + c",
    ),
    "cast to what it may be": (
        "left operand", 2, f"c = {DOT.format('a.to(T)', 'b')}\nd = a + c",
    ),
    "read in the next round": (
        "left operand", 2, f"for i in range(n):\n    c += {DOT.format('a', 'b')}",
    ),
    "behind a branch": (
        "left operand", 3, f"if FLAG:\n    c = {DOT.format('a', 'b')}\nd = a",
    ),
    "a branch on a number": ("run-time if", 1, "if n > 0:\n    tl.store(out, 1)"),
    "a branch on what was loaded": (
        "run-time if", 2, "s = tl.load(x)\nif s:\n    tl.store(out, s)",
    ),
    "a branch of an expression": ("run-time if", 1, "s = 1 if n else 2"),
    "a branch on a constant and a number": (
        "run-time if", 1, "if FLAG and n > 0:\n    tl.store(out, 1)",
    ),
    "a pointer that moves": (
        "pointer advance", 3, "for i in range(n):\n    v = tl.load(x)\n    x += m",
    ),
    "a pointer that is rebound": (
        "pointer advance", 3, "for i in range(n):\n    v = tl.load(x)\n    x = x + m",
    ),
    "a pointer by another name": (
        "pointer advance", 4,
        "p = x + m\nfor i in range(n):\n    v = tl.load(p + tl.arange(0, N))\n    p += m",
    ),
    "a pointer that stores": (
        "pointer advance", 3, "for i in range(n):\n    tl.store(out + i, 1)\n    out += m",
    ),
    "a vector made int64": ("int64 vector", 1, "t = tl.arange(0, N).to(tl.int64)"),
    "a vector cast to int64": ("int64 vector", 2, "t = tl.arange(0, N)\nu = tl.cast(t, tl.int64)"),
    "a vector that was loaded": (
        "int64 vector", 2, "t = tl.load(x + tl.arange(0, N))\nu = t.to(tl.int64) * m",
    ),
    "a vector plus an int64": (
        "int64 vector", 2, "s = tl.load(x).to(tl.int64)\nv = tl.load(y + (s + tl.arange(0, N)))",
    ),
    "a vector times an int64": (
        "int64 vector", 2, "s = tl.cast(m, tl.int64)\nt = tl.arange(0, N)[:, None] * s",
    ),
    "a mask from below": (
        "lower bound", 2, "t = tl.arange(0, N)\nv = tl.load(x + t, mask=(t >= n) & (t < m))",
    ),
    "a mask from below, by name": (
        "lower bound", 2, "t = tl.arange(0, N)\ninside = (t > n)[:, None]\n"
        "tl.store(out + t[:, None], 1, mask=inside)",
    ),
    "no precision": ("precision", 1, "c = tl.dot(a, b)"),
    "a precision of tensor cores": ("precision", 1, 'c = tl.dot(a, b, input_precision="tf32")'),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name):
    rule, line, body = WRONG[name]
    assert (rule, line) in rules(body)
    assert {found for found, _ in rules(body)} == {rule}


RIGHT = {
    "the last read": f"c = a + b\nd = {DOT.format('a', 'b')}",
    "both operands in one product": f"c = {DOT.format('a', 'tl.trans(a)')}",
    "a value of its own": f"t = a + 0.0\nc = {DOT.format('t', 'b')}\nd = a + c",
    "made anew": f"c = {DOT.format('a', 'b')}\na = tl.load(x)\nd = a + c",
    "made anew in every round": (
        f"for i in range(n):\n    a = tl.load(x + i)\n    c += {DOT.format('a', 'b')}"
    ),
    "the right operand": f"c = {DOT.format('a', 'b')}\nd = {DOT.format('e', 'b')}",
    "known when compiling": (
        "HALF: tl.constexpr = N // 2\n"
        "if FLAG:\n    tl.store(out, 1)\n"
        "if x is not None:\n    tl.store(out, 1)\n"
        "for i in tl.static_range(N):\n    if i + 1 < HALF:\n        tl.store(out, i)"
    ),
    "a distance from where it began": (
        "for i in range(n):\n    p = x + i * m\n    v = tl.load(p + tl.arange(0, N))\n    s += v"
    ),
    "a scalar in int64": ("s = tl.load(x).to(tl.int64)\nv = tl.load(y + s * m + tl.arange(0, N))"),
    "a mask whose bound is a choice": (
        "t = tl.arange(0, N)\nv = tl.load(x + t, mask=t < tl.where(n >= 0, m, 0))"
    ),
    "a pointer moved once": "x += m\nv = tl.load(x)",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_left_alone(name):
    assert rules(RIGHT[name]) == []


def test_widths_are_known_behind_a_call_in_the_same_file():
    helper = "@triton.jit\ndef of(x):\n    return tl.load(x).to(tl.int64), 0\n\n"
    body = "    s, _ = of(x)\n    t = s + tl.arange(0, N)\n"
    assert [one.rule for one in violations(helper + HEAD + body)] == ["int64 vector"]


@pytest.mark.parametrize("launch", ["some_kernel[(n, 2)](x)", "some_kernel[n, 2](x)"])
def test_a_grid_of_ones_own(launch):
    assert [one.rule for one in violations(f"def host(x, n):\n    {launch}\n")] == ["grid"]


def test_a_grid_bounded_by_the_cores():
    assert violations("def host(x, n):\n    some_kernel[grid(n, 20)](x)\n") == []
