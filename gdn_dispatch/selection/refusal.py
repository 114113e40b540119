"""The error for a call that was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gdn_dispatch.errors import (
    BackendNotInstalledError,
    BackendUnavailableError,
    UnsupportedRequestError,
)
from gdn_dispatch.selection import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gdn_dispatch.plugins.registry import Registry
    from gdn_dispatch.selection.resolver import Selection

    Refusal = BackendNotInstalledError | BackendUnavailableError | UnsupportedRequestError

__all__ = ["refusal"]

_ERRORS: Final[dict[str, type[Refusal]]] = {
    "no provider": BackendNotInstalledError,
    "not installed": BackendNotInstalledError,
    "unavailable": BackendUnavailableError,
    "unsupported": UnsupportedRequestError,
}


def refusal(
    registry: Registry,
    selection: Selection,
    inputs: Sequence[tuple[str, torch.Tensor | None]] = (),
    options: Sequence[str] = (),
) -> Refusal:
    """The error that says why ``selection`` chose nothing.

    Where the backend asked for failed with an exception of its own, that one is the cause.
    """
    message = report.error_text(selection, registry.names, inputs=inputs, options=options)
    error = _ERRORS[selection.refusal](message, rejections=selection.rejections)
    plugin = registry.plugins.get(selection.choice.name or "")
    if plugin is not None and selection.refusal == "unavailable":
        error.__cause__ = plugin.exception
    return error
