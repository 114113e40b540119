"""An operator of torch_npu: whether the one that is here is the one an adapter was written for.

torch_npu is never imported: without CANN its import fails. Where it is loaded (torch does that by
itself), its operators are in ``torch.ops.npu``, and each knows its own schema. That schema decides,
not a version: what is documented must be there, and whatever else there is must have a default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import torch

from gdn_dispatch.errors import BackendUnavailableError, UnsupportedRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEVICE_TYPES", "Operator", "installed_version", "loaded"]

DEVICE_TYPES: Final = ("npu",)
"""Of the tensors an adapter takes."""

PROVIDER: Final = "ascend/aclnn"


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Attributes:
        schema: As torch_npu documents it: ``name(arguments) -> returns``.
        since: Version of torch-npu it was read from.
    """

    schema: str
    since: str = "2.13.0"

    @property
    def name(self) -> str:
        """Without its namespace, ``npu``."""
        return self.schema.partition("(")[0]

    def unavailable(self) -> str:
        """Why it cannot be used here, and what would help; empty if nothing is known against it.

        Before torch has loaded torch_npu nobody knows; the backend's probe says so.
        """
        version = installed_version("torch-npu")
        if version is None:
            return "torch-npu is not installed: pip install 'gdn-dispatch[ascend]'"
        if not loaded():
            return ""
        found = self._found()
        if found is None:
            return (
                f"torch-npu {version} has no operator {self.name}: it is in torch-npu {self.since}"
            )
        difference = _difference(self.schema, str(found.default._schema))
        if difference:
            return (
                f"{self.name} of torch-npu {version} is another one than this adapter is written "
                f"for: {difference}; torch-npu {self.since} has that"
            )
        return ""

    def load(self) -> Callable[..., Any]:
        """The operator.

        Raises:
            BackendUnavailableError: It is not here, or is another one.
        """
        reason = self.unavailable()
        if not reason and not loaded():
            reason = (
                f"torch-npu {installed_version('torch-npu')} is installed, but torch has not "
                "loaded it: unset TORCH_DEVICE_BACKEND_AUTOLOAD, or import torch_npu first"
            )
        found = None if reason else self._found()
        if found is None:
            raise BackendUnavailableError(f"{PROVIDER}: {reason}")
        operator: Callable[..., Any] = found.default
        return operator

    def refuse(self, what: str, why: str, way_out: str) -> UnsupportedRequestError:
        """The error for a call the operator would get wrong, or not run."""
        return UnsupportedRequestError(f"{PROVIDER}: {what}: {self.name} {why}; {way_out}")

    def check_dtype(self, name: str, x: torch.Tensor, dtype: torch.dtype, way_out: str) -> None:
        """Refuse a tensor of another dtype: nothing is cast behind the caller's back."""
        if x.dtype != dtype:
            wanted = str(dtype).removeprefix("torch.")
            raise self.refuse(f"{name} of {x.dtype}", f"takes {wanted}", way_out)

    def check_device(self, x: torch.Tensor) -> None:
        """Refuse tensors that are not on an NPU."""
        if x.device.type not in DEVICE_TYPES:
            raise self.refuse(
                f"tensors on {x.device}", "runs on npu devices", 'pass backend="torch"'
            )

    def _found(self) -> Any:
        return getattr(torch.ops.npu, self.name, None)


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def loaded() -> bool:
    """Whether torch has been extended by torch_npu in this process."""
    return hasattr(torch, "npu")


def _difference(documented: str, here: str) -> str:
    """What of a documented schema is not so here; empty if a documented call means the same."""
    (wanted, wanted_returns), (found, found_returns) = _parts(documented), _parts(here)
    for position, (name, kind) in enumerate(wanted.items()):
        if name not in found:
            return f"it has no argument {name}"
        if found[name][0] != kind[0]:
            return f"{name} is {found[name][0]}, not {kind[0]}"
        if kind[1] is None and list(found).index(name) != position:
            return f"{name} is in another place"
    for name, (needed, default) in found.items():
        if name not in wanted and default is None:
            return f"it wants {name} ({needed}), too"
    if wanted_returns != found_returns:
        return f"it returns {found_returns}, not {wanted_returns}"
    return ""


_ARGUMENT = re.compile(r"(?P<type>\S+) (?P<name>\w+)(?:=(?P<default>.*))?")


def _parts(schema: str) -> tuple[dict[str, tuple[str, str | None]], str]:
    """Arguments by name, each with its type and default, and what is returned."""
    text, _, returns = schema.partition(" -> ")
    arguments: dict[str, tuple[str, str | None]] = {}
    for argument in text.partition("(")[2].rpartition(")")[0].split(", "):
        match = _ARGUMENT.fullmatch(argument.strip())
        if match:
            arguments[match["name"]] = (match["type"], match["default"])
    if not returns.startswith("("):
        return arguments, returns.partition(" ")[0]
    kinds = (kind.partition(" ")[0] for kind in returns.strip("()").split(", "))
    return arguments, f"({', '.join(kinds)})"
