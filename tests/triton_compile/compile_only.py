"""A driver for Triton that compiles for an NVIDIA GPU and launches nothing.

The host functions run as they would on the device, on CPU tensors; every launch is compiled with
Triton's own ptxas for the architecture asked for, and what ptxas says of it is kept.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from uniform_registers import unwritten

# Bytes of shared memory a block may have, by architecture (CUDA C++ Programming Guide, table
# "Technical Specifications per Compute Capability").
SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
GRID_LIMITS = (2**31 - 1, 65_535, 65_535)


@dataclass(frozen=True)
class Launch:
    """One kernel, compiled: its resources, and the grid it was launched with.

    ``stack`` is bytes per thread in local memory: what is spilled goes there. ``unwritten`` are
    instructions that read uniform registers nobody wrote (``uniform_registers``). ``serialized``:
    each of a warp group's products is waited for before the next begins, which the assembler does
    where registers are short (its warning C7512).
    """

    kernel: str
    arch: int
    num_warps: int
    num_stages: int
    constants: str
    registers: int
    stack: int
    shared: int
    unwritten: tuple[str, ...]
    serialized: bool
    grid: tuple[int, ...]

    @property
    def key(self):
        """What makes two launches one compiled kernel."""
        return self.kernel, self.num_warps, self.num_stages, self.constants

    def row(self):
        """For the table; the grid belongs to a launch, not to a kernel."""
        found = asdict(self)
        del found["grid"]
        found["unwritten"] = len(self.unwritten)
        return found


class _Utils:
    def __init__(self, target):
        self.target = target
        self.pending = None

    def get_device_properties(self, device):
        return {
            "max_shared_mem": SHARED_MEMORY[self.target.arch],
            "multiprocessor_count": 132,
            "max_num_regs": 65_536,
            "warpSize": 32,
        }

    def load_binary(self, name, kernel, shared, device):
        registers, stack, sass = _usage(kernel)
        # the fault was seen on sm_90, whose instructions the check knows
        found = unwritten(sass) if self.target.arch == 90 else ()
        # the launcher is made just before
        self.pending.usage = registers, stack, found, _serialized(sass)
        return object(), object(), registers, stack, 1024


class CompileOnly:
    """Set active, it takes the place of Triton's driver; ``launches`` fills."""

    def __init__(self, arch):
        self.target = GPUTarget("cuda", arch, 32)
        self.utils = _Utils(self.target)
        self.launches = []
        launches, utils = self.launches, self.utils

        class Launcher:
            def __init__(self, src, metadata):
                self.metadata, self.constants, self.usage = metadata, _constants(src), None
                utils.pending = self

            def __call__(self, x, y, z, stream, function, packed, *rest):
                launches.append((self.metadata, self.constants, self.usage, (x, y, z)))

        self.launcher_cls = Launcher

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # Triton keeps compiled kernels by device number

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def is_active(self):
        return True


def compiled(arch, work):
    """Run ``work()`` with every launch compiled for ``arch``: the launches, in order.

    For a process of its own: the driver stays, as there is none to go back to.
    """
    fake = CompileOnly(arch)
    driver.set_active(fake)
    work()
    found = []
    for metadata, constants, (registers, stack, reads, serialized), grid in fake.launches:
        found.append(
            Launch(
                kernel=metadata.name,
                arch=arch,
                num_warps=metadata.num_warps,
                num_stages=metadata.num_stages,
                constants=constants,
                registers=registers,
                stack=stack,
                shared=metadata.shared,
                unwritten=tuple(reads),
                serialized=serialized,
                grid=grid,
            )
        )
    return found


def _constants(src):
    """What was compiled into a kernel, ``NAME=value``; strides and sizes left out."""
    names = src.fn.arg_names
    found = ((names[path[0]], value) for path, value in src.constants.items())
    return " ".join(f"{name}={value}" for name, value in found if name.isupper() or value is None)


def _serialized(sass):
    """Whether there is a wait for every product of a warp group; else there is one for several."""
    products, waits = (len(re.findall(name, sass)) for name in (r"\bHGMMA\.", r"GROUP\.DEPBAR"))
    return 0 < products <= waits


def _usage(cubin):
    """Registers and bytes of stack per thread, and the machine code, as cuobjdump reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def ask(option):
            command = [tool, option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        text, sass = ask("-res-usage"), ask("-sass")
    (registers,) = re.findall(r"REG:(\d+)", text)
    (stack,) = re.findall(r"STACK:(\d+)", text)
    return int(registers), int(stack), sass
