"""What a plugin promises, checked before any of it is registered.

pluggy is lenient where this project cannot be: it never passes a parameter that has a default, and
lets an implementation leave parameters out. Either turns an option of a call into wrong numbers
without a sound, so both are refused here, with a sentence for the plugin's author.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gdn_dispatch import hookspecs
from gdn_dispatch.capability import Capability
from gdn_dispatch.errors import BackendContractError
from gdn_dispatch.types import HOOK_API_VERSION, BackendInfo, ProviderInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pluggy

__all__ = [
    "Description",
    "Implementation",
    "describe",
    "implementations",
    "in_one_line",
    "problems",
]

SPECS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if hasattr(spec, f"{hookspecs.PROJECT}_spec")
}
"""Hook names and the parameters of each, in the order of ``hookspecs``."""

REQUIRED: Final = ("backend_info", "probe")

_FIELDS: Final[tuple[tuple[str, type], ...]] = (
    ("capability", Capability),
    ("priority", int),
    ("any_device_on_request", bool),
    ("chunk_size", int),
    ("conv_block_size", int),
    ("block_size_multiple", int),
    ("summary", str),
    ("version", str),
)
_TUPLES: Final[tuple[tuple[str, type], ...]] = (
    ("device_types", str),
    ("block_sizes", int),
    ("providers", ProviderInfo),
)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One function of a plugin that carries ``@hookimpl``."""

    hook: str
    function: Callable[..., Any]
    wrapper: bool
    optional: bool


@dataclass(frozen=True, slots=True)
class Description:
    """A plugin that keeps the contract."""

    info: BackendInfo
    probe: Callable[[], Any]
    hooks: frozenset[str]


def implementations(manager: pluggy.PluginManager, plugin: object) -> list[Implementation]:
    """Every hook implementation of ``plugin``, by pluggy's own reading of the marks."""
    found = []
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            found.append(
                Implementation(
                    hook=options.get("specname") or attribute,
                    function=getattr(plugin, attribute),
                    wrapper=bool(options.get("wrapper") or options.get("hookwrapper")),
                    optional=bool(options.get("optionalhook")),
                )
            )
    return found


def describe(
    manager: pluggy.PluginManager, plugin: object, name: str, distribution: str = ""
) -> Description:
    """Check ``plugin`` in full and ask it for its ``BackendInfo``.

    The version of the hook contract is compared first: a plugin written for another version may
    well break rules that it cannot know of, and only the version is worth reporting then.

    Raises:
        BackendContractError: With every problem found.
    """
    found = implementations(manager, plugin)
    own = {i.hook: i for i in found if not i.wrapper}
    missing = [hook for hook in REQUIRED if hook not in own]
    if missing:
        raise BackendContractError(
            "; ".join([*_missing(plugin, missing), *(line for i in found for line in problems(i))])
        )
    info = _ask_info(own["backend_info"].function)
    _check_version(info, distribution)
    faults = [line for implementation in found for line in problems(implementation)]
    faults += _info_problems(info, name)
    if type(plugin).__hash__ is None:
        # found only once a wrapper is registered: then pluggy puts plugins into sets
        faults.append(f"{type(plugin).__name__} is not hashable: a dataclass needs eq=False")
    if faults:
        raise BackendContractError("; ".join(faults))
    return Description(info, own["probe"].function, frozenset(own) & frozenset(SPECS))


def in_one_line(error: BaseException) -> str:
    """Type and first line of an exception: a reason has one line in every table."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def problems(implementation: Implementation) -> Iterator[str]:
    """Sentences on what pluggy would accept and this project does not."""
    hook = implementation.hook
    wanted = SPECS.get(hook)
    if wanted is None:
        if not implementation.optional:
            near = difflib.get_close_matches(hook, SPECS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the hooks are {', '.join(SPECS)}"
            yield f"unknown hook {hook}: {hint}"
        return
    parameters = inspect.signature(implementation.function).parameters
    for parameter in parameters.values():
        yield from _parameter_problems(hook, parameter, wanted)
    for name in wanted:
        if name not in parameters:
            yield f"{hook} has no parameter {name!r}: it would run without its inputs"


def _parameter_problems(
    hook: str, parameter: inspect.Parameter, wanted: tuple[str, ...]
) -> Iterator[str]:
    name = parameter.name
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        yield f"{hook} takes {parameter}: pluggy passes named parameters only"
    elif name == "self":
        yield f"{hook} takes 'self': the entry point names a class, it must name an instance"
    elif name not in wanted:
        takes = ", ".join(map(repr, wanted)) or "no parameter"
        yield f"{hook} takes {name!r}, the hook takes {takes}"
    elif parameter.kind is parameter.KEYWORD_ONLY:
        yield f"{hook} takes {name!r} by keyword only: pluggy passes it by position"
    elif parameter.default is not parameter.empty:
        yield f"{hook} gives {name!r} a default: pluggy never passes such a parameter"


def _missing(plugin: object, hooks: list[str]) -> Iterator[str]:
    for hook in hooks:
        defined = callable(getattr(plugin, hook, None))
        yield f"{hook} is defined without @hookimpl" if defined else f"no {hook} hook"


def _ask_info(backend_info: Callable[[], Any]) -> BackendInfo:
    if inspect.signature(backend_info).parameters:
        raise BackendContractError("backend_info takes no parameter")
    try:
        info = backend_info()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may call sys.exit()
        raise BackendContractError(f"backend_info() raised {in_one_line(error)}") from error
    if not isinstance(info, BackendInfo):
        raise BackendContractError(
            f"backend_info() returned {type(info).__name__}, expected BackendInfo"
        )
    return info


def _check_version(info: BackendInfo, distribution: str) -> None:
    if info.hook_api == HOOK_API_VERSION:
        return
    older = isinstance(info.hook_api, int) and info.hook_api < HOOK_API_VERSION
    package = (distribution or "its package") if older else "gdn-dispatch"
    raise BackendContractError(
        f"written for hook API {info.hook_api}, this gdn-dispatch speaks {HOOK_API_VERSION}: "
        f"pip install -U {package}"
    )


def _info_problems(info: BackendInfo, name: str) -> Iterator[str]:
    if info.name != name:
        yield f"backend_info() says the name is {info.name!r}, it is published as {name!r}"
    for field, kind in _FIELDS:
        value = getattr(info, field)
        if not isinstance(value, kind):
            yield f"BackendInfo.{field} is {value!r}, expected {kind.__name__}"
    for field, item in _TUPLES:
        value = getattr(info, field)
        # a bare "cuda" would answer `"cu" in device_types` with True
        if not isinstance(value, tuple) or not all(isinstance(entry, item) for entry in value):
            yield f"BackendInfo.{field} is {value!r}, expected a tuple of {item.__name__}"
