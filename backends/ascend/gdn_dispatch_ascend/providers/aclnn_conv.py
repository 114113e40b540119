"""The causal convolution by torch_npu's ``npu_fused_causal_conv1d``, over the rows of one kind.

What it takes, by the docstring of torch_npu 2.13.0: widths of 3 and no other, channels in multiples
of 128, fp16 or bf16, lines ``[slots, L, D]`` with channels last, on an Ascend 950; bias, activation
and ``initial_state_mode`` are arguments that it does not support yet. **Qwen's convolutions have a
width of 4, so no released model is served by it**, and vllm-ascend has an operator of its own
(``npu_causal_conv1d_custom``). It is adapted so that the refusal has a reason, and for the version
that takes more. It has not been run here: there was no NPU.

Copies made here: x contiguous, where it is not; silu behind the operator, as a second launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from gdn_dispatch_ascend.providers.operators import Operator

if TYPE_CHECKING:
    from gdn_dispatch_ascend.metadata.arguments import GroupArguments

__all__ = ["CONV", "causal_conv1d", "check", "unavailable"]

CONV: Final = Operator(
    "npu_fused_causal_conv1d(Tensor x, Tensor weight, Tensor(a!) conv_states, *, "
    "Tensor? query_start_loc=None, Tensor? cache_indices=None, Tensor? initial_state_mode=None, "
    'Tensor? bias=None, Tensor? num_accepted_tokens=None, str? activation="None", '
    "int? pad_slot_id=-1, int? run_mode=0, int? residual_connection=0, int? max_query_len=-1, "
    "Tensor? num_computed_tokens=None, Tensor? block_idx_first_scheduled_token=None, "
    "Tensor? block_idx_last_scheduled_token=None, Tensor? initial_state_idx=None, "
    'int? block_size=128, str? conv_mode="default") -> Tensor'
)

WIDTH: Final = 3
CHANNELS: Final = 128

_OWN: Final = 'pass backend="ascend" for the kernels of this project'


def unavailable() -> str:
    """Why it cannot be used here; empty if nothing is known against it. Imports nothing."""
    return CONV.unavailable()


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    conv_state: torch.Tensor,
    arguments: GroupArguments,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Refuse what the operator does not take, by its documentation; arguments as below.

    Raises:
        UnsupportedRequestError: Says what, why, and the way out.
    """
    CONV.check_device(x)
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise CONV.refuse(f"x of {x.dtype}", "takes bfloat16 or float16", _OWN)
    for name, tensor in (("conv_weight", weight), ("conv_state", conv_state)):
        CONV.check_dtype(name, tensor, x.dtype, _OWN)
    D, W = weight.shape
    if W != WIDTH:
        raise CONV.refuse(f"a convolution of width {W}", f"takes a width of {WIDTH}", _OWN)
    if D % CHANNELS:
        raise CONV.refuse(f"{D} channels", f"takes multiples of {CHANNELS}", _OWN)
    if bias is not None:
        raise CONV.refuse("a bias", "does not support one yet", _OWN)
    if activation not in (None, "silu"):
        raise CONV.refuse(f"activation {activation!r}", "is followed by silu or nothing", _OWN)
    if conv_state.shape[2] != W - 1:
        raise CONV.refuse(
            f"lines of {conv_state.shape[2]} columns", f"is adapted for {W - 1} = W - 1", _OWN
        )
    if not conv_state.transpose(1, 2).is_contiguous():
        raise CONV.refuse(
            f"conv_state of strides {list(conv_state.stride())}",
            "writes into lines whose channels lie side by side, and a copy would not be the pool",
            "allocate the pool as [slots, L, D] and pass its transposed view",
        )
    if arguments.num_accepted_tokens is not None:
        raise CONV.refuse("speculative rows", "does not say where their history begins", _OWN)
    if arguments.initial_state_mode is not None:
        raise CONV.refuse(
            "has_initial_state", "goes on from every row's slot, whatever is told",
            "zero the slots of new sequences and leave has_initial_state out",
        )  # fmt: skip
    if arguments.cache_indices is None:
        raise CONV.refuse(
            "rows without slots", "takes its history from slots", "pass state_indices"
        )
    CONV.check_dtype("state_indices", arguments.cache_indices, torch.int32, "pass them as int32")


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    conv_state: torch.Tensor,
    arguments: GroupArguments,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    pad_slot: int = -1,
) -> torch.Tensor:
    """Convolve the rows of one kind and move their lines on.

    Args:
        x: ``[T, D]`` tokens of these rows, packed.
        weight: ``[D, W]``.
        conv_state: ``[slots, D, W-1]`` view with channels last; updated in place.
        arguments: Of these rows.
        bias: None. activation: ``silu`` or None.
        pad_slot: A slot that is padding.

    Returns:
        ``[T, D]``, new.

    Raises:
        UnsupportedRequestError: See ``check``.
        BackendUnavailableError: The operator is not here, or is another one.
    """
    check(x, weight, conv_state, arguments, bias=bias, activation=activation)
    op = CONV.load()
    y: torch.Tensor = op(
        x.contiguous(), weight.t().contiguous(), conv_state.transpose(1, 2),
        query_start_loc=arguments.query_start_loc, cache_indices=arguments.cache_indices,
        pad_slot_id=pad_slot,
    )  # fmt: skip
    return torch.nn.functional.silu(y) if activation == "silu" else y
