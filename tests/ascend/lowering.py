"""Every launch compiled to Linalg by triton-ascend, and none launched: no CANN, no NPU.

Host functions run whole, on CPU tensors; what they launch has the signature, the constants and the
grid that an NPU would get. The driver and the hook are those that Triton has for the purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass, field

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("npu", "Ascend910B3", 0)
GRID_LIMIT = 65_535  # triton-ascend refuses a larger product when it launches


@dataclass(frozen=True)
class Launch:
    """One launch: what was compiled, and the grid."""

    kernel: str
    signature: dict
    constants: dict
    grid: tuple
    source: object = field(repr=False, compare=False)
    options: object = field(repr=False, compare=False)

    @property
    def key(self):
        """What makes two launches one compiled kernel."""
        return hashlib.sha256(
            repr((self.kernel, self.signature, self.constants, self.source.attrs.hash())).encode()
        ).hexdigest()

    def variant(self):
        """What it is compiled for: constants, and dtypes of the tensors that are given."""
        names = (f"{k}={v}" for k, v in sorted(self.constants.items()) if v is not None)
        given = (
            f"{k}={v.removeprefix('*')}"
            for k, v in self.signature.items()
            if v.startswith("*") and k not in self.constants
        )
        return " ".join((*names, *given))


class NotLowered(Exception):
    """A kernel that triton-adapter-opt or the front end refuses."""


def lower(launch):
    """Linalg of a launch, as text."""
    backend = make_backend(TARGET)
    stages = {}
    backend.add_stages(stages, launch.options)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    metadata = {"hash": launch.key, "target": TARGET, **launch.options.__dict__}
    try:
        module = launch.source.make_ir(
            launch.options, backend.get_codegen_implementation(), backend.get_module_map(), context
        )
        module = stages["ttir"](module, metadata)
        return stages["ttadapter"](module, metadata)
    except subprocess.CalledProcessError as error:
        raise NotLowered(f"{launch.kernel}: {_cause(error.stderr.decode())}") from error
    except triton.CompilationError as error:
        raise NotLowered(f"{launch.kernel}: {error}") from error


def mix_mode(linalg):
    """``aiv`` for a kernel of vectors, ``aic`` for the cube, ``mix`` for both."""
    return re.search(r'mix_mode\s*=\s*"([^"]+)"', linalg).group(1)


class _Driver:
    """Says what triton-ascend's own driver would say of a 910B3, and launches nothing."""

    launcher_cls = None

    def get_current_target(self):
        return TARGET

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=None):
        return 0

    def get_device_interface(self):
        return torch.cpu


@contextlib.contextmanager
def recorded():
    """Within the context launches are collected, each as a ``Launch``, and not made."""
    launches = []

    def hook(*, key, fn, compile, **rest):
        frame = sys._getframe(1)  # Triton tells its hook all but the grid
        while "grid" not in frame.f_locals or "warmup" not in frame.f_locals:
            frame = frame.f_back
        grid = frame.f_locals["grid"]
        options = make_backend(TARGET).parse_options({})
        (attrs,) = compile["configs"]
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], attrs)
        launches.append(
            Launch(fn.name, dict(compile["signature"]), dict(compile["constants"]), tuple(grid),
                   source, options)
        )  # fmt: skip
        return True  # as if it were in the cache: nothing is compiled, nothing launched

    before = JITFunction.cache_hook
    driver.set_active(_Driver())
    JITFunction.cache_hook = staticmethod(hook)
    try:
        yield launches
    finally:
        JITFunction.cache_hook = before


def _cause(stderr):
    """The lines that say why, without the addresses of a crash."""
    lines = [line for line in stderr.splitlines() if not re.match(r"\s*#\d+ 0x", line)]
    return "\n".join(lines)[:2000]
