"""A layer's own ``forward``, with other meanings for a few of its globals.

A Python function is a code object and the dictionary it looks its globals up in. The same code with
another dictionary is a new function: no text of transformers is repeated here, and nothing of
transformers is written to.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import CellType, FunctionType
from typing import Any

from gdn_dispatch.errors import IntegrationError
from gdn_dispatch.integrations.transformers.adapters import replacements
from gdn_dispatch.integrations.transformers.discovery import calls_the_rules, innermost

__all__ = ["adapted_class", "adapted_forward", "is_adapted", "original_class"]

_ORIGINAL = "__gdn_dispatch_original__"


@cache
def adapted_forward(cls: Any, backend: str | None = None) -> FunctionType:
    """``cls.forward`` on our functions; one and the same for every layer that asks.

    Args:
        cls: A class for which ``calls_the_rules`` holds.
        backend: As in ``gdn_dispatch.chunk_gated_delta_rule``.

    Raises:
        IntegrationError: A decorator of ``forward`` hides the function it calls.
    """
    function = cls.forward
    ours = replacements(innermost(function).__globals__, backend)
    rebound = _rebind(function, ours, f"{cls.__module__}.{cls.__qualname__}.forward")
    rebound.__dict__[_ORIGINAL] = function
    return rebound


def is_adapted(function: object) -> bool:
    """Whether ``function`` came from ``adapted_forward``."""
    return _ORIGINAL in getattr(function, "__dict__", {})


@cache
def adapted_class(cls: Any) -> Any:
    """A subclass of the same name whose ``forward`` is the adapted one.

    It keeps name and module, by which transformers finds classes, weights and what not to split.
    """
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce_ex,
        "forward": adapted_forward(cls),
        _ORIGINAL: cls,
    }
    return type(cls)(cls.__name__, (cls,), namespace)


def original_class(cls: type[Any]) -> type[Any] | None:
    """The class behind an adapted ``cls``, or ``cls``, if its ``forward`` calls the rules."""
    original: type[Any] = getattr(cls, _ORIGINAL, cls)
    return original if calls_the_rules(original) else None


def _reduce_ex(self: Any, protocol: Any) -> tuple[Any, ...]:
    # By its name, pickle would find the class of transformers in place of this one.
    original = getattr(type(self), _ORIGINAL)
    reduced: tuple[Any, ...] = original.__reduce_ex__(self, protocol)
    if _ORIGINAL not in type(self).__dict__:  # somebody's subclass has a name of its own
        return reduced
    _, _, *state = reduced
    return _restore, (original.__module__, original.__qualname__), *state


def _restore(module: str, name: str) -> Any:
    found = getattr(importlib.import_module(module), name)
    cls = adapted_class(getattr(found, _ORIGINAL, found))
    return cls.__new__(cls)


def _rebind(function: Any, ours: dict[str, Any], name: str) -> FunctionType:
    """The same function on ``ours``, below the same decorators."""
    if not isinstance(function, FunctionType):
        kind = type(function).__name__
        raise IntegrationError(f"{name}: got a {kind}, expected a plain function to rebind")
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        # Without __name__: torch.compile would look for the globals in the module of that name.
        scope = {k: v for k, v in function.__globals__.items() if k != "__name__"}
        return _copy(function, scope | ours, function.__closure__)
    # A decorator holds what it wraps in its closure; its copy holds the copy, so what it does
    # (firing accelerate's offloading hooks, say) still happens.
    cells = function.__closure__ or ()
    holds = [_contents(cell) is inner for cell in cells]
    if not any(holds):
        raise IntegrationError(
            f"{name}: a decorator keeps the function it wraps out of reach (not in its closure), "
            "so it cannot be rebound below it"
        )
    rebound = _rebind(inner, ours, name)
    closure = tuple(CellType(rebound) if h else c for c, h in zip(cells, holds, strict=True))
    copied = _copy(function, function.__globals__, closure)
    copied.__dict__["__wrapped__"] = rebound
    return copied


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _copy(
    function: FunctionType, scope: dict[str, Any], closure: tuple[CellType, ...] | None
) -> FunctionType:
    copied = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, closure
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__dict__.update(function.__dict__)
    copied.__module__, copied.__qualname__ = function.__module__, function.__qualname__
    copied.__doc__, copied.__annotations__ = function.__doc__, function.__annotations__
    return copied
