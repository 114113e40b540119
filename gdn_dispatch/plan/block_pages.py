"""Bytes of what a serving engine pages: states of Gated DeltaNet, and keys and values of a token.

All sizes are those of one layer on one of ``tp`` ranks, in bytes, as vLLM computes them
(``MambaStateShapeCalculator.gated_delta_net_state_shape``, ``FullAttentionSpec`` and
``MLAAttentionSpec`` of 0.33)::

    conv       (W - 1 + drafts) * (2*H*K + HV*V) / tp * bytes(conv_dtype)
    recurrent  HV / tp * K * V * bytes(state_dtype)
    token      max(1, num_kv_heads / tp) * 2 * head_dim * bytes(kv_dtype)
    token      head_dim * bytes(kv_dtype), with MLA, where every rank keeps the one latent head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from gdn_dispatch.errors import InvalidArgumentError

__all__ = ["AttentionShape", "StateShape", "Step", "at_least", "dtype_bytes", "up_to"]

_STATE_DTYPES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
_KV_DTYPES: Final = {**_STATE_DTYPES, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


class Step(NamedTuple):
    """One line of how a size came about.

    Attributes:
        name: What was computed.
        value: The number.
        unit: ``bytes`` or ``tokens``.
        why: What it was computed from, or why it grew.
    """

    name: str
    value: int
    unit: str
    why: str


@dataclass(frozen=True, slots=True)
class StateShape:
    """What one Gated DeltaNet layer keeps of a sequence, for the whole model.

    Attributes:
        num_heads: H, query and key heads.
        num_v_heads: HV, value heads, a multiple of H.
        head_dim_k: K.
        head_dim_v: V.
        conv_width: W, taps of the convolution.
        conv_dtype: ``bfloat16``, ``float16`` or ``float32``.
        state_dtype: The same, for the recurrent state.
    """

    num_heads: int
    num_v_heads: int
    head_dim_k: int
    head_dim_v: int
    conv_width: int = 4
    conv_dtype: str = "bfloat16"
    state_dtype: str = "bfloat16"

    def steps(self, tp: int, num_speculative_tokens: int) -> tuple[Step, Step]:
        """The convolution's history and the recurrent state, on one rank.

        Args:
            tp: Ranks of tensor parallelism; divides H and HV.
            num_speculative_tokens: Draft tokens; the history grows by a column for each.

        Raises:
            InvalidArgumentError: A number is out of range, or ``tp`` does not divide the heads.
        """
        for name in ("num_heads", "num_v_heads", "head_dim_k", "head_dim_v", "conv_width"):
            at_least(1, name, getattr(self, name))
        at_least(1, "tp", tp)
        at_least(0, "num_speculative_tokens", num_speculative_tokens)
        if self.num_v_heads % self.num_heads:
            raise InvalidArgumentError(
                "num_v_heads", f"{self.num_v_heads}", f"a multiple of num_heads = {self.num_heads}"
            )
        if self.num_heads % tp:
            raise InvalidArgumentError(
                "tp", f"{tp}", f"a divisor of the {self.num_heads} key heads of the linear layers"
            )
        columns = self.conv_width - 1 + num_speculative_tokens
        heads, value_heads = self.num_heads // tp, self.num_v_heads // tp
        channels = 2 * heads * self.head_dim_k + value_heads * self.head_dim_v
        size = dtype_bytes("conv_dtype", self.conv_dtype)
        drafts = f" + {num_speculative_tokens} drafts" if num_speculative_tokens else ""
        conv = Step(
            "convolution", columns * channels * size, "bytes",
            f"{columns} columns (W - 1{drafts}) x {channels} channels x {size} ({self.conv_dtype})",
        )  # fmt: skip
        size = dtype_bytes("state_dtype", self.state_dtype)
        recurrent = Step(
            "recurrent", value_heads * self.head_dim_k * self.head_dim_v * size, "bytes",
            f"{value_heads} value heads x {self.head_dim_k} x {self.head_dim_v} x {size} "
            f"({self.state_dtype})",
        )  # fmt: skip
        return conv, recurrent


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What one attention layer keeps of a token, for the whole model.

    Attributes:
        num_kv_heads: Key-value heads. Ranks beyond them hold replicas. Not looked at with MLA.
        head_dim: Width of a key and of a value; with MLA that of the latent vector and its rotary
            part together.
        kv_dtype: ``bfloat16``, ``float16``, ``float32``, ``fp8``, ``fp8_e4m3`` or ``fp8_e5m2``.
        mla: One latent vector per token in place of keys and values.
        token_bytes: Bytes of a token on one rank, where the attention backend packs its cache or
            keeps scales beside it; the other numbers are not looked at then.
    """

    num_kv_heads: int
    head_dim: int
    kv_dtype: str = "bfloat16"
    mla: bool = False
    token_bytes: int | None = None

    def step(self, tp: int) -> Step:
        """Keys and values of one token, on one rank.

        Raises:
            InvalidArgumentError: A number is out of range, or ``tp`` neither divides the heads nor
                is divided by them.
        """
        if self.token_bytes is not None:
            return Step("token", at_least(1, "token_bytes", self.token_bytes), "bytes", "as given")
        at_least(1, "head_dim", self.head_dim)
        size = dtype_bytes("kv_dtype", self.kv_dtype)
        what = f"{self.head_dim} x {size} ({self.kv_dtype})"
        if self.mla:
            return Step("token", self.head_dim * size, "bytes", f"one latent vector of {what}")
        heads = at_least(1, "num_kv_heads", self.num_kv_heads)
        if heads % tp and tp % heads:
            raise InvalidArgumentError(
                "tp", f"{tp}", f"a divisor or a multiple of the {heads} key-value heads"
            )
        here = max(1, heads // tp)
        plural = "head" if here == 1 else "heads"
        return Step(
            "token", here * 2 * self.head_dim * size, "bytes",
            f"{here} key-value {plural} x (key + value) x {what}",
        )  # fmt: skip


def dtype_bytes(name: str, dtype: str) -> int:
    """Bytes of an element of the argument ``name``; packed formats have no such number.

    Raises:
        InvalidArgumentError: ``dtype`` is not one that a cache of this kind can have.
    """
    known = _KV_DTYPES if name == "kv_dtype" else _STATE_DTYPES
    if dtype not in known:
        packed = "a cache that is packed or keeps scales has a page of its own: pass token_bytes"
        hint = packed if name == "kv_dtype" else ""
        raise InvalidArgumentError(name, repr(dtype), f"one of {', '.join(known)}", hint=hint)
    return known[dtype]


def at_least(lowest: int, name: str, value: object) -> int:
    """``value``, if it is an int of at least ``lowest``; a bool is not one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise InvalidArgumentError(name, repr(value), f"an int of at least {lowest}")
    return value


def up_to(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple
