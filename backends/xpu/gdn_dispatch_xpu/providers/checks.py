"""What Intel's operator cannot run, or would silently get wrong; looked at before it is called.

Its own checks come one by one while it works, some after the convolution has written its state, and
some limits are asserts that a release build leaves out. So everything is looked at here, from
shapes, strides and dtypes alone.
"""

from __future__ import annotations

from math import isclose
from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch.triton_kernels.capture import is_capturing
from gdn_dispatch_xpu.capability import SYCL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdn_dispatch.types import GDNRequest
    from gdn_dispatch_xpu.providers.op_step import OpStep
    from gdn_dispatch_xpu.providers.schema import Operator

__all__ = ["MOST", "problems"]

MOST: Final = 2**31 - 1
"""Elements its 32-bit addresses reach."""


def problems(request: GDNRequest, step: OpStep, operator: Operator) -> tuple[str, ...]:
    """Every reason against a call; empty if the operator can run it rightly."""
    return (
        *_sizes(request),
        *_dtypes(request),
        *_options(request),
        *_layouts(request),
        *_pools(request, step),
        *_step(request, step, operator),
    )


def _sizes(r: GDNRequest) -> Iterator[str]:
    K, V, H, HV, W = r.head_dim_k, r.head_dim_v, r.num_heads, r.num_v_heads, r.conv_weight.shape[1]
    if K not in SYCL.head_dims_k:
        yield f"K={K}: it has kernels for {_list(SYCL.head_dims_k)}"
    if V not in SYCL.head_dims_v:
        yield f"V={V}: a multiple of 32 up to 256 is needed, asserted there and not checked"
    if SYCL.max_conv_width < W:
        yield f"W={W}: it does nothing, silently, for more than {SYCL.max_conv_width} taps"
    if HV % 4:
        yield f"HV={HV}: a multiple of 4 is needed on every rank, asserted there and not checked"
    ratio = HV // H
    if r.gqa_interleaved_layout and ratio > 4 and ratio % 4:
        yield (f"HV/H={ratio} with interleaved gates: it reads them in fours; pass the flat layout")


def _dtypes(r: GDNRequest) -> Iterator[str]:
    dtype = r.out.dtype
    if _name(dtype) not in SYCL.dtypes:
        yield f"activations of {_name(dtype)}: its chunk kernels take {_list(SYCL.dtypes)}"
    if _name(r.ssm_state.dtype) not in SYCL.state_dtypes:
        yield f"ssm_state of {_name(r.ssm_state.dtype)}: it takes {_list(SYCL.state_dtypes)}"
    for name, x in (
        ("dt_bias", r.dt_bias),
        ("conv_weight", r.conv_weight),
        ("conv_bias", r.conv_bias),
    ):
        if x is not None and x.dtype != dtype:
            yield (
                f"{name} of {_name(x.dtype)}: it is read as {_name(dtype)}, unchecked, and a cast "
                "would round it"
            )


def _options(r: GDNRequest) -> Iterator[str]:
    if r.activation is None:
        yield "activation=None: it has silu alone"
    if not isclose(r.scale, r.head_dim_k**-0.5, rel_tol=1e-6):
        yield f"scale={r.scale}: it has {r.head_dim_k}**-0.5 built in"
    if r.allow_neg_eigval:
        yield "allow_neg_eigval: its write strength is a plain sigmoid"
    if r.meta.checkpoint_slots is not None:
        yield "checkpoints: it keeps no states on the way"


def _layouts(r: GDNRequest) -> Iterator[str]:
    for name, x in (
        ("projected_states_qkvz", r.projected_states_qkvz),
        ("projected_states_ba", r.projected_states_ba),
        ("z", r.z),
        ("conv_weight", r.conv_weight),
        ("conv_bias", r.conv_bias),
        ("dt_bias", r.dt_bias),
    ):
        if x is not None and not x.is_contiguous():
            yield f"{name} with strides {tuple(x.stride())}: it takes contiguous tensors"
    tokens, width = r.out.shape[0], r.conv_weight.shape[0] + r.num_v_heads * r.head_dim_v
    if tokens * width > MOST:
        yield f"{tokens} tokens in a step: their projections are past its 32-bit addresses"
    if is_capturing(r.out.device):
        yield "a captured graph: its index tensors have exact lengths, which replays would change"


def _pools(r: GDNRequest, step: OpStep) -> Iterator[str]:
    if not r.state_v_first:
        yield "state_v_first=False: its states are [slots, HV, V, K]"
    conv, ssm = r.conv_state, r.ssm_state
    slots, D, L = conv.shape
    if not _packed((L, D), (conv.stride(2), conv.stride(1))):
        yield (
            f"conv_state with strides {tuple(conv.stride())}: a slot is [L, D] in memory, channels "
            "last (vLLM's layout SD)"
        )
    if not _packed(tuple(ssm.shape[1:]), tuple(ssm.stride()[1:])):
        yield f"ssm_state with strides {tuple(ssm.stride())}: a slot must be contiguous"
    if slots and (slots - 1) * conv.stride(0) + D * L - 1 > MOST:
        reach = (MOST - D * L + 1) // conv.stride(0) + 1
        yield (
            f"conv_state of {slots} slots, {conv.stride(0)} elements apart: its convolution "
            f"addresses them with 32 bits, which reach {reach}; keep fewer or smaller pages"
        )
    if ssm.stride(0) > MOST:
        yield f"ssm_state with {ssm.stride(0)} elements from slot to slot: it takes 32 bits"
    pad, room = step.pad_slot, min(slots, ssm.shape[0])
    if pad is not None and pad >= room:
        yield (
            f"pad_slot={pad} outside the pools of {room} slots: rows of padding, which the host "
            "cannot tell, would be written there; name a slot that nobody uses"
        )


def _step(r: GDNRequest, step: OpStep, operator: Operator) -> Iterator[str]:
    yield from step.problems
    if step.num_spec_decodes and not operator.speculative:
        yield (
            "drafts: before 0.1.16 it takes no ragged ones and leaves another conv line (this one "
            "lacks gated_delta_rule_spec_recoverssm); pip install 'vllm-xpu-kernels>=0.1.16'"
        )
    elif step.non_spec_token_indx is not None and not operator.packed:
        yield (
            "rows left out in the middle of a step: before it was split into operators for drafts "
            "and others it took all tokens; pip install 'vllm-xpu-kernels>=0.1.16'"
        )


def _packed(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether such a slot is contiguous."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _list(values: object) -> str:
    return ", ".join(map(str, values))  # type: ignore[call-overload]
