"""The two environment variables, and the only file that reads ``os.environ``.

``GDN_DISPATCH_BACKEND``
    One backend, as ``name`` or ``name/provider``. Unset or empty: chosen automatically.
``GDN_DISPATCH_DISABLE``
    Names separated by commas. A backend named here is never imported; the names in
    ``INTEGRATIONS`` switch off an integration instead.

Both are read once and parsed strictly: there are no truth values, and a value that cannot be
understood is an error. It is remembered, not raised, because ``import gdn_dispatch`` must work on
a machine where ``doctor`` has yet to say what is wrong; the first call raises it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdn_dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BACKEND_VARIABLE",
    "DISABLE_VARIABLE",
    "INTEGRATIONS",
    "Config",
    "is_name",
    "read",
    "split_backend",
]

BACKEND_VARIABLE = "GDN_DISPATCH_BACKEND"
DISABLE_VARIABLE = "GDN_DISPATCH_DISABLE"

INTEGRATIONS = frozenset({"sglang", "transformers", "vllm"})
"""Names in ``GDN_DISPATCH_DISABLE`` that mean an integration; every other one is a backend."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the environment asks for.

    Attributes:
        backend: ``name`` or ``name/provider``; None where the choice is automatic.
        disable: Every name of ``GDN_DISPATCH_DISABLE``.
        errors: What could not be understood. What could be, holds all the same: a backend named
            beside a malformed word is not imported.
    """

    backend: str | None = None
    disable: frozenset[str] = frozenset()
    errors: tuple[ConfigurationError, ...] = ()

    @property
    def disabled_backends(self) -> frozenset[str]:
        """The backends that must not be imported."""
        return self.disable - INTEGRATIONS

    @property
    def disabled_integrations(self) -> frozenset[str]:
        """The integrations that must not be switched on."""
        return self.disable & INTEGRATIONS


def is_name(word: str) -> bool:
    """Whether ``word`` can name a backend or a provider: an ASCII identifier."""
    return word.isascii() and word.isidentifier()


def split_backend(value: str) -> tuple[str, str | None]:
    """Split ``name`` or ``name/provider``; ``ValueError`` for anything else."""
    name, slash, provider = value.partition("/")
    if not is_name(name) or (slash and not is_name(provider)):
        raise ValueError(f"{value!r} is neither a backend's name nor name/provider")
    return name, provider if slash else None


def read(environ: Mapping[str, str] = os.environ) -> Config:
    """Parse both variables; never raises."""
    errors: list[ConfigurationError] = []

    backend = environ.get(BACKEND_VARIABLE, "").strip() or None
    if backend is not None:
        try:
            split_backend(backend)
        except ValueError:
            errors.append(
                ConfigurationError(
                    f"{BACKEND_VARIABLE}={backend!r}: expected one backend, such as cuda or "
                    "cuda/triton; unset it to choose automatically"
                )
            )
            backend = None

    disable = environ.get(DISABLE_VARIABLE, "").strip()
    words = [word.strip() for word in disable.split(",")] if disable else []
    malformed = [word for word in words if not is_name(word)]
    if malformed:
        listed = ", ".join(map(repr, malformed))
        errors.append(
            ConfigurationError(
                f"{DISABLE_VARIABLE}={disable!r}: {listed} cannot name anything; expected names "
                "separated by commas, such as ascend,xpu"
            )
        )
    return Config(backend, frozenset(words) - frozenset(malformed), tuple(errors))
