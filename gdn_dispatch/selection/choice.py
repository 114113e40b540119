"""Who asked for which backend: argument, ``use_backend``, environment, nobody, in this order."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from gdn_dispatch.config import split_backend
from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.selection.resolver import (
    FROM_ARGUMENT,
    FROM_ENVIRONMENT,
    FROM_USE_BACKEND,
    Choice,
)

if TYPE_CHECKING:
    from gdn_dispatch.config import Config

__all__ = ["NoOverride", "Override", "effective_choice", "override", "parse_choice"]


class NoOverride:
    """Value of ``override`` outside ``use_backend``; None means ``use_backend(None)``."""


Override = str | None | type[NoOverride]

override: ContextVar[Override] = ContextVar("gdn_dispatch.backend", default=NoOverride)


def effective_choice(backend: str | None, config: Config) -> Choice:
    """What holds for a call with this argument, here and now."""
    if backend is not None:
        return parse_choice(backend, FROM_ARGUMENT)
    overriding = override.get()
    if overriding is None:
        return Choice(source=FROM_USE_BACKEND)
    if isinstance(overriding, str):
        return parse_choice(overriding, FROM_USE_BACKEND)
    return Choice() if config.backend is None else parse_choice(config.backend, FROM_ENVIRONMENT)


def parse_choice(value: str, source: str) -> Choice:
    """``name`` or ``name/provider``; ``InvalidArgumentError`` for anything else."""
    try:
        name, provider = split_backend(value)
    except (AttributeError, TypeError, ValueError):
        expected = "a backend's name, or name/provider, such as 'cuda' or 'cuda/triton'"
        raise InvalidArgumentError("backend", repr(value), expected) from None
    return Choice(name, provider, source)
