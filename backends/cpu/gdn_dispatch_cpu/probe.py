"""What this machine has for the CPU backend, and what is missing.

``collect`` looks, ``reasons`` judges: a pure function, so that any machine can be tested on any.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Final

import torch

from gdn_dispatch import Unavailable

__all__ = ["NO_KERNELS", "Facts", "collect", "probe_machine", "reasons"]

NO_KERNELS: Final = "this version has no kernels yet"


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``reasons`` judges.

    Attributes:
        machine: Architecture, such as ``x86_64``.
        capability: Widest vector instructions torch uses here, such as ``AVX512``.
    """

    machine: str
    capability: str


def collect() -> Facts:
    """The facts about this machine."""
    return Facts(platform.machine(), torch.backends.cpu.get_cpu_capability())


def reasons(facts: Facts) -> tuple[str, ...]:
    """Everything that keeps the backend from running on such a machine: here, one sentence."""
    here = f"{facts.machine}, {facts.capability}"
    return (f"{NO_KERNELS}: the built-in torch backend serves this CPU ({here})",)


def probe_machine() -> Unavailable:
    """The answer of the ``probe`` hook."""
    return Unavailable("; ".join(reasons(collect())))
