"""The tree of everything gdn_dispatch raises.

One rule for every message: what was asked, what was got, what is supported, and the way out.
``InvalidArgumentError``, ``InvalidPlanError`` and ``MetadataError`` are also ``ValueError``; the
errors about a missing or unusable backend are also ``RuntimeError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdn_dispatch.types import Rejection

__all__ = [
    "BackendContractError",
    "BackendNotInstalledError",
    "BackendUnavailableError",
    "ConfigurationError",
    "GDNDispatchError",
    "IntegrationError",
    "InvalidArgumentError",
    "InvalidPlanError",
    "MetadataError",
    "UnsupportedRequestError",
]


class GDNDispatchError(Exception):
    """Root of the tree.

    Attributes:
        rejections: Every candidate backend that was turned down, with its reasons, so that a
            framework can decide without parsing the message. Empty where no backend was involved.
    """

    def __init__(self, message: str, *, rejections: Sequence[Rejection] = ()) -> None:
        super().__init__(message)
        self.rejections: tuple[Rejection, ...] = tuple(rejections)


class InvalidArgumentError(GDNDispatchError, ValueError):
    """An argument of a public call has the wrong type, shape, dtype, device or value.

    Attributes:
        argument: Name of the argument, as in the signature.
        got: What was passed, in words.
        expected: What would have been accepted, in words.
    """

    def __init__(self, argument: str, got: str, expected: str, *, hint: str = "") -> None:
        self.argument, self.got, self.expected = argument, got, expected
        super().__init__(
            f"{argument}: got {got}, expected {expected}" + (f"; {hint}" if hint else "")
        )


class InvalidPlanError(InvalidArgumentError):
    """The host description of a batch contradicts itself (``plan_batch``, ``build_chunk_meta``)."""


class MetadataError(GDNDispatchError, ValueError):
    """Metadata of a step is missing, foreign or stale; the message names the field.

    Nothing is rebuilt behind the caller's back: build it with ``plan_batch`` and
    ``build_chunk_meta``, once per step.

    Attributes:
        field: Name of the missing or mismatched field.
    """

    def __init__(self, field: str, got: str, expected: str, *, hint: str = "") -> None:
        self.field, self.got, self.expected = field, got, expected
        super().__init__(f"{field}: got {got}, expected {expected}" + (f"; {hint}" if hint else ""))


class ConfigurationError(GDNDispatchError, ValueError):
    """``GDN_DISPATCH_BACKEND`` or ``GDN_DISPATCH_DISABLE`` cannot be understood."""


class BackendNotInstalledError(GDNDispatchError, RuntimeError):
    """The named backend is not known here; the message says which are, and what to install."""


class BackendUnavailableError(GDNDispatchError, RuntimeError):
    """The requested backend is installed but cannot run on this machine (or failed to load)."""


class IntegrationError(GDNDispatchError, RuntimeError):
    """A host program is missing, of an unknown version, or already altered by someone else."""


class UnsupportedRequestError(GDNDispatchError, RuntimeError):
    """No backend, or not the requested one, supports this call; every reason is in the message."""


class BackendContractError(GDNDispatchError, RuntimeError):
    """A backend broke the hook contract: a wrong return type, a hook it does not implement."""
