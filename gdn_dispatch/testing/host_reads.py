"""Whoever reads a device tensor on the host is caught, on a device and on a CPU alike.

On an accelerator such a read waits for everything queued before it, in every layer. On a CPU it
costs nothing and goes unnoticed, so it is looked for in what torch is asked to do: by the methods
that hand values to Python, by the operators whose result, or its shape, torch itself says depends
on values, and by copies from a device to the CPU. What an accelerator is planned with is the host's
own, and may be read there; on a CPU nobody can tell the one from the other, and every read counts.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["HostReads", "record_host_reads"]

_METHODS = frozenset(
    (
        "__array__",
        "__bool__",
        "__complex__",
        "__contains__",
        "__dlpack__",
        "__float__",
        "__index__",
        "__int__",
        "__repr__",
        "cpu",
        "item",
        "numpy",
        "tolist",
    )
)
_aten = torch.ops.aten
_READING = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
_INDEXING = frozenset((_aten.index, _aten.index_put, _aten.index_put_))
_HERE = (str(Path(torch.__file__).parent), __file__)


class HostReads(list[str]):
    """What was caught: the name of the read and the line that asked for it."""


class _Methods(TorchFunctionMode):
    def __init__(self, found: HostReads, on_cpu: bool) -> None:
        super().__init__()
        self.found = found
        self.on_cpu = on_cpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _METHODS and (self.on_cpu or _on_a_device(args, kwargs)):
            self.found.append(f"{resolve_name(func) or name} at {_caller()}")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: HostReads, on_cpu: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.on_cpu = on_cpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        looks = self.on_cpu or _on_a_device(args, kwargs)
        if looks and (_reads(func, args, kwargs) or _brings_to_cpu(func, args, kwargs)):
            self.found.append(f"{func} at {_caller()}")
        return func(*args, **kwargs)


@contextmanager
def record_host_reads(device: torch.device | str = "cpu") -> Iterator[HostReads]:
    """Collect every host read of the code inside; a read is recorded and then done.

    Args:
        device: Where the code's inputs are. Elsewhere than on a CPU, reads of the CPU's tensors are
            not collected.
    """
    found = HostReads()
    on_cpu = torch.device(device).type == "cpu"
    with _Operators(found, on_cpu), _Methods(found, on_cpu):
        yield found


def _on_a_device(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
    """Whether a tensor among the arguments, or within them, is not on the CPU."""
    leaves = tree_leaves((args, kwargs))
    return any(isinstance(x, torch.Tensor) and x.device.type != "cpu" for x in leaves)


def _reads(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the result depends on values in a way that the host has to know."""
    if func.overloadpacket in _INDEXING:  # by a boolean tensor it is a ``nonzero`` in disguise
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if func.overloadpacket is _aten.repeat_interleave and kwargs.get("output_size") is not None:
        return False
    return not _READING.isdisjoint(func.tags)


def _brings_to_cpu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it copies a tensor from a device to the CPU."""
    if func.overloadpacket is _aten._to_copy:
        source, target = args[0].device, kwargs.get("device") or args[0].device
    elif func.overloadpacket is _aten.copy_:
        source, target = args[1].device, args[0].device
    else:
        return False
    return bool(source.type != "cpu" and target.type == "cpu")


def _caller() -> str:
    """The innermost line that is neither torch's nor this module's."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_HERE):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "an unknown place"
