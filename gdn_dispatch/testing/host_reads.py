"""Whoever reads a device tensor on the host is caught, on a device and on a CPU alike.

On an accelerator such a read waits for everything queued before it, in every layer. On a CPU it
costs nothing and goes unnoticed, so it is looked for in what torch is asked to do: by the methods
that hand values to Python, and by the operators whose result has a shape that depends on values.
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

__all__ = ["HostReads", "record_host_reads"]

_METHODS = frozenset(
    (
        "__array__",
        "__bool__",
        "__complex__",
        "__contains__",
        "__float__",
        "__index__",
        "__int__",
        "cpu",
        "item",
        "numpy",
        "tolist",
    )
)
_aten = torch.ops.aten
_READING_OPERATORS = frozenset(
    (
        _aten._local_scalar_dense,
        _aten._unique2,
        _aten.bincount,
        _aten.equal,
        _aten.masked_select,
        _aten.nonzero,
        _aten.unique_consecutive,
        _aten.unique_dim,
    )
)
_HERE = (str(Path(torch.__file__).parent), __file__)


class HostReads(list[str]):
    """What was caught: the name of the read and the line that asked for it."""


class _Methods(TorchFunctionMode):
    def __init__(self, found: HostReads) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _METHODS or (name == "to" and _to_cpu(args, kwargs or {})):
            self.found.append(f"{resolve_name(func) or name} at {_caller()}")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: HostReads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket
        if packet in _READING_OPERATORS or _counts_repeats(func) or _selects_by_mask(packet, args):
            self.found.append(f"{func} at {_caller()}")
        return func(*args, **(kwargs or {}))


@contextmanager
def record_host_reads() -> Iterator[HostReads]:
    """Collect every host read of the code inside; a read is recorded and then done."""
    found = HostReads()
    with _Operators(found), _Methods(found):
        yield found


def _to_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``to`` brings a tensor from a device to the host."""
    if args[0].device.type == "cpu":
        return False
    wanted = [*args[1:], *kwargs.values()]
    return any(isinstance(x, torch.device | str) and torch.device(x).type == "cpu" for x in wanted)


def _counts_repeats(func: Any) -> bool:
    return bool(func is _aten.repeat_interleave.Tensor)


def _selects_by_mask(packet: Any, args: tuple[Any, ...]) -> bool:
    """Indexing with a boolean tensor is a ``nonzero`` in disguise."""
    if packet not in (_aten.index, _aten.index_put, _aten.index_put_):
        return False
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _caller() -> str:
    """The innermost line that is neither torch's nor this module's."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_HERE):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "an unknown place"
