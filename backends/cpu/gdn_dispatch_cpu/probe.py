"""What this machine has for the CPU backend, and what is missing.

``collect`` looks, ``reasons`` judges: a pure function, so that any machine can be tested on any.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from gdn_dispatch import Available, Unavailable
from gdn_dispatch_cpu.kernels.library import load_library

__all__ = ["Facts", "collect", "probe_machine", "reasons"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``reasons`` judges.

    Attributes:
        machine: Architecture, such as ``x86_64``.
        capability: Widest vector instructions torch uses here, such as ``AVX512``.
        kernels: Instruction set the kernels will use, such as ``avx512_bf16``, or None.
        failure: Why there are no kernels, or empty.
    """

    machine: str
    capability: str
    kernels: str | None
    failure: str


def collect() -> Facts:
    """The facts about this machine."""
    kernels, failure = None, ""
    try:
        kernels = load_library().best_path
    except OSError as error:
        failure = str(error)
    capability = torch.backends.cpu.get_cpu_capability()
    return Facts(platform.machine(), capability, kernels, failure)


def reasons(facts: Facts) -> tuple[str, ...]:
    """Everything that keeps the backend from running on such a machine."""
    if facts.kernels is not None:
        return ()
    here = f"{facts.machine}, {facts.capability}"
    return (
        f"no compiled kernels ({facts.failure}): the slower torch backend serves this CPU "
        f"({here}); reinstall gdn-dispatch-cpu where there is a C++17 compiler with OpenMP",
    )


def probe_machine() -> Available | Unavailable:
    """The answer of the ``probe`` hook."""
    facts = collect()
    found = reasons(facts)
    if found:
        return Unavailable("; ".join(found))
    threads = torch.get_num_threads()
    return Available(f"kernels for {facts.kernels}, {threads} thread{'s' * (threads != 1)}")
