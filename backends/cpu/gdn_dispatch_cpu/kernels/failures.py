"""``gdn_status`` as the errors of ``gdn_dispatch``."""

from __future__ import annotations

from typing import NoReturn

from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch_cpu.kernels.library import Fault, load_library

__all__ = ["refuse"]

_NO_MEMORY, _NO_SUCH_PATH, _BAD_ACCEPTED = 1, 2, 6
_SLOTS = {3: "state_indices", 4: "initial_state_indices", 5: "checkpoint_indices"}


def refuse(status: int, fault: Fault | None = None) -> NoReturn:
    """Raise what a status other than 0 means; nothing has been written."""
    if status == _NO_MEMORY:
        raise MemoryError("gdn-dispatch-cpu: no memory for scratch space")
    if status == _NO_SUCH_PATH:
        there = ", ".join(load_library().paths)
        raise InvalidArgumentError("path", "an instruction set that is not here", f"one of {there}")
    if fault is None:
        raise AssertionError(f"gdn_cpu returned {status}")
    if status == _BAD_ACCEPTED:
        raise InvalidArgumentError(
            "num_accepted_tokens", f"{fault.value} in row {fault.row}", f"1 to {fault.limit}"
        )
    raise InvalidArgumentError(
        _SLOTS[status],
        f"slot {fault.value}",
        f"slots below {fault.limit}, the smaller pool's size",
    )
