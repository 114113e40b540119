"""Adapters to operators of torch_npu, one module each.

``aclnn`` is a provider: it offers ``PROVIDER``, ``capability()``, ``unavailable()``,
``check(request)`` and ``gated_delta_rule(request)``, and answers to ``backend="ascend/aclnn"``.
``aclnn_conv`` is a convolution without a provider: no released model has one it takes.

An adapter converts layouts and gates itself, says in its docstring what it copies, and refuses what
its operator would get wrong. Importing one imports nothing of torch_npu.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from gdn_dispatch.errors import BackendNotInstalledError
from gdn_dispatch.types import ProviderInfo
from gdn_dispatch_ascend.providers import aclnn

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNOutput, RuleRequest

__all__ = ["ADAPTERS", "provider_infos", "run"]

ADAPTERS: Final = {adapter.PROVIDER: adapter for adapter in (aclnn,)}
"""Every adapter by its provider's name."""


def provider_infos() -> tuple[ProviderInfo, ...]:
    """What ``backend_info`` says of the adapters. Imports no vendor package."""
    return tuple(
        ProviderInfo(name, adapter.capability(), adapter.unavailable())
        for name, adapter in ADAPTERS.items()
    )


def run(provider: str, request: RuleRequest) -> GDNOutput:
    """``gated_delta_rule`` of one adapter.

    Raises:
        BackendNotInstalledError: There is no such adapter.
        UnsupportedRequestError: Its operator cannot run the call, or not rightly.
        BackendUnavailableError: Its operator cannot be used here.
    """
    adapter = ADAPTERS.get(provider)
    if adapter is None:
        _unknown(provider)
    output: GDNOutput = adapter.gated_delta_rule(request)
    return output


def _unknown(provider: str) -> NoReturn:
    known = ", ".join(ADAPTERS)
    raise BackendNotInstalledError(f"ascend has no adapter {provider!r} (has {known})")
