"""The entry points of backends, found quickly and without trusting anyone's metadata."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["GROUP", "Origin", "installed_entry_points", "origin_of"]

GROUP: Final = "gdn_dispatch.backends"

_logger = logging.getLogger("gdn_dispatch")


@dataclass(frozen=True, slots=True)
class Origin:
    """The distribution a plugin came with; empty strings where there is none."""

    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


def installed_entry_points() -> Iterable[metadata.EntryPoint]:
    """The entry points of ``GROUP``.

    One call of ``entry_points`` costs a tenth of pluggy's walk over all distributions, but a single
    unreadable ``entry_points.txt`` anywhere in the environment makes it raise. Only then are the
    distributions read one by one.
    """
    try:
        return tuple(metadata.entry_points(group=GROUP))
    except Exception as error:  # noqa: BLE001 - another project's metadata must not break ours
        _logger.warning("entry points cannot be read at once, reading one by one: %s", error)
        return tuple(_one_by_one())


def _one_by_one() -> Iterator[metadata.EntryPoint]:
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            name = distribution.name
            entries = [entry for entry in distribution.entry_points if entry.group == GROUP]
        except Exception as error:  # noqa: BLE001
            _logger.warning("entry points of %s cannot be read: %s", distribution, error)
            continue
        # a distribution found twice on the path counts where it is found first, as for import
        if name not in seen:
            yield from entries
        seen.add(name)


def origin_of(entry_point: metadata.EntryPoint) -> Origin:
    """Name and version of the distribution that declares ``entry_point``."""
    distribution = getattr(entry_point, "dist", None)
    if distribution is None:
        return Origin()
    try:
        return Origin(distribution.name or "", distribution.version or "")
    except Exception:  # noqa: BLE001 - no METADATA file: the plugin may still work
        return Origin()
