"""Adapters to other people's kernels, one module each, and the choice among them.

An adapter offers ``LIBRARY``, ``capability()``, ``unavailable()`` and ``gated_delta_rule(request)``
for the chunk rule. It converts layouts and gates itself, says in its docstring what it copies, and
refuses what its library would silently get wrong. Importing one imports nothing of its library.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final, NoReturn

from gdn_dispatch.errors import BackendNotInstalledError, UnsupportedRequestError
from gdn_dispatch.types import ProviderInfo
from gdn_dispatch_cuda.capability import CAPABILITY, INVARIANT
from gdn_dispatch_cuda.providers import fla, flash_qla, flashinfer
from gdn_dispatch_cuda.providers.choice import (
    NONE_ABLE,
    OWN,
    UNMEASURED,
    Choice,
    ShapeFacts,
    choose,
    load_table,
)
from gdn_dispatch_cuda.providers.convert import Batch
from gdn_dispatch_cuda.providers.library import compute_capability

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNOutput, RuleRequest

__all__ = ["ADAPTERS", "OWN", "available", "choose_provider", "provider_infos", "run"]

ADAPTERS: Final = {adapter.LIBRARY.provider: adapter for adapter in (flashinfer, flash_qla, fla)}
"""Every adapter by its provider's name."""


def provider_infos() -> tuple[ProviderInfo, ...]:
    """What ``backend_info`` says: our own kernels, then adapters. Imports no library."""
    return (
        ProviderInfo(OWN, CAPABILITY),
        ProviderInfo(f"{OWN}_invariant", INVARIANT),
        *(
            ProviderInfo(name, adapter.capability(), adapter.unavailable())
            for name, adapter in ADAPTERS.items()
        ),
    )


@cache
def available() -> tuple[str, ...]:
    """Names of the adapters whose library is installed here, in a version they know."""
    return tuple(name for name, adapter in ADAPTERS.items() if not adapter.unavailable())


def choose_provider(request: RuleRequest) -> Choice:
    """Who runs a rule for which no provider was asked; see ``choice.choose``.

    Of the libraries installed, only those that can run this very call are looked at. A call costs a
    look-up: sizes that came before are remembered, as one layer's are another's in the same step.
    """
    table = load_table()
    if not table.rows:
        return UNMEASURED
    if request.recurrent:
        return Choice(OWN, "own kernels: adapters have the chunk rule only")
    able = tuple(name for name in available() if _can_run(name, request))
    if not able:
        return NONE_ABLE
    major, minor = compute_capability(request.q.device)
    return _chosen(_facts(request, f"{major}.{minor}"), able)


@lru_cache(maxsize=1024)
def _chosen(facts: ShapeFacts, able: tuple[str, ...]) -> Choice:
    return choose(facts, able, load_table())


def run(provider: str, request: RuleRequest) -> GDNOutput:
    """``gated_delta_rule`` of one adapter.

    Raises:
        BackendNotInstalledError: There is no such adapter.
        UnsupportedRequestError: Its library cannot run the call, or not rightly.
        BackendUnavailableError: Its library cannot be used here.
    """
    adapter = ADAPTERS.get(provider)
    if adapter is None:
        _unknown(provider)
    output: GDNOutput = adapter.gated_delta_rule(request)
    return output


def _can_run(name: str, request: RuleRequest) -> bool:
    try:
        ADAPTERS[name].check(request)
    except UnsupportedRequestError:
        return False
    return True


def _facts(request: RuleRequest, capability: str) -> ShapeFacts:
    batch, (H, K), (HV, V) = Batch.of(request), request.k.shape[2:], request.v.shape[2:]
    return ShapeFacts(
        num_heads=H,
        num_v_heads=HV,
        num_seqs=len(batch.lengths),
        num_tokens=batch.num_tokens,
        longest=max(batch.lengths, default=0),
        compute_capability=capability,
        dtype=str(request.q.dtype).removeprefix("torch."),
        head_dim=K if K == V else 0,
        l2norm=request.use_qk_l2norm_in_kernel,
    )


def _unknown(provider: str) -> NoReturn:
    known = ", ".join(ADAPTERS)
    raise BackendNotInstalledError(f"cuda has no adapter {provider!r} (has {known})")
