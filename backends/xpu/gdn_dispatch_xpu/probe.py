"""What this machine has for the XPU backend, and what is missing. Creates no device context.

``collect`` looks, ``reasons`` judges: a pure function, so that any machine can be tested on any.
Where torch sees a device and vllm-xpu-kernels is installed, its extension is loaded to read the
schema of its operator, since versions do not tell what it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from gdn_dispatch import Available, Unavailable
from gdn_dispatch_xpu.providers import schema, triton

__all__ = ["Facts", "collect", "probe_machine", "reasons"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``reasons`` judges.

    Attributes:
        torch: Version of torch.
        xpu: oneAPI version torch was built for, or None.
        visible: Whether torch sees a device.
        nodes: Render nodes, of whichever GPU there is.
        kernels: Version of vllm-xpu-kernels, or None.
        refused: Why its operator is not called; empty if it is, or was not looked at.
        triton: A Triton that generates code for Intel GPUs, with its version, or None.
        ipex: Version of intel-extension-for-pytorch, or None.
    """

    torch: str
    xpu: str | None
    visible: bool
    nodes: tuple[str, ...]
    kernels: str | None
    refused: str
    triton: str | None
    ipex: str | None


def collect() -> Facts:
    """The facts about this machine. Counts devices, if torch can; allocates on none."""
    visible = torch.get_device_module("xpu").is_available()
    kernels, here = schema.installed_version(), triton.installed()
    return Facts(
        torch=torch.__version__,
        xpu=torch.version.xpu,
        visible=visible,
        nodes=tuple(sorted(map(str, Path("/dev/dri").glob("renderD*")))),
        kernels=kernels,
        refused=schema.unavailable() if visible and kernels else "",
        triton=here[0] if here is not None and here[1] else None,
        ipex=_version("intel-extension-for-pytorch"),
    )


def reasons(facts: Facts) -> tuple[str, ...]:
    """Everything that keeps the backend from running on such a machine."""
    return (*_device_reasons(facts), *_kernel_reasons(facts))


def probe_machine() -> Available | Unavailable:
    """The answer of the ``probe`` hook."""
    facts = collect()
    found = reasons(facts)
    return Unavailable("; ".join(found)) if found else Available(detail(facts))


def detail(facts: Facts) -> str:
    """What ``doctor`` shows of a machine that has everything."""
    words = [f"oneAPI {facts.xpu}"]
    if facts.kernels is not None and not facts.refused:
        words.append(f"vllm-xpu-kernels {facts.kernels}")
    elif facts.refused:
        words.append(f"without Intel's operator: {facts.refused}")
    if facts.triton is not None:
        words.append(facts.triton)
    if facts.ipex is not None:
        words.append(f"{_ended(facts.ipex)} and not used")
    return ", ".join(words)


def _device_reasons(facts: Facts) -> Iterator[str]:
    if facts.xpu is None:
        # some expect it of IPEX, whose wheel in the ordinary index is for CPUs
        ipex = f"; {_ended(facts.ipex)} and does not add it" if facts.ipex else ""
        yield f"this torch ({facts.torch}) is built without XPU: install torch's XPU build{ipex}"
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
    if facts.triton is not None:
        return
    if facts.kernels is None:
        yield "vllm-xpu-kernels is not installed: pip install 'gdn-dispatch[xpu]'"
    elif facts.refused:
        yield facts.refused


def _ended(version: str) -> str:
    return f"intel-extension-for-pytorch {version} has ended (2.8 was its last release)"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
