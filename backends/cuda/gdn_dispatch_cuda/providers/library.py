"""A kernel library: whether it can be used here, and the refusal where it cannot.

Looking does not import the library: FlashQLA creates a CUDA context when it is imported, and raises
on a GPU it does not know. What depends on the GPU is asked when a call is made, of the device of
its tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.errors import BackendUnavailableError, UnsupportedRequestError

if TYPE_CHECKING:
    from gdn_dispatch.capability import Capability
    from gdn_dispatch.types import RuleRequest

__all__ = ["Library", "compute_capability", "installed_version", "wants_gradients"]

DEVICE_TYPES: Final = ("cuda",)
"""Of the tensors an adapter takes."""


@dataclass(frozen=True, slots=True)
class Library:
    """What an adapter is written for.

    Attributes:
        provider: Name after the slash, as in ``backend="cuda/fla"``.
        title: Name of the library, for messages.
        distribution: What pip installs. module: What Python imports.
        oldest, newer: Versions it was written for: ``oldest <= version < newer``.
        capabilities: CUDA compute capabilities it has kernels for; empty: any from
            ``lowest_capability`` on.
        lowest_capability: See there.
    """

    provider: str
    title: str
    distribution: str
    module: str
    oldest: str
    newer: str
    capabilities: tuple[tuple[int, int], ...] = ()
    lowest_capability: tuple[int, int] = (8, 0)

    def unavailable(self) -> str:
        """Why it cannot be used in this environment, and what would help; empty if it can."""
        wanted = f"pip install '{self.distribution}>={self.oldest},<{self.newer}'"
        version = installed_version(self.distribution)
        if version is None:
            return f"{self.distribution} is not installed: {wanted}"
        if not _release(self.oldest) <= _release(version) < _release(self.newer):
            return (
                f"{self.distribution} {version}: this adapter is written for "
                f">={self.oldest},<{self.newer}: {wanted}"
            )
        if importlib.util.find_spec(self.module) is None:
            return f"{self.distribution} {version} has no module {self.module}: reinstall it"
        return ""

    def load(self, *names: str) -> tuple[Any, ...]:
        """The objects called ``names`` (``package.module:attribute``), imported.

        Raises:
            BackendUnavailableError: It is not there, of another version, or fails to import.
        """
        reason = self.unavailable()
        if reason:
            raise BackendUnavailableError(f"cuda/{self.provider}: {reason}")
        try:
            found = []
            for name in names:
                module, _, attribute = name.partition(":")
                found.append(getattr(importlib.import_module(module), attribute))
        except Exception as error:  # FlashQLA raises ValueError, CuTe RuntimeError
            raise BackendUnavailableError(
                f"cuda/{self.provider}: {self.title} {installed_version(self.distribution)} cannot "
                f"be imported: {type(error).__name__}: {error}"
            ) from error
        return tuple(found)

    def refuse(self, what: str, why: str, way_out: str) -> UnsupportedRequestError:
        """The error for a call the library would get wrong, or not run."""
        return UnsupportedRequestError(f"cuda/{self.provider}: {what}: {why}; {way_out}")

    def check(self, request: RuleRequest, capability: Capability) -> None:
        """Refuse what no adapter here can do, and GPUs the library has no kernels for.

        dtypes and head dims are looked at again: under ``backend="cuda"`` the core has compared the
        call with what the backend declares, not with what this library does.

        Raises:
            UnsupportedRequestError: The call cannot be run by this library; says why.
        """
        own = 'pass backend="cuda/triton"'
        if request.recurrent:
            raise self.refuse("fused_recurrent_gated_delta_rule", "not adapted", own)
        device = request.q.device
        if device.type not in DEVICE_TYPES:
            raise self.refuse(f"tensors on {device}", f"{self.title} runs on CUDA devices", own)
        found = compute_capability(device)
        if self.capabilities and found not in self.capabilities:
            known = ", ".join(f"{major}.{minor}" for major, minor in self.capabilities)
            raise self.refuse(
                f"compute capability {found[0]}.{found[1]}", f"it has kernels for {known}", own
            )
        if found < self.lowest_capability:
            lowest = ".".join(map(str, self.lowest_capability))
            raise self.refuse(
                f"compute capability {found[0]}.{found[1]}", f"it needs {lowest} or more", own
            )
        if Feature.AUTOGRAD not in capability.features and wants_gradients(request):
            raise self.refuse("gradients", "not adapted", "run under torch.no_grad()")
        state = request.initial_state
        for name, x, allowed in (
            ("q", request.q, capability.dtypes),
            ("k", request.k, capability.dtypes),
            ("v", request.v, capability.dtypes),
            ("initial_state", state, capability.state_dtypes),
        ):
            if x is not None and str(x.dtype).removeprefix("torch.") not in allowed:
                raise self.refuse(f"{name} of {x.dtype}", f"it takes {', '.join(allowed)}", own)
        K, V = request.k.shape[-1], request.v.shape[-1]
        for name, dim, dims in (("K", K, capability.head_dims_k), ("V", V, capability.head_dims_v)):
            if dims and dim not in dims:
                raise self.refuse(f"{name}={dim}", f"it has {', '.join(map(str, dims))}", own)
        if capability.max_head_dim and max(K, V) > capability.max_head_dim:
            raise self.refuse(f"K={K}, V={V}", f"it goes up to {capability.max_head_dim}", own)


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def compute_capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA device that holds a tensor, so that a context exists already."""
    major, minor = torch.get_device_module(device).get_device_capability(device)
    return major, minor


def wants_gradients(request: RuleRequest) -> bool:
    """Whether a result of this request has to be differentiable."""
    if not torch.is_grad_enabled():
        return False
    r = request
    tensors = (r.q, r.k, r.v, r.g, r.beta, r.initial_state, r.A_log, r.dt_bias)
    return any(x is not None and x.requires_grad for x in tensors)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, three of them; ``.post1`` and ``rc1`` count not."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    found = [int(n) for n in numbers.group().split(".")] if numbers else []
    return tuple((*found, 0, 0, 0)[:3])
