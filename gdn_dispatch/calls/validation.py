"""What every backend may assume: shapes, dtypes, devices and options of a call.

Checks read attributes of tensors, never their values. They run on every call, so each is one
comparison, and words are put together only for a refusal. Whatever a backend may or may not
support is not decided here but by its capability.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import torch

from gdn_dispatch.errors import InvalidArgumentError

__all__ = ["RuleShape", "check_flags", "check_rule", "check_scale", "check_tensor"]

FLOATING = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
INTEGERS = frozenset((torch.int32, torch.int64))


class RuleShape(NamedTuple):
    """Sizes of a recurrence-only call."""

    B: int
    T: int
    H: int
    K: int
    HV: int
    V: int


def describe(value: object) -> str:
    """A value in the words of an error: shape, dtype and device of a tensor, never its contents."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        layout = "" if value.layout is torch.strided else f" {value.layout}"
        return f"{tuple(value.shape)} {dtype} {value.device}{layout}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def refuse(argument: str, got: object, expected: str, hint: str = "") -> NoReturn:
    """Raise ``InvalidArgumentError``; ``got`` is described, unless it is words already."""
    raise InvalidArgumentError(
        argument, got if isinstance(got, str) else describe(got), expected, hint=hint
    )


def names(dtypes: Any) -> str:
    """``bfloat16, float32`` for an error."""
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


_Tensor, _strided = torch.Tensor, torch.strided


def check_tensor(argument: str, value: Any, ndim: int, like: str) -> None:
    """A strided tensor of ``ndim`` dimensions; ``like`` names its shape."""
    if isinstance(value, _Tensor) and value.ndim == ndim and value.layout is _strided:
        return
    if not isinstance(value, _Tensor):
        refuse(argument, describe(value), f"a tensor {like}")
    if value.ndim != ndim:
        refuse(argument, value, like)
    refuse(argument, value, f"a dense tensor {like}", "call .to_dense()")


def check_shape(argument: str, value: torch.Tensor, shape: tuple[int, ...], like: str) -> None:
    """Exactly ``shape``, known as ``like``."""
    if value.shape != shape:
        refuse(argument, value, f"{like} = {list(shape)}")


def check_device(argument: str, value: torch.Tensor, device: torch.device, other: str) -> None:
    """On the device of the call."""
    if value.device != device:
        refuse(argument, value, f"{other}'s device, {device}", "nothing is moved silently")


def check_writable(argument: str, value: torch.Tensor) -> None:
    """No two elements in the same place, as ``expand`` puts them."""
    strides = value.stride()
    if 0 in strides and any(
        stride == 0 and size > 1 for stride, size in zip(strides, value.shape, strict=True)
    ):
        refuse(argument, f"strides {strides}", "memory of its own for every element")


def check_dtype(argument: str, value: torch.Tensor, allowed: Any) -> None:
    """One of ``allowed``."""
    if value.dtype not in allowed:
        refuse(argument, value, f"dtype {names(allowed)}", "nothing is cast silently")


def check_scale(scale: Any, K: int) -> float:
    """``scale``, or K^-1/2."""
    if scale is None:
        return 1.0 / math.sqrt(K)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        refuse("scale", describe(scale), "a finite number, or None for K**-0.5")
    return float(scale)


def check_flags(**flags: Any) -> None:
    """Every flag a bool: a tensor or a string as a flag is a mistake somewhere else."""
    for name, value in flags.items():
        if value is not True and value is not False:
            refuse(name, describe(value), "True or False")


def check_rule(q: Any, k: Any, v: Any, g: Any, beta: Any) -> RuleShape:
    """The five inputs of the recurrence; returns their sizes."""
    check_tensor("q", q, 4, "[B, T, H, K]")
    check_tensor("k", k, 4, "[B, T, H, K]")
    check_tensor("v", v, 4, "[B, T, HV, V]")
    check_tensor("g", g, 3, "[B, T, HV]")
    check_tensor("beta", beta, 3, "[B, T, HV]")
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    if k.shape != q.shape:
        check_shape("k", k, (B, T, H, K), "q's shape [B, T, H, K]")
    if v.shape[0] != B or v.shape[1] != T:
        check_shape("v", v, (B, T, HV, V), "[B, T, HV, V] with q's B and T")
    if not (H and K and HV and V and B):
        _refuse_empty(q, v)
    if HV % H:
        refuse("v", v, f"HV a multiple of H = {H}", "value head j reads key head j // (HV/H)")
    heads = (B, T, HV)
    if g.shape != heads:
        check_shape("g", g, heads, "[B, T, HV]")
    if beta.shape != heads:
        check_shape("beta", beta, heads, "[B, T, HV]")
    dtype, device = q.dtype, q.device
    if dtype not in FLOATING:
        check_dtype("q", q, FLOATING)
    if k.dtype != dtype or v.dtype != dtype:
        check_dtype("k", k, (dtype,))
        check_dtype("v", v, (dtype,))
    if g.dtype is not torch.float32 and g.dtype is not dtype:
        check_dtype("g", g, {torch.float32, dtype})
    if beta.dtype is not torch.float32 and beta.dtype is not dtype:
        check_dtype("beta", beta, {torch.float32, dtype})
    if not (k.device == device == v.device and g.device == device == beta.device):
        for name, value in (("k", k), ("v", v), ("g", g), ("beta", beta)):
            check_device(name, value, device, "q")
    return RuleShape(B, T, H, K, HV, V)


def _refuse_empty(q: torch.Tensor, v: torch.Tensor) -> NoReturn:
    if not (q.shape[0] and q.shape[2] and q.shape[3]):
        refuse("q", q, "[B, T, H, K] with B, H and K of at least 1")
    refuse("v", v, "[B, T, HV, V] with HV and V of at least 1")


def check_state(
    argument: str, state: Any, shape: tuple[int, int, int, int], like: str, device: torch.device
) -> None:
    """An initial state ``[N, HV, K, V]`` or ``[N, HV, V, K]``."""
    check_tensor(argument, state, 4, like)
    if state.shape != shape:
        check_shape(argument, state, shape, like)
    if state.dtype not in FLOATING:
        check_dtype(argument, state, FLOATING)
    if state.device != device:
        check_device(argument, state, device, "q")


def check_gate_parameters(
    A_log: Any, dt_bias: Any, HV: int, dtype: torch.dtype, device: torch.device
) -> None:
    """``A_log`` and, where given, ``dt_bias``: ``[HV]``, fp32 or the activation dtype."""
    _check_gate("A_log", A_log, HV, dtype, device)
    if dt_bias is not None:
        _check_gate("dt_bias", dt_bias, HV, dtype, device)


def _check_gate(name: str, value: Any, HV: int, dtype: torch.dtype, device: torch.device) -> None:
    check_tensor(name, value, 1, "[HV]")
    if value.shape[0] != HV:
        check_shape(name, value, (HV,), "[HV]")
    if value.dtype is not torch.float32 and value.dtype is not dtype:
        check_dtype(name, value, {torch.float32, dtype})
    if value.device != device:
        check_device(name, value, device, "the call")
