"""A call described in words, turned into ``CallFacts``; for ``explain`` and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gdn_dispatch.capability import CallFacts, Feature
from gdn_dispatch.config import is_name
from gdn_dispatch.errors import InvalidArgumentError
from gdn_dispatch.selection.resolver import HOOK_OF_OP

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["call_facts"]


def call_facts(
    op: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    state_dtype: torch.dtype | str | None = None,
    features: Iterable[Feature | str] = (),
    **sizes: int,
) -> CallFacts:
    """``CallFacts`` from what a person writes.

    Args:
        op: The operation.
        device: A device, or ``type`` or ``type:index``; it need not exist here.
        dtype: A dtype or its name, with or without ``torch.``.
        state_dtype: The same.
        features: ``Feature`` members or their names in any case.
        **sizes: The integers of ``CallFacts``.

    Raises:
        InvalidArgumentError: One of them makes no sense; it names the argument.
    """
    if not isinstance(op, str) or op not in HOOK_OF_OP:
        raise InvalidArgumentError("op", repr(op), f"one of {', '.join(HOOK_OF_OP)}")
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidArgumentError(name, repr(size), "an integer, 0 where it plays no part")
    try:
        wanted = frozenset(map(_feature, features))
    except TypeError:
        known = "a list of features or their names"
        raise InvalidArgumentError("features", repr(features), known) from None
    return CallFacts(
        op=op,
        device_type=_device_type(device),
        dtype=_dtype_name("dtype", dtype),
        state_dtype=_dtype_name("state_dtype", state_dtype),
        features=wanted,
        **sizes,
    )


def _device_type(device: torch.device | str) -> str:
    if isinstance(device, torch.device):
        return device.type
    # not torch.device(device): that knows "npu" only on a machine that has one
    if isinstance(device, str):
        kind, colon, index = device.partition(":")
        if is_name(kind) and (not colon or index.isdecimal()):
            return kind
    raise InvalidArgumentError("device", repr(device), "a device, such as 'cuda' or 'npu:0'")


def _dtype_name(argument: str, dtype: torch.dtype | str | None) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise InvalidArgumentError(argument, repr(dtype), "a dtype, such as 'bfloat16'")
    # half and float are second names of float16 and float32
    return str(getattr(torch, name)).removeprefix("torch.")


def _feature(feature: Feature | str) -> Feature:
    if isinstance(feature, Feature):
        return feature
    try:
        return Feature[feature.upper()]
    except (AttributeError, KeyError):
        known = ", ".join(member.name.lower() for member in Feature)
        raise InvalidArgumentError("features", repr(feature), f"some of {known}") from None
