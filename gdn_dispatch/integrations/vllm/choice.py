"""Which backend serves a vLLM layer: asked once, with everything a call will need."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gdn_dispatch.capability import Feature
from gdn_dispatch.config import BACKEND_VARIABLE, DISABLE_VARIABLE
from gdn_dispatch.errors import IntegrationError
from gdn_dispatch.selection.dispatch import explain
from gdn_dispatch.selection.report import selection_text

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.selection.resolver import Selection

__all__ = ["backend_argument", "choose"]


def choose(
    device_type: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtypes: tuple[torch.dtype, torch.dtype],
    *,
    num_spec: int,
    conv_dim_first: bool,
    dtype: torch.dtype | None = None,
) -> Selection:
    """The backend for layers with these state pools.

    Metadata belongs to the backend that built it, so it is chosen for the whole engine rather than
    step by step: with every feature a step of this engine may need.

    Args:
        device_type: ``torch.device.type`` of the engine's tensors.
        shapes: Of one slot: conv ``(L, D)``, or ``(D, L)`` with ``conv_dim_first``, L = W-1 plus
            ``num_spec``; state ``(HV, V, K)``.
        dtypes: Of the conv and the state pool.
        num_spec: Draft tokens per step, 0 without speculative decoding.
        conv_dim_first: Layout of the conv pool.
        dtype: Activation dtype; that of the conv pool if None.

    Raises:
        IntegrationError: No backend here can; the message has every reason.
    """
    return _choose(
        device_type, tuple(shapes), tuple(dtypes), num_spec, conv_dim_first, dtype or dtypes[0]
    )


@lru_cache(maxsize=8)
def _choose(
    device_type: str,
    shapes: tuple[Any, ...],
    dtypes: tuple[Any, ...],
    num_spec: int,
    conv_dim_first: bool,
    dtype: torch.dtype,
) -> Selection:
    conv, (HV, V, K) = shapes
    D, L = conv if conv_dim_first else conv[::-1]
    features = {Feature.STATE_V_FIRST}
    if num_spec:
        features.add(Feature.SPECULATIVE)
    selection = explain(
        "gdn_attention",
        device=device_type,
        dtype=dtype,
        state_dtype=dtypes[1],
        head_dim_k=K,
        head_dim_v=V,
        num_heads=(D - HV * V) // (2 * K),
        num_v_heads=HV,
        conv_width=L + 1 - num_spec,
        features=features,
    )
    if selection.chosen is None:
        raise IntegrationError(
            "no backend of gdn_dispatch can serve this model's Gated DeltaNet layers:\n"
            f"{selection_text(selection)}\n"
            f"Install a backend for '{device_type}' (gdn-dispatch doctor), choose one by "
            f"{BACKEND_VARIABLE}, or leave vLLM its own layers: {DISABLE_VARIABLE}=vllm"
        )
    return selection


def backend_argument(selection: Selection) -> str:
    """``selection`` as the ``backend=`` of a call."""
    if selection.provider:
        return f"{selection.chosen}/{selection.provider}"
    return str(selection.chosen)
