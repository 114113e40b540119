"""Uninitialised memory that shows: whoever reads before writing finds NaN."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_permuted,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
}


class PoisonedMemory(TorchDispatchMode):
    """Fill every uninitialised tensor allocated inside; ``count`` is how many there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS:
            self.count += 1
            fill_with_poison(result)
        return result


def fill_with_poison(x: torch.Tensor) -> torch.Tensor:
    """NaN, or the largest number there is."""
    if x.is_floating_point():
        return x.fill_(float("nan"))
    if x.dtype is torch.bool:
        return x.fill_(True)
    return x.fill_(torch.iinfo(x.dtype).max)


def in_new_thread(function: Callable[[], T]) -> T:
    """Call it in a thread of its own, which has no scratch memory of earlier calls.

    ``use_backend`` around it holds inside as well.
    """
    context = contextvars.copy_context()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(context.run(function))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def with_poisoned_memory(function: Callable[[], T]) -> T:
    """Call it where neither new memory nor scratch memory holds anything but poison."""

    def run() -> T:
        with PoisonedMemory() as memory:
            result = function()
        assert memory.count, "nothing was allocated inside: is the mode still in force?"
        return result

    return in_new_thread(run)
