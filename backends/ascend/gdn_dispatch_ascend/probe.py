"""What this machine has for the Ascend backend, and what is missing. Imports torch and no SDK.

``collect`` looks, ``reasons`` judges: a pure function, so that any machine can be tested on any.
torch_npu is never imported: without CANN its import fails, and with it it takes the device. Where
torch has loaded it by itself, CANN is there, and torch_npu is asked for its version.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Final

import torch

from gdn_dispatch import Available, Unavailable

__all__ = ["Facts", "cann_version", "collect", "probe_machine", "reasons"]

_INSTALL: Final = "pip install 'gdn-dispatch[ascend]'"

_CANN_ROOT: Final = Path("/usr/local/Ascend")
"""Where CANN's installer puts it, unless told otherwise."""

_CANN_FILES: Final = (
    "*/latest/*-linux/ascend_*_install.info",
    "*/*-linux/ascend_*_install.info",
    "*/latest/version.cfg",
)


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
        pybind11: Whether it is there: triton-ascend imports it, and 3.2.0 does not ask pip for it.
        cann: Version of CANN, or None where none is found.
    """

    torch: str
    torch_npu: str | None
    loaded: bool
    nodes: tuple[str, ...]
    triton_ascend: str | None
    triton: str | None
    pybind11: bool = True
    cann: str | None = None


def collect() -> Facts:
    """The facts about this machine. Asks no device."""
    return Facts(
        torch=torch.__version__,
        torch_npu=_version("torch-npu"),
        loaded=hasattr(torch, "npu"),
        nodes=tuple(sorted(map(str, Path("/dev").glob("davinci[0-9]*")))),
        triton_ascend=_version("triton-ascend"),
        triton=_version("triton"),
        pybind11=util.find_spec("pybind11") is not None,
        cann=cann_version(),
    )


def reasons(facts: Facts) -> tuple[str, ...]:
    """Everything that keeps the backend from running on such a machine."""
    found = (_torch_npu_reasons(facts), _device_reasons(facts), _triton_reasons(facts))
    return tuple(itertools.chain(*found))


def probe_machine() -> Available | Unavailable:
    """The answer of the ``probe`` hook."""
    facts = collect()
    found = reasons(facts)
    if found:
        return Unavailable("; ".join(found))
    cann = f"CANN {facts.cann}" if facts.cann else "a CANN that does not say its version"
    return Available(
        f"torch-npu {facts.torch_npu}, {cann}, triton-ascend {facts.triton_ascend}; "
        "this backend has not been run on an NPU by its authors"
    )


def cann_version(root: Path = _CANN_ROOT) -> str | None:
    """Version of CANN: from torch_npu where that is loaded, else from what its installer left."""
    ask = getattr(getattr(torch, "npu", None), "get_cann_version", None)
    if ask is not None:
        try:
            told = ask()
        except Exception:  # noqa: BLE001  what an SDK raises is not ours to list; the files are left
            told = ""
        if told:
            return str(told)
    for pattern in _CANN_FILES:
        for file in sorted(root.glob(pattern)):
            if found := _version_in(file):
                return found
    return None


def _version_in(file: Path) -> str | None:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"^\s*(?:version|\w*running_version)\s*=\s*\[?([\w.:-]+)", text, re.MULTILINE)
    return match[1].rpartition(":")[2] if match else None


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
        if facts.cann is None:
            yield (
                f"torch-npu {facts.torch_npu} is installed, but torch has not loaded it, and "
                f"without CANN its import fails, of which there is none under {_CANN_ROOT}: "
                "install it and source its set_env.sh"
            )
        else:
            yield (
                f"torch-npu {facts.torch_npu} is installed, but torch has not loaded it: source "
                f"set_env.sh of CANN {facts.cann}, and unset TORCH_DEVICE_BACKEND_AUTOLOAD, or "
                "import torch_npu first"
            )


def _device_reasons(facts: Facts) -> Iterator[str]:
    if not facts.nodes:
        yield "no Ascend device: there is no /dev/davinci0"


def _triton_reasons(facts: Facts) -> Iterator[str]:
    if facts.triton_ascend is None:
        yield f"triton-ascend is not installed: {_INSTALL}"
    elif not facts.pybind11:
        yield (
            f"pybind11 is not installed, and triton-ascend {facts.triton_ascend} imports it: "
            "pip install pybind11"
        )
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
