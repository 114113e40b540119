"""What this machine has for the XPU backend, and what is missing. Imports torch and no SDK.

``collect`` looks, ``reasons`` judges: a pure function, so that any machine can be tested on any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from gdn_dispatch import Unavailable

__all__ = ["NO_KERNELS", "Facts", "collect", "probe_machine", "reasons"]

NO_KERNELS: Final = "this version has no kernels yet"


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``reasons`` judges.

    Attributes:
        torch: Version of torch.
        xpu: oneAPI version torch was built for, or None.
        visible: Whether torch sees a device.
        nodes: Render nodes, of whichever GPU there is.
        kernels: Version of vllm-xpu-kernels, or None.
        ipex: Version of intel-extension-for-pytorch, or None.
    """

    torch: str
    xpu: str | None
    visible: bool
    nodes: tuple[str, ...]
    kernels: str | None
    ipex: str | None


def collect() -> Facts:
    """The facts about this machine. Counts devices, if torch can; allocates on none."""
    return Facts(
        torch=torch.__version__,
        xpu=torch.version.xpu,
        visible=torch.get_device_module("xpu").is_available(),
        nodes=tuple(sorted(map(str, Path("/dev/dri").glob("renderD*")))),
        kernels=_version("vllm-xpu-kernels"),
        ipex=_version("intel-extension-for-pytorch"),
    )


def reasons(facts: Facts) -> tuple[str, ...]:
    """Everything that keeps the backend from running on such a machine."""
    return (*_device_reasons(facts), *_kernel_reasons(facts), NO_KERNELS)


def probe_machine() -> Unavailable:
    """The answer of the ``probe`` hook."""
    return Unavailable("; ".join(reasons(collect())))


def _device_reasons(facts: Facts) -> Iterator[str]:
    if facts.xpu is None:
        # some expect it of IPEX, which ended with 2.8: its wheel in the ordinary index is for CPUs
        ipex = f", and intel-extension-for-pytorch {facts.ipex} does not add it" * bool(facts.ipex)
        yield f"this torch ({facts.torch}) is built without XPU{ipex}: install torch's XPU build"
    elif facts.visible:
        return
    elif facts.nodes:
        here = ", ".join(facts.nodes)
        yield (
            f"torch sees no XPU device, although there is {here}: it must be Intel's, with its "
            "compute runtime (Level Zero) installed"
        )
    if not facts.nodes:
        yield "no Intel GPU: there is no /dev/dri/renderD128"


def _kernel_reasons(facts: Facts) -> Iterator[str]:
    if facts.kernels is None:
        yield "vllm-xpu-kernels is not installed: pip install 'gdn-dispatch[xpu]'"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
