"""What this machine has for the CUDA backend, and what is missing. Imports torch and no SDK.

``collect`` looks, ``reasons`` judges: a pure function, so that any machine can be tested on any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from gdn_dispatch import Available, Unavailable
from gdn_dispatch.triton_kernels.specialized_config import GLUON

__all__ = ["Facts", "collect", "detail", "probe_machine", "reasons"]

_TRITON: Final = ("triton", "pytorch-triton")
_RIVALS: Final = ("triton-ascend", "triton-xpu", "pytorch-triton-xpu")
"""Distributions that install a package ``triton`` of their own, without NVIDIA's code generator."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``reasons`` judges.

    Attributes:
        torch: Version of torch.
        cuda: CUDA version torch was built for, or None.
        hip: HIP version torch was built for, or None. Such a torch calls its devices cuda, too.
        visible: Whether torch sees a device.
        nodes: The driver's device nodes.
        triton: Version of Triton, or None.
        rivals: Installed rivals of Triton, each with its version.
    """

    torch: str
    cuda: str | None
    hip: str | None
    visible: bool
    nodes: tuple[str, ...]
    triton: str | None
    rivals: tuple[str, ...]


def collect() -> Facts:
    """The facts about this machine. Counts devices; creates no context on any."""
    versions = {name: _version(name) for name in _TRITON + _RIVALS}
    return Facts(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        visible=torch.get_device_module("cuda").is_available(),
        nodes=tuple(sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))),
        triton=next((versions[name] for name in _TRITON if versions[name]), None),
        rivals=tuple(f"{name} {versions[name]}" for name in _RIVALS if versions[name]),
    )


def reasons(facts: Facts) -> tuple[str, ...]:
    """Everything that keeps the backend from running on such a machine."""
    return (*_device_reasons(facts), *_triton_reasons(facts))


def probe_machine() -> Available | Unavailable:
    """The answer of the ``probe`` hook."""
    facts = collect()
    found = reasons(facts)
    if found:
        return Unavailable("; ".join(found))
    return Available(detail(facts))


def detail(facts: Facts) -> str:
    """What a machine has that misses nothing, and which kernels its Triton rules out."""
    found = f"CUDA {facts.cuda}, Triton {facts.triton}"
    if facts.triton is None or facts.triton.startswith(GLUON):
        return found
    return f"{found} (not {GLUON}x: prefill on Hopper by the portable kernels)"


def _device_reasons(facts: Facts) -> Iterator[str]:
    if facts.hip is not None:
        yield f"this torch ({facts.torch}) is built for ROCm (HIP {facts.hip}), not for CUDA"
    elif facts.cuda is None:
        yield f"this torch ({facts.torch}) is built without CUDA"
    elif facts.visible:
        return  # whatever nodes there are: under WSL there are none
    elif facts.nodes:
        here = ", ".join(facts.nodes)
        yield (
            f"torch sees no CUDA device, although there is {here}: the driver must be new enough "
            f"for CUDA {facts.cuda}"
        )
    if not facts.nodes:
        yield "no NVIDIA device: there is no /dev/nvidia0"


def _triton_reasons(facts: Facts) -> Iterator[str]:
    if facts.triton is None:
        yield "triton is not installed: pip install 'gdn-dispatch[cuda]'"
    if facts.rivals:
        yield (
            f"{' and '.join(facts.rivals)} overwrites the package triton with one for another "
            "device: use an environment of its own for each"
        )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
