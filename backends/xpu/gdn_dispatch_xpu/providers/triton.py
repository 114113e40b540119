"""``xpu/triton``: whether a Triton that generates code for Intel GPUs is installed.

It is not the Triton of the ordinary package index, which has no code generator for them: builds of
it come from PyTorch's index for XPU (``pytorch-triton-xpu``, later ``triton-xpu``) and from vLLM's
(``triton``, with ``+xpu`` in its version). All install a package ``triton``.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

__all__ = ["DISTRIBUTIONS", "installed", "unavailable"]

DISTRIBUTIONS: Final = ("pytorch-triton-xpu", "triton-xpu", "triton", "pytorch-triton")

_GENERATOR: Final = Path("triton", "backends", "intel")


def installed() -> tuple[str, bool] | None:
    """Distribution and version of the Triton here, and whether it has Intel's code generator."""
    for name in DISTRIBUTIONS:
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        return f"{name} {found.version}", Path(str(found.locate_file(_GENERATOR))).is_dir()
    return None


def unavailable() -> str:
    """Why the Triton kernels cannot be used here; empty if they can."""
    found = installed()
    if found is None:
        return "no Triton for Intel GPUs is installed: it comes with torch's XPU build"
    if not found[1]:
        return f"{found[0]} has no code generator for Intel GPUs: use the one of torch's XPU build"
    return ""
