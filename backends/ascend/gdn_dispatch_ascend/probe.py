"""What this machine has for the Ascend backend, and what is missing. Imports torch and no SDK.

``collect`` looks, ``reasons`` judges: a pure function, so that any machine can be tested on any.
torch_npu is never imported: without CANN its import fails, and with it it takes the device.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from gdn_dispatch import Unavailable

__all__ = ["NO_KERNELS", "Facts", "collect", "probe_machine", "reasons"]

NO_KERNELS: Final = "this version has no kernels yet"

_INSTALL: Final = "pip install 'gdn-dispatch[ascend]'"


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``reasons`` judges.

    Attributes:
        torch: Version of torch.
        torch_npu: Version of torch-npu, or None.
        loaded: Whether torch has been extended by it in this process: torch loads it by itself.
        nodes: The driver's device nodes.
        triton_ascend: Version of triton-ascend, or None.
        triton: Version of NVIDIA's and AMD's Triton, or None.
    """

    torch: str
    torch_npu: str | None
    loaded: bool
    nodes: tuple[str, ...]
    triton_ascend: str | None
    triton: str | None


def collect() -> Facts:
    """The facts about this machine. Asks no device."""
    return Facts(
        torch=torch.__version__,
        torch_npu=_version("torch-npu"),
        loaded=hasattr(torch, "npu"),
        nodes=tuple(sorted(map(str, Path("/dev").glob("davinci[0-9]*")))),
        triton_ascend=_version("triton-ascend"),
        triton=_version("triton"),
    )


def reasons(facts: Facts) -> tuple[str, ...]:
    """Everything that keeps the backend from running on such a machine."""
    found = (_torch_npu_reasons(facts), _device_reasons(facts), _triton_reasons(facts))
    return (*itertools.chain(*found), NO_KERNELS)


def probe_machine() -> Unavailable:
    """The answer of the ``probe`` hook."""
    return Unavailable("; ".join(reasons(collect())))


def _torch_npu_reasons(facts: Facts) -> Iterator[str]:
    if facts.torch_npu is None:
        yield f"torch-npu is not installed: {_INSTALL}"
        return
    if _release(facts.torch_npu) != _release(facts.torch):
        yield (
            f"torch-npu {facts.torch_npu} is made for torch {_release(facts.torch_npu)}, this is "
            f"torch {facts.torch}: install the same version of both"
        )
    if not facts.loaded:
        yield (
            f"torch-npu {facts.torch_npu} is installed, but torch has not loaded it: unset "
            "TORCH_DEVICE_BACKEND_AUTOLOAD, or import torch_npu first"
        )


def _device_reasons(facts: Facts) -> Iterator[str]:
    if not facts.nodes:
        yield "no Ascend device: there is no /dev/davinci0"


def _triton_reasons(facts: Facts) -> Iterator[str]:
    if facts.triton_ascend is None:
        yield f"triton-ascend is not installed: {_INSTALL}"
    if facts.triton is not None:
        yield (
            f"triton {facts.triton} and triton-ascend overwrite each other's files: uninstall "
            f"both, then {_INSTALL}"
        )


def _release(version: str) -> str:
    """2.10.0 of 2.10.0.post7 and of 2.10.0+cpu."""
    return ".".join(re.findall(r"\d+", version)[:3])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
