"""Projections as the operator takes them: whole, contiguous rows of [q | k | v | z] and [b | a].

Where an engine passes columns of its projection, the whole of it is there already: rows as far
apart as the operator's, with memory up to the end of the last one. That is looked for in strides
and storage; what lies in the columns of z does not matter then, since they are copied to scratch
memory. Anything else is packed.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gdn_dispatch.types import GDNRequest

__all__ = ["projections", "whole_gates", "whole_projection"]


def projections(request: GDNRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """``[T, 2*H*K + 2*HV*V]`` and ``[T, 2*HV]``, contiguous.

    The request's own, where it has them; else views of the memory that ``mixed_qkv``, ``a`` and
    ``b`` lie in, or copies, in one launch where Triton is installed.
    """
    if request.projected_states_qkvz is not None and request.projected_states_ba is not None:
        return request.projected_states_qkvz, request.projected_states_ba
    x, a, b = request.mixed_qkv, request.a, request.b
    if x is None or a is None or b is None:  # the core has refused this
        raise TypeError("a GDNRequest holds mixed_qkv, a and b, or the projections")
    width = x.shape[1] + request.num_v_heads * request.head_dim_v
    qkvz, ba = whole_projection(x, width), whole_gates(a, b)
    if qkvz is not None and ba is not None:
        return qkvz, ba
    packed = x.new_empty(x.shape[0], width) if qkvz is None else None
    gates = x.new_empty(x.shape[0], 2 * request.num_v_heads) if ba is None else None
    _pack(x, a, b, packed, gates)
    return (
        qkvz if packed is None else packed,  # type: ignore[return-value]
        ba if gates is None else gates,
    )


def whole_projection(mixed_qkv: torch.Tensor, width: int) -> torch.Tensor | None:
    """The projection whose first columns ``mixed_qkv`` is, as ``[T, width]``; or None.

    Args:
        mixed_qkv: ``[T, D]``.
        width: Of a row of the projection, larger than D.
    """
    T, D = mixed_qkv.shape
    rows, columns = mixed_qkv.stride()
    if (T > 1 and rows != width) or (D > 1 and columns != 1):
        return None
    return _within(mixed_qkv, T, width)


def whole_gates(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """``[T, 2*HV]`` of which ``b`` and ``a`` are the halves, in this order; or None."""
    T, HV = a.shape
    for x in (a, b):
        if (T > 1 and x.stride(0) != 2 * HV) or (HV > 1 and x.stride(1) != 1):
            return None
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return None
    if a.storage_offset() != b.storage_offset() + HV:
        return None
    return _within(b, T, 2 * HV)


def _within(x: torch.Tensor, T: int, width: int) -> torch.Tensor | None:
    """``[T, width]`` from where ``x`` begins, if its memory reaches that far."""
    size = x.untyped_storage().nbytes() // x.element_size()
    if x.storage_offset() + T * width > size:
        return None
    return x.as_strided((T, width), (width, 1))


def _pack(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    packed: torch.Tensor | None,
    gates: torch.Tensor | None,
) -> None:
    """Copy ``x`` to the first columns of ``packed``, and [b | a] to ``gates``; None: not wanted.

    The columns of z are left as they are.
    """
    if x.device.type != "cpu" and _has_triton():
        from gdn_dispatch_xpu.kernels.pack import pack

        pack(x, a, b, packed, gates)
        return
    if packed is not None:
        packed[:, : x.shape[1]].copy_(x)
    if gates is not None:
        torch.cat((b, a), dim=1, out=gates)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
