"""Intel's wheel on a machine without an Intel GPU: loaded, and its operator given a CPU kernel.

The libraries it needs of oneAPI come from pip; those of the device are stubs, built here.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gdn_dispatch_xpu.providers import schema

HERE = Path(__file__).parent
INSTALLED = importlib.util.find_spec("vllm_xpu_kernels") is not None
REACHED = "reached the device"

_ONEAPI = ("libintlc.so.5", "libimf.so", "libsycl.so.9")
_STUBS = {
    "libze_loader.so.1": ["-DLEVEL_ZERO"],
    "libc10_xpu.so": ["-DC10_XPU"],
    "libtorch_xpu.so": [],
}
_XPU = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)


def why_not() -> str:
    """What is missing for loading the wheel here; empty if nothing is."""
    if not INSTALLED:
        return "vllm-xpu-kernels is not installed (make xpu)"
    absent = [name for name in _ONEAPI if not (Path(sys.prefix) / "lib" / name).is_file()]
    if absent:
        return f"no {', '.join(absent)}: pip install intel-sycl-rt intel-cmplr-lib-rt (make xpu)"
    return "" if shutil.which("g++") else "no g++ to build the stub libraries with"


def load(where: Path) -> Any:
    """Build the stubs in ``where``, load everything, and return the operator."""
    for name, flags in _STUBS.items():
        subprocess.run(
            ["g++", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{name}", *flags,
             "-o", str(where / name), str(HERE / "device_stubs.cpp")],
            check=True,
        )  # fmt: skip
    libraries = [where / "libze_loader.so.1"]
    libraries += [Path(sys.prefix) / "lib" / name for name in _ONEAPI]
    libraries += [where / "libc10_xpu.so", where / "libtorch_xpu.so"]
    for library in libraries:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    schema.operator.cache_clear()
    found = schema.operator()
    assert isinstance(found, schema.Operator), found
    return found.call


class Kernel:
    """The operator's CPU kernel, registered under Intel's schema: whatever ``run`` is."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator
        self.run: Callable[..., None] = self.intels
        self.calls: list[dict[str, Any]] = []
        self._library = torch.library.Library("_xpu_C", "IMPL")
        self._library.impl("gdn_attention", self._call, "CPU")

    @property
    def names(self) -> list[str]:
        """Of the operator's arguments, as registered."""
        return [argument.name for argument in self.operator._schema.arguments]

    def _call(self, *arguments: Any) -> None:
        self.calls.append(dict(zip(self.names, arguments, strict=True)))
        self.run(*arguments)

    def intels(self, *arguments: Any) -> None:
        """Intel's own kernel, on CPU tensors: its checks, and then a stub."""
        self.operator.redispatch(_XPU, *arguments)

    @contextmanager
    def running(self, run: Callable[..., None]) -> Iterator[list[dict[str, Any]]]:
        """Run ``run`` meanwhile; gives the calls that are made, by argument names."""
        before, self.run, self.calls = self.run, run, []
        try:
            yield self.calls
        finally:
            self.run = before
