"""The backends of a process: what they are, whether they can run, and the functions to call.

A probe runs when its answer is first needed, not while ``gdn_dispatch`` is being imported: on the
thread that bounds it, ``from gdn_dispatch import ...`` would wait for the very import that waits
for the probe.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from gdn_dispatch import hookspecs
from gdn_dispatch.config import DISABLE_VARIABLE
from gdn_dispatch.errors import BackendContractError, GDNDispatchError
from gdn_dispatch.plugins.discovery import Origin
from gdn_dispatch.plugins.inspection import (
    Description,
    describe,
    implementations,
    in_one_line,
    problems,
)
from gdn_dispatch.plugins.probing import ask
from gdn_dispatch.selection.resolver import OFFICIAL, Candidate, install_hint
from gdn_dispatch.types import Available, BackendInfo, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["BackendStatus", "FailedPlugin", "LoadedPlugin", "Registry"]


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A backend that keeps the contract and has been asked whether it can run here.

    ``exception`` is what its probe raised, where ``availability`` says so.
    """

    name: str
    info: BackendInfo
    availability: Available | Unavailable
    distribution: str
    version: str
    hooks: frozenset[str]
    exception: BaseException | None = None


@dataclass(frozen=True, slots=True)
class FailedPlugin:
    """A backend that is not used, and why.

    ``stage`` is ``disabled``, ``duplicate``, ``import`` or ``contract``.
    """

    name: str
    distribution: str
    version: str
    stage: str
    exception: BaseException

    @property
    def reason(self) -> str:
        """One line; an exception that is not this project's own keeps its type."""
        text = in_one_line(self.exception)
        if isinstance(self.exception, GDNDispatchError):
            text = text.partition(": ")[2]
        origin = str(Origin(self.distribution, self.version))
        # the sentence about a duplicate names the distributions itself
        return f"{text} ({origin})" if origin and self.stage != "duplicate" else text


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One row of ``list_backends()``.

    Attributes:
        name: The backend.
        version: Version of its distribution, or empty.
        status: ``available``, ``unavailable``, ``failed``, ``disabled`` or ``not installed``.
        why: The reason, or on what it runs.
        info: Its static facts, or None where it was not loaded.
        distribution: The distribution it came with, or empty.
    """

    name: str
    version: str
    status: str
    why: str
    info: BackendInfo | None = None
    distribution: str = ""


@dataclass(frozen=True, slots=True)
class _Unprobed:
    description: Description
    origin: Origin
    timeout: float | None

    def asked(self, name: str) -> LoadedPlugin:
        result = ask(self.description.probe, self.timeout)
        return LoadedPlugin(
            name=name,
            info=self.description.info,
            availability=result.availability,
            distribution=self.origin.distribution,
            version=self.origin.version,
            hooks=self.description.hooks,
            exception=result.exception,
        )


class Registry:
    """The backends of a process.

    Attributes:
        pluggy: The plugin manager, for what pluggy can do and this class has no method for.
        disabled: Names that may not be registered.
        conflicts: Plugins turned away because a built-in backend has their name.
        on_change: Called after every change, so that nobody keeps a function bound before it.
    """

    def __init__(self, disabled: Collection[str] = ()) -> None:
        self.pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self.pluggy.add_hookspecs(hookspecs)
        self.disabled = frozenset(disabled)
        for name in self.disabled:
            self.pluggy.set_blocked(name)
        self.conflicts: list[FailedPlugin] = []
        self.on_change: Callable[[], None] = lambda: None
        self._plugins: dict[str, LoadedPlugin | FailedPlugin | _Unprobed] = {}
        self._postponed: dict[str, Callable[[], None]] = {}
        # reentrant: a probe of this process may ask what else there is
        self._lock = threading.RLock()

    @property
    def names(self) -> frozenset[str]:
        """Every backend known here, usable or not. Probes nothing."""
        return frozenset(self._plugins.keys() | self._postponed.keys())

    @property
    def plugins(self) -> dict[str, LoadedPlugin | FailedPlugin]:
        """Every backend known here. The first question probes those not asked yet."""
        with self._lock:
            while self._postponed:
                _, admit = self._postponed.popitem()
                admit()
            known: dict[str, LoadedPlugin | FailedPlugin] = {}
            for name, plugin in list(self._plugins.items()):
                if isinstance(plugin, _Unprobed):
                    plugin = plugin.asked(name)
                    self._plugins[name] = plugin
                known[name] = plugin
            return known

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What ``selection.resolve`` chooses from."""
        return tuple(_candidate(plugin) for plugin in self.plugins.values())

    def best_with(self, hook: str) -> str | None:
        """The available backend of highest priority that implements ``hook``, or None."""
        able = [
            plugin
            for plugin in self.plugins.values()
            if isinstance(plugin, LoadedPlugin)
            and isinstance(plugin.availability, Available)
            and hook in plugin.hooks
        ]
        best = max(able, key=lambda plugin: (plugin.info.priority, plugin.name), default=None)
        return None if best is None else best.name

    def status(self) -> tuple[BackendStatus, ...]:
        """Every backend known here, then names that are not installed."""
        known = [*self.plugins.values(), *self.conflicts]
        rows = [_status(plugin) for plugin in sorted(known, key=lambda plugin: plugin.name)]
        for name in sorted((OFFICIAL.keys() | self.disabled) - self.names):
            # a name that means nothing is most likely a misspelt one
            why = install_hint(name) if name in OFFICIAL else f"named in {DISABLE_VARIABLE} only"
            rows.append(BackendStatus(name, "", "not installed", why))
        return tuple(rows)

    def register(
        self,
        plugin: object,
        name: str,
        *,
        origin: Origin | None = None,
        probe_timeout: float | None = None,
    ) -> None:
        """Add a backend, as an application or a test brings its own.

        Args:
            plugin: Module or object whose functions carry ``@hookimpl``.
            name: Name to ask for it by; ``BackendInfo.name`` must be the same.
            origin: Distribution it came with.
            probe_timeout: Seconds its probe may take; None trusts it.

        Raises:
            BackendContractError: It breaks the hook contract, or ``name`` is not free.
        """
        if name in self._plugins:
            raise BackendContractError(f"a backend named {name!r} is already registered")
        origin = origin or Origin()
        description = describe(self.pluggy, plugin, name, origin.distribution)
        self._register(plugin, name)
        self._plugins[name] = _Unprobed(description, origin, probe_timeout)
        self.on_change()

    def register_wrapper(self, plugin: object, name: str) -> None:
        """Add a plugin that only wraps hooks, to time or check what the selected backend does.

        Its functions carry ``@hookimpl(wrapper=True)``; each sees the request and the result of
        whichever backend runs a call. While there is none, backends are called directly.

        Raises:
            BackendContractError: It implements a hook itself, or breaks the contract otherwise.
        """
        found = implementations(self.pluggy, plugin)
        faults = [line for implementation in found for line in problems(implementation)]
        faults += [f"{i.hook} is not a wrapper: use register()" for i in found if not i.wrapper]
        if faults or not found:
            raise BackendContractError("; ".join(faults) or "wraps no hook")
        self._register(plugin, name)
        self.on_change()

    def unregister(self, name: str) -> None:
        """Remove what ``register`` or ``register_wrapper`` added; ``KeyError`` for another name."""
        if not self.pluggy.has_plugin(name):
            raise KeyError(name)
        self.pluggy.unregister(name=name)
        self._plugins.pop(name, None)
        self.on_change()

    def record(self, failure: FailedPlugin) -> None:
        """Keep a backend that cannot be used, for ``doctor`` and for error messages."""
        self._plugins[failure.name] = failure
        self.on_change()

    def postpone(self, name: str, admit: Callable[[], None]) -> None:
        """Know ``name``, and call ``admit`` to register or record it at the first question."""
        self._postponed[name] = admit

    def hook(self, backend: str, hook: str) -> Callable[[Any], Any] | None:
        """The function that runs ``hook`` on ``backend``, or None where it has none.

        It is the backend's own function, so calling it costs nothing extra, unless the hook is
        wrapped: then it calls, through pluggy, the wrappers and this backend and nobody else.
        """
        own: Callable[[Any], Any] | None = None
        wrapped = False
        others = []
        for implementation in getattr(self.pluggy.hook, hook).get_hookimpls():
            wraps = implementation.wrapper or implementation.hookwrapper
            mine = implementation.plugin_name == backend
            if mine and not wraps:
                own = implementation.function
            elif not mine and (not wraps or implementation.plugin_name in self._plugins):
                others.append(implementation.plugin)
            else:
                wrapped = True
        if own is None or not wrapped:
            return own
        caller = self.pluggy.subset_hook_caller(hook, others)
        return lambda request: caller(request=request)

    def _register(self, plugin: object, name: str) -> None:
        if name in self.disabled:
            raise BackendContractError(f"the name {name!r} is disabled by {DISABLE_VARIABLE}")
        try:
            self.pluggy.register(plugin, name=name)
        except (ValueError, pluggy.PluginValidationError) as error:
            # pluggy before 1.7 leaves a plugin it has just refused half registered
            if self.pluggy.get_plugin(name) is plugin:
                self.pluggy.unregister(name=name)
            raise BackendContractError(str(error)) from error


def _candidate(plugin: LoadedPlugin | FailedPlugin) -> Candidate:
    if isinstance(plugin, FailedPlugin):
        return Candidate(
            plugin.name, None, None, failure=plugin.reason, disabled=plugin.stage == "disabled"
        )
    return Candidate(plugin.name, plugin.info, plugin.availability, hooks=plugin.hooks)


def _status(plugin: LoadedPlugin | FailedPlugin) -> BackendStatus:
    version, distribution = plugin.version, plugin.distribution
    if isinstance(plugin, FailedPlugin):
        status = "disabled" if plugin.stage == "disabled" else "failed"
        return BackendStatus(plugin.name, version, status, plugin.reason, None, distribution)
    version = version or plugin.info.version
    answer = plugin.availability
    if isinstance(answer, Available):
        status, why = "available", answer.detail or plugin.info.summary
    else:
        status, why = "unavailable", answer.reason
    return BackendStatus(plugin.name, version, status, why, plugin.info, distribution)
