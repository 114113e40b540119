"""Binding a call to its backend: resolved once, then one dictionary look-up per call.

How ``api`` calls it, on every call of an operation::

    key = ("gdn_attention", x.device, x.dtype, state.dtype, K, V, H, HV, W, flags)
    bound = lookup(key, backend)
    if bound is None:
        bound = bind(facts(...), backend, key=key, inputs=(("mixed_qkv", x), ...), options=(...))
    output = bound.function(request)

``key`` holds whatever ``facts`` depends on, and nothing that changes from step to step: no token
count, no tensor. ``x.device`` as it is costs less than ``x.device.type``. ``facts``, ``inputs`` and
``options`` are built on a miss only; the last two are read only for the message of a refusal.

``bind`` raises and never falls back. A refusal is not remembered: it is explained afresh each time.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from gdn_dispatch.config import Config, read
from gdn_dispatch.errors import BackendContractError, ConfigurationError
from gdn_dispatch.plugins.manager import load
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection.choice import effective_choice, override, parse_choice
from gdn_dispatch.selection.facts import call_facts
from gdn_dispatch.selection.refusal import refusal
from gdn_dispatch.selection.resolver import FROM_USE_BACKEND, HOOK_OF_OP, Selection, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    import torch

    from gdn_dispatch.capability import CallFacts, Feature
    from gdn_dispatch.plan.layout import TablesMaker
    from gdn_dispatch.plugins.registry import BackendStatus
    from gdn_dispatch.selection.choice import Override
    from gdn_dispatch.types import BackendInfo

__all__ = [
    "Bound",
    "active_config",
    "active_registry",
    "bind",
    "current_backend",
    "explain",
    "initialise",
    "install",
    "list_backends",
    "lookup",
    "tables_maker",
    "use_backend",
]

_logger = logging.getLogger("gdn_dispatch")

_config = Config()
_registry = Registry()
_bound: dict[tuple[Hashable, str | None, Override], Bound] = {}
_tables_maker: list[TablesMaker | None] = []  # one item once it has been looked for
_announced: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Bound:
    """An operation and the function that runs it.

    Attributes:
        name: The backend.
        provider: Kernel library asked for by name, or None; goes into the request as it is.
        function: Runs the operation's hook; raises where ``implemented`` is false.
        implemented: False only for ``build_chunk_meta`` of a backend that leaves it to the core.
        info: Static facts of the backend.
        selection: How it was chosen.
    """

    name: str
    provider: str | None
    function: Callable[[Any], Any]
    implemented: bool
    info: BackendInfo
    selection: Selection


def initialise() -> None:
    """Read the environment and load the backends; called once, by ``import gdn_dispatch``.

    Raises nothing. What fails is kept: a malformed variable in ``active_config().errors``, a
    broken plugin in ``active_registry().plugins``.
    """
    config = read()
    install(load(config), config)


def install(registry: Registry, config: Config) -> None:
    """Make these the registry and the configuration of the process; forget every bound function."""
    global _registry, _config
    _registry, _config = registry, config
    registry.on_change = _forget
    _announced.clear()
    _forget()


def active_registry() -> Registry:
    """The backends of this process."""
    return _registry


def active_config() -> Config:
    """What the environment asked for when ``gdn_dispatch`` was imported."""
    return _config


def lookup(key: Hashable, backend: str | None) -> Bound | None:
    """What ``bind`` found for an equal ``key`` under the same choice, or None."""
    try:
        return _bound.get((key, backend, override.get()))
    except TypeError:  # not hashable, so not a name: bind() says so properly
        return None


def bind(
    facts: CallFacts,
    backend: str | None,
    *,
    key: Hashable | None = None,
    inputs: Sequence[tuple[str, torch.Tensor | None]] = (),
    options: Sequence[str] = (),
) -> Bound:
    """Choose the backend of a call and remember it under ``key``.

    Args:
        facts: The call.
        backend: The caller's argument: ``name``, ``name/provider`` or None.
        key: What ``lookup`` will be asked for; with None nothing is remembered.
        inputs: Names and tensors, for the message of a refusal.
        options: Names of the options in use, for the message of a refusal.

    Raises:
        ConfigurationError: An environment variable could not be understood.
        InvalidArgumentError: ``backend`` is malformed.
        BackendNotInstalledError: The backend, or the provider, asked for is not known here.
        BackendUnavailableError: It cannot run on this machine, or failed to load.
        UnsupportedRequestError: No backend, or not the one asked for, supports the call.
    """
    # Taken before resolving: if the registry changes meanwhile, the result goes into a table that
    # nobody reads any more.
    table, registry = _bound, _registry
    selection, info = _select(registry, facts, backend, inputs, options)
    _announce(selection)

    function = registry.hook(info.name, HOOK_OF_OP[facts.op])
    bound = Bound(
        name=info.name,
        provider=selection.provider,
        function=function or _not_implemented,
        implemented=function is not None,
        info=info,
        selection=selection,
    )
    if key is not None:
        table[key, backend, override.get()] = bound
    return bound


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run the calls inside on one backend, unless they name one themselves.

    Holds for this thread or task, and nests; a new thread starts outside of it. It is an explicit
    choice: a call that the backend cannot run is an error.

    Args:
        name: ``name`` or ``name/provider``; None returns to the automatic choice.

    Raises:
        BackendNotInstalledError: On entry, if no such backend is known here.
        InvalidArgumentError: On entry, if ``name`` is malformed.
    """
    if name is not None:
        choice = parse_choice(name, FROM_USE_BACKEND)
        if choice.name not in _registry.names:
            selection = resolve(_registry.candidates, call_facts("gdn_attention"), choice)
            raise refusal(_registry, selection)
    token = override.set(name)
    try:
        yield
    finally:
        override.reset(token)


def tables_maker() -> TablesMaker | None:
    """The ``chunk_tables`` hook that serves this process, or None: the core's own numpy."""
    found = _tables_maker
    if not found:
        best = _registry.best_with("chunk_tables")
        found.append(None if best is None else _registry.hook(best, "chunk_tables"))
    return found[0]


def list_backends() -> tuple[BackendStatus, ...]:
    """Every backend: installed ones with their state and its reason, then those to be had."""
    return _registry.status()


def current_backend(device: torch.device | str) -> str:
    """Name of the backend that runs ``gdn_attention`` on ``device`` where shapes do not matter.

    Raises:
        GDNDispatchError: As a call would, if there is none.
    """
    facts = call_facts("gdn_attention", device=device)
    return _select(_registry, facts, None)[1].name


def explain(
    op: str = "gdn_attention",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    state_dtype: torch.dtype | str | None = None,
    head_dim_k: int = 0,
    head_dim_v: int = 0,
    num_heads: int = 0,
    num_v_heads: int = 0,
    conv_width: int = 0,
    features: Iterable[Feature | str] = (),
    backend: str | None = None,
) -> Selection:
    """Say which backend would run a call, and why not the others, without running anything.

    Args:
        op: ``gdn_attention``, one of the two rules by its public name, or ``build_chunk_meta``.
        device: Device of the tensors; it need not exist here.
        dtype: Activation dtype, or its name. None: plays no part.
        state_dtype: dtype of the state pool or initial state, or its name.
        head_dim_k: K. Here and below, 0: plays no part.
        head_dim_v: V.
        num_heads: H.
        num_v_heads: HV.
        conv_width: W.
        features: What the call needs beyond the operation, as ``Feature`` or its name.
        backend: As in a call.

    Returns:
        The selection; ``chosen`` is None where a call would be refused.

    Raises:
        ConfigurationError: An environment variable could not be understood.
        InvalidArgumentError: An argument makes no sense.
    """
    _check_configuration()
    facts = call_facts(
        op,
        device=device,
        dtype=dtype,
        state_dtype=state_dtype,
        head_dim_k=head_dim_k,
        head_dim_v=head_dim_v,
        num_heads=num_heads,
        num_v_heads=num_v_heads,
        conv_width=conv_width,
        features=features,
    )
    return resolve(_registry.candidates, facts, effective_choice(backend, _config))


def _forget() -> None:
    global _bound, _tables_maker
    _bound, _tables_maker = {}, []


def _select(
    registry: Registry,
    facts: CallFacts,
    backend: str | None,
    inputs: Sequence[tuple[str, torch.Tensor | None]] = (),
    options: Sequence[str] = (),
) -> tuple[Selection, BackendInfo]:
    _check_configuration()
    candidates = registry.candidates
    selection = resolve(candidates, facts, effective_choice(backend, _config))
    info = next((c.info for c in candidates if c.name == selection.chosen), None)
    if info is None:
        raise refusal(registry, selection, inputs, options)
    return selection, info


def _check_configuration() -> None:
    if _config.errors:
        raise ConfigurationError("\n".join(map(str, _config.errors)))


def _not_implemented(request: object) -> NoReturn:
    raise BackendContractError("this backend leaves the hook to the core; see Bound.implemented")


def _announce(selection: Selection) -> None:
    op, device_type = selection.facts.op, selection.facts.device_type
    if (op, device_type) in _announced:
        return
    _announced.add((op, device_type))
    _logger.info("%s on %s runs on %s: %s", op, device_type, selection.chosen, selection.why)
    for rejection in selection.rejections:
        _logger.debug("%s turned down: %s", rejection.backend, "; ".join(rejection.reasons))
