"""Loading backends without ever failing.

Every entry point of group ``gdn_dispatch.backends`` becomes a ``LoadedPlugin``, or a
``FailedPlugin`` that keeps its exception. One broken plugin cannot take the others down, and
cannot disappear either.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from gdn_dispatch.config import DISABLE_VARIABLE, Config, is_name
from gdn_dispatch.errors import BackendContractError, ConfigurationError
from gdn_dispatch.plugins.discovery import Origin, installed_entry_points, origin_of
from gdn_dispatch.plugins.probing import PROBE_TIMEOUT_S
from gdn_dispatch.plugins.registry import BackendStatus, FailedPlugin, LoadedPlugin, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from importlib.metadata import EntryPoint

__all__ = ["BUILTINS", "BackendStatus", "FailedPlugin", "LoadedPlugin", "Registry", "load"]

BUILTINS: Final = {"torch": "gdn_dispatch.torch_backend.plugin"}
"""Backends that come with the core, and the module of each."""


def load(
    config: Config,
    *,
    entry_points: Iterable[EntryPoint] | None = None,
    builtins: Mapping[str, str] = BUILTINS,
    probe_timeout: float = PROBE_TIMEOUT_S,
) -> Registry:
    """Load the built-in backends and those of the installed distributions; never raises.

    The order of installation decides nothing: of two distributions that publish one name, neither
    is used. A built-in backend keeps its name against a distribution.
    """
    registry = Registry(disabled=config.disabled_backends)
    for name, module in builtins.items():
        _admit(registry, name, Origin(), partial(importlib.import_module, module), None)

    found = installed_entry_points() if entry_points is None else entry_points
    by_name: dict[str, dict[tuple[str, Origin], EntryPoint]] = {}
    for entry_point in found:
        # one entry of one distribution may be met twice on the path
        same_name = by_name.setdefault(entry_point.name, {})
        same_name.setdefault((entry_point.value, origin_of(entry_point)), entry_point)
    for name, entries in sorted(by_name.items()):
        origins = [origin for _, origin in entries]
        if name in builtins:
            _turn_away_from_builtin(registry, name, origins)
        elif len(entries) > 1 and name not in registry.disabled:
            _turn_away_rivals(registry, name, origins)
        else:
            entry_point = next(iter(entries.values()))
            admit = partial(_admit, registry, name, origins[0], entry_point.load, probe_timeout)
            if _is_being_imported(entry_point.module):
                registry.postpone(name, admit)
            else:
                admit()
    return registry


def _is_being_imported(module: str) -> bool:
    """Whether ``module`` is half way through: it was imported first, and imported this package.

    Loading it now would find a module without hooks. The import system itself goes by this flag.
    """
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _admit(
    registry: Registry,
    name: str,
    origin: Origin,
    load_plugin: Callable[[], object],
    probe_timeout: float | None,
) -> None:
    """Import one plugin and register it, or record why not."""

    def refuse(stage: str, error: BaseException) -> None:
        registry.record(FailedPlugin(name, origin.distribution, origin.version, stage, error))

    if name in registry.disabled:
        refuse("disabled", ConfigurationError(f"disabled by {DISABLE_VARIABLE}"))
        return
    if not is_name(name):
        refuse("contract", BackendContractError(f"the name {name!r} is not an identifier"))
        return
    stage = "import"
    try:
        plugin = load_plugin()
        stage = "contract"
        registry.register(plugin, name, origin=origin, probe_timeout=probe_timeout)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin may even call sys.exit()
        refuse(stage, error)


def _turn_away_rivals(registry: Registry, name: str, origins: list[Origin]) -> None:
    rivals = " and ".join(sorted(map(_named, origins)))
    error = BackendContractError(f"published twice, by {rivals}: uninstall all but one")
    registry.record(FailedPlugin(name, rivals, "", "duplicate", error))


def _turn_away_from_builtin(registry: Registry, name: str, origins: list[Origin]) -> None:
    for origin in sorted(origins, key=_named):
        error = BackendContractError(
            f"{_named(origin)} publishes a backend named {name!r}, which is built in: not used"
        )
        failure = FailedPlugin(name, origin.distribution, origin.version, "duplicate", error)
        registry.conflicts.append(failure)


def _named(origin: Origin) -> str:
    return str(origin) or "an unnamed distribution"
