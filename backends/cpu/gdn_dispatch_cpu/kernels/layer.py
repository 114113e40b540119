"""A ``GDNRequest`` as one call of ``gdn_layer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdn_dispatch.errors import MetadataError
from gdn_dispatch.types import GDNOutput
from gdn_dispatch_cpu.kernels.failures import refuse
from gdn_dispatch_cpu.kernels.library import ABSENT, DTYPES, LAYER_CALL, Fault, load_library
from gdn_dispatch_cpu.kernels.options import BEST, Options
from gdn_dispatch_cpu.kernels.rows import CpuChunkMeta

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.types import GDNRequest

__all__ = ["gdn_attention"]

_Tensor = tuple[int, int, int, int, int, int, int]


def gdn_attention(request: GDNRequest, options: Options = BEST) -> GDNOutput:
    """Run a validated request; refuses, before anything is written, slots outside the pools."""
    meta = request.meta
    if not isinstance(meta, CpuChunkMeta):
        raise MetadataError("meta", type(meta).__name__, "metadata built for backend 'cpu'")
    H, HV, K, V = request.num_heads, request.num_v_heads, request.head_dim_k, request.head_dim_v
    out, states, lines = request.out, request.ssm_state, request.conv_state
    weight, bias = request.conv_weight, request.conv_bias
    q, k, v, a, b = _inputs(request)
    slot, head, key, value = states.stride()
    if request.state_v_first:
        key, value = value, key
    line, channel, column = lines.stride()
    row, tap = weight.stride()
    call = LAYER_CALL.pack(
        H, HV, K, V, True, True, request.allow_neg_eigval, False, options.exact, options.path,
        options.threads, request.scale,
        *q, *k, *v, *a, *b,
        *_per_head(request.A_log, HV // H),
        *_per_head(request.dt_bias, HV // H),
        out.data_ptr(), DTYPES[out.dtype], 0, HV * V, HV // H * V, V, 1,
        *meta.rows(),
        states.data_ptr(), DTYPES[states.dtype], states.shape[0], slot, head, key, value,
        lines.data_ptr(), DTYPES[lines.dtype], line, column, 0, 0, channel,
        lines.shape[0],
        weight.data_ptr(), DTYPES[weight.dtype], 0, tap, 0, 0, row,
        *(ABSENT if bias is None
          else (bias.data_ptr(), DTYPES[bias.dtype], 0, 0, 0, 0, bias.stride(0))),
        weight.shape[1], request.activation is not None,
    )  # fmt: skip
    fault = Fault()
    status = load_library().layer(call, fault)
    if status:
        refuse(status, fault)
    _write_gate(request)
    return GDNOutput(out)


def _per_head(x: torch.Tensor, r: int) -> _Tensor:
    step = x.stride(0)
    return (x.data_ptr(), DTYPES[x.dtype], 0, 0, step * r, step, 0)


def _inputs(request: GDNRequest) -> tuple[_Tensor, _Tensor, _Tensor, _Tensor, _Tensor]:
    """q, k, v, a and b where they lie; see ``gdn_dispatch.layer.split_projections``."""
    H, K, V = request.num_heads, request.head_dim_k, request.head_dim_v
    r = request.num_v_heads // H
    x, a, b = request.mixed_qkv, request.a, request.b
    if x is not None and a is not None and b is not None:
        return (*_channels(x, K, 0, K, H * K, r * V, 2 * H * K, V), _gate(a, r, 0), _gate(b, r, 0))
    x, ba = request.projected_states_qkvz, request.projected_states_ba
    if x is None or ba is None:  # the core has refused this
        raise TypeError("a GDNRequest holds mixed_qkv, a and b, or the projections")
    if request.gqa_interleaved_layout:
        group = 2 * K + 2 * r * V
        parts = _channels(x, group, 0, group, K, group, 2 * K, V)
        return (*parts, _gate(ba, 2 * r, r), _gate(ba, 2 * r, 0))
    parts = _channels(x, K, 0, K, H * K, r * V, 2 * H * K, V)
    return (*parts, _gate(ba, r, H * r), _gate(ba, r, 0))


def _channels(
    x: torch.Tensor, q_group: int, q: int, k_group: int, k: int, v_group: int, v: int, V: int
) -> tuple[_Tensor, _Tensor, _Tensor]:
    """q, k and v as columns of ``x``: first column, and columns from one key head to the next."""
    data, kind, size = x.data_ptr(), DTYPES[x.dtype], x.element_size()
    row, column = x.stride()
    return (
        (data + q * column * size, kind, 0, row, q_group * column, 0, column),
        (data + k * column * size, kind, 0, row, k_group * column, 0, column),
        (data + v * column * size, kind, 0, row, v_group * column, V * column, column),
    )


def _gate(x: torch.Tensor, group: int, first: int) -> _Tensor:
    row, column = x.stride()
    data = x.data_ptr() + first * column * x.element_size()
    return (data, DTYPES[x.dtype], 0, row, group * column, column, 0)


def _write_gate(request: GDNRequest) -> None:
    x, z = request.projected_states_qkvz, request.z
    if x is None or z is None:
        return
    H, K, HV, V = request.num_heads, request.head_dim_k, request.num_v_heads, request.head_dim_v
    if request.gqa_interleaved_layout:
        r = HV // H
        gate = x.unflatten(1, (H, -1))[:, :, 2 * K + r * V :]
        z.copy_(gate.unflatten(2, (r, V)).flatten(1, 2))
    else:
        z.copy_(x[:, 2 * H * K + HV * V :].unflatten(1, (HV, V)))
