"""Which ``gdn_attention`` of vllm-xpu-kernels is here, told by its schema and not by a version.

The operator has had three signatures, and what an unchanged signature does has changed with the
operators registered beside it. Loading the extension registers operators and touches no device.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = [
    "ARGUMENTS",
    "Operator",
    "installed_version",
    "judge",
    "not_installed",
    "operator",
    "unavailable",
]

DISTRIBUTION: Final = "vllm-xpu-kernels"
INSTALL: Final = "pip install 'gdn-dispatch[xpu]'"

ARGUMENTS: Final = (
    "core_attn_out", "z", "projected_states_qkvz", "projected_states_ba",
    "num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim",
    "conv_state", "ssm_state", "conv_weights", "conv_bias", "activation", "A_log", "dt_bias",
    "num_prefills", "num_decodes", "num_spec_decodes",
    "has_initial_state", "non_spec_query_start_loc", "non_spec_token_indx",
    "non_spec_state_indices_tensor", "spec_query_start_loc", "spec_token_indx",
    "spec_state_indices_tensor", "num_accepted_tokens",
    "num_actual_tokens", "tp_size", "reorder_input",
)  # fmt: skip
"""Of the operator this adapter calls, in order: 0.1.9 to 0.1.16."""

_ONLY_HERE: Final = {
    "num_spec_decodes", "non_spec_token_indx", "spec_query_start_loc", "spec_token_indx",
    "spec_state_indices_tensor", "num_accepted_tokens",
}  # fmt: skip
_WITH_ORDER: Final = tuple(name for name in ARGUMENTS if name not in _ONLY_HERE)
_FIRST: Final = _WITH_ORDER[:-1]

_OLDER: Final = {
    _FIRST: "0.1.3: it takes A_log in the activation dtype and cannot be told the flat layout",
    _WITH_ORDER: "0.1.4 to 0.1.8: it takes no lists of tokens, and A_log in a dtype that its "
    "schema does not tell",
}
"""Signatures that are known and not called, with the versions that had them."""

_PACKED: Final = "gated_delta_rule_non_spec"
_RAGGED: Final = "gated_delta_rule_spec_recoverssm"


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator, and what it can be asked for.

    Attributes:
        call: The overload.
        packed: Whether rows may be left out of a step: it has been split into operators for drafts
            and for other rows, which ask for their own tokens alone.
        speculative: Whether drafts may be ragged and leave the conv line this package documents:
            known of 0.1.16 only, whose mark is the operator ``gated_delta_rule_spec_recoverssm``.
            The one before wrote a line to every draft token's slot.
    """

    call: Any
    packed: bool
    speculative: bool


def installed_version() -> str | None:
    """Version of vllm-xpu-kernels, or None."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def not_installed() -> str:
    """Why the operator cannot be here, as far as can be said without loading it; or empty."""
    if installed_version() is None and not _registered():
        return f"{DISTRIBUTION} is not installed: {INSTALL}"
    return ""


def judge(arguments: Sequence[str]) -> str:
    """Why an operator with these arguments is not called; empty if it is."""
    names = tuple(arguments)
    if names == ARGUMENTS:
        return ""
    upgrade = "install 0.1.16: pip install 'vllm-xpu-kernels>=0.1.16'"
    if names in _OLDER:
        return f"its gdn_attention takes {len(names)} arguments, as in {_OLDER[names]}; {upgrade}"
    strange = [name for name in names if name not in ARGUMENTS]
    missing = [name for name in ARGUMENTS if name not in names]
    differ = [f"{what} {', '.join(which)}" for what, which in
              (("has", strange), ("lacks", missing)) if which]  # fmt: skip
    return (
        f"its gdn_attention takes {len(names)} arguments that are not those this adapter was "
        f"written for ({'; '.join(differ) or 'another order'}); {upgrade}"
    )


@cache
def operator() -> Operator | str:
    """The operator, loaded; or why it cannot be called here. Looked for once in a process."""
    if not _registered():
        missing = not_installed()
        if missing:
            return missing
        try:
            importlib.import_module("vllm_xpu_kernels._xpu_C")
        except Exception as error:  # noqa: BLE001 - a missing library, an ABI, anything
            return (
                f"{DISTRIBUTION} {installed_version()} cannot be loaded: "
                f"{type(error).__name__}: {error}; it needs torch's XPU build and oneAPI's runtime"
            )
        if not _registered():
            return f"{DISTRIBUTION} {installed_version()} has no gdn_attention: {INSTALL}"
    found = torch.ops._xpu_C.gdn_attention.default
    reason = judge([argument.name for argument in found._schema.arguments])
    if reason:
        return f"{DISTRIBUTION} {installed_version() or ''}".rstrip() + f": {reason}"
    return described(found, [name for name in (_PACKED, _RAGGED) if _registered(name)])


def described(call: Any, beside: Collection[str]) -> Operator:
    """The operator with these others registered beside it."""
    return Operator(call, packed=_PACKED in beside, speculative=_RAGGED in beside)


def unavailable() -> str:
    """Why the operator cannot be called here, loading it if need be; empty if it can."""
    found = operator()
    return found if isinstance(found, str) else ""


def _registered(name: str = "gdn_attention") -> bool:
    return hasattr(torch.ops._xpu_C, name)
