"""Inputs of ``bench --suite h200``, made on the device, and the fp64 recurrence to check against.

Values are of a trained model's ranges: keys and queries normalised, decay of exp(A_log) 0..16 and
dt 1e-3..1e-1, write strengths 0..1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch

from gdn_dispatch.cli.h200.oracle import Sample, chunk_oracle, layer_oracle, outermost
from gdn_dispatch.cli.h200.shapes import DIM, DecodeShape, PrefillShape

__all__ = [
    "DecodeInputs",
    "LayerInputs",
    "PrefillInputs",
    "decode_inputs",
    "layer_inputs",
    "prefill_inputs",
]

CONV_WIDTH: Final = 4


@dataclass(frozen=True)
class PrefillInputs:
    """A packed batch: q, k ``[T, H, K]``, v ``[T, HV, V]``, g, beta ``[T, HV]`` fp32.

    Attributes:
        starts: Host cu_seqlens. cu_seqlens: The same on the device, int32.
        states: ``[N, HV, V, K]`` fp32.
    """

    shape: PrefillShape
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    states: torch.Tensor
    starts: tuple[int, ...]
    cu_seqlens: torch.Tensor
    _exact: dict[bool, Sample] = field(default_factory=dict, repr=False)

    def exact(self, *, initial_states: bool) -> Sample:
        """The oracle's numbers, worked out once: the last sequence, the outermost value heads."""
        if initial_states not in self._exact:
            heads, keys = outermost(self.shape.H, self.shape.HV)
            last = len(self.starts) - 2
            rows = slice(self.starts[last], self.starts[last + 1])
            output, state = chunk_oracle(
                self.q[rows, keys],
                self.k[rows, keys],
                self.v[rows, heads],
                self.g[rows, heads],
                self.beta[rows, heads],
                scale=self.q.shape[2] ** -0.5,
                state=self.states[last, heads].mT if initial_states else None,
            )
            self._exact[initial_states] = Sample(last, rows, heads, output, state)
        return self._exact[initial_states]


@dataclass(frozen=True)
class LayerInputs:
    """A step of a whole layer core; the pools have one slot more than there are sequences.

    Attributes:
        mixed_qkv: ``[T, D]``. a, b: ``[T, HV]``. conv_weight: ``[D, W]``. A_log, dt_bias: ``[HV]``.
        conv_state: ``[slots, D, W-1]``, channels innermost. ssm_state: ``[slots, HV, V, K]`` fp32.
        slots: ``[N]`` int32. has_initial_state: ``[N]`` bool, every other one.
        starts: Host cu_seqlens. cu_seqlens: The same on the device, int32.
    """

    shape: PrefillShape
    mixed_qkv: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    conv_weight: torch.Tensor
    A_log: torch.Tensor
    dt_bias: torch.Tensor
    conv_state: torch.Tensor
    ssm_state: torch.Tensor
    slots: torch.Tensor
    has_initial_state: torch.Tensor
    starts: tuple[int, ...]
    cu_seqlens: torch.Tensor

    def exact(self) -> Sample:
        """The oracle's numbers for the pools as they are: the last sequence, outermost heads."""
        last = len(self.starts) - 2
        rows = slice(self.starts[last], self.starts[last + 1])
        slot, fresh = last + 1, last % 2 == 0
        output, state, heads = layer_oracle(
            self.mixed_qkv[rows],
            self.a[rows],
            self.b[rows],
            self.A_log,
            self.dt_bias,
            num_heads=self.shape.H,
            state=torch.zeros_like(self.ssm_state[slot]) if fresh else self.ssm_state[slot],
            conv_weight=self.conv_weight,
            history=None if fresh else self.conv_state[slot],
        )
        return Sample(slot, rows, heads, output, state)


@dataclass(frozen=True)
class DecodeInputs:
    """A decode step over a pool of ``sets`` times B states: every set is read from memory.

    Slot 0 is nobody's; set i owns the slots ``1 + i*B`` to ``(i+1)*B``.

    Attributes:
        mixed_qkv: ``[B, D]``. a, b: ``[B, HV]``. The rest as in ``LayerInputs``.
        pool: ``[1 + sets*B, HV, V, K]``. slots: ``sets`` tensors ``[B]`` int32.
    """

    shape: DecodeShape
    mixed_qkv: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    conv_weight: torch.Tensor
    A_log: torch.Tensor
    dt_bias: torch.Tensor
    conv_state: torch.Tensor
    pool: torch.Tensor
    slots: tuple[torch.Tensor, ...]

    @property
    def sets(self) -> int:
        """How many disjoint sets of states there are."""
        return len(self.slots)

    @property
    def state_bytes(self) -> int:
        """Of the states one step reads, and as many that it writes."""
        HV, V, K = self.pool.shape[1:]
        return 2 * self.shape.B * HV * V * K * self.pool.element_size()

    def exact(self, *, conv: bool) -> Sample:
        """The oracle's numbers of the first set's last row, for the pools as they are."""
        row = self.shape.B - 1
        slot = 1 + row
        output, state, heads = layer_oracle(
            self.mixed_qkv[row:],
            self.a[row:],
            self.b[row:],
            self.A_log,
            self.dt_bias,
            num_heads=self.shape.H,
            state=self.pool[slot],
            conv_weight=self.conv_weight if conv else None,
            history=self.conv_state[slot],
        )
        return Sample(slot, slice(row, row + 1), heads, output, state)

    def heads(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k ``[B, H, K]`` and v ``[B, HV, V]``, as views of ``mixed_qkv``."""
        B, H, HV = self.shape.B, self.shape.H, self.shape.HV
        K = self.pool.shape[3]
        q, k, v = self.mixed_qkv.split([H * K, H * K, HV * self.pool.shape[2]], dim=1)
        return q.view(B, H, K), k.view(B, H, K), v.view(B, HV, -1)


def _starts(lengths: tuple[int, ...]) -> tuple[int, ...]:
    found = [0]
    for length in lengths:
        found.append(found[-1] + length)
    return tuple(found)


def _decay(T: int, HV: int, draw: torch.Generator, device: torch.device) -> torch.Tensor:
    dt = torch.rand(T, HV, generator=draw, device=device).mul_(math.log(1e2)).exp_().mul_(1e-3)
    return -16 * torch.rand(HV, generator=draw, device=device) * dt


def prefill_inputs(
    shape: PrefillShape,
    device: torch.device,
    *,
    dim: int = DIM,
    dtype: torch.dtype = torch.bfloat16,
) -> PrefillInputs:
    """Of one shape, the same every time."""
    draw = torch.Generator(device).manual_seed(0)
    starts = _starts(shape.lengths)
    T, H, HV = starts[-1], shape.H, shape.HV

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw, device=device)

    q, k = (torch.nn.functional.normalize(randn(T, H, dim), dim=-1).to(dtype) for _ in range(2))
    return PrefillInputs(
        shape,
        q,
        k,
        randn(T, HV, dim).to(dtype),
        _decay(T, HV, draw, device),
        torch.rand(T, HV, generator=draw, device=device),
        randn(len(shape.lengths), HV, dim, dim),
        starts,
        torch.tensor(starts, dtype=torch.int32, device=device),
    )


def _layer_parts(
    T: int, H: int, HV: int, slots: int, dim: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    draw = torch.Generator(device).manual_seed(0)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw, device=device)

    D = 2 * H * dim + HV * dim
    A = torch.rand(HV, generator=draw, device=device) * 15 + 1
    return {
        "mixed_qkv": randn(T, D).to(dtype),
        "a": randn(T, HV).to(dtype),
        "b": randn(T, HV).to(dtype),
        "conv_weight": randn(D, CONV_WIDTH).mul_(0.5).to(dtype),
        "A_log": A.log(),
        "dt_bias": randn(HV) - 4,
        "conv_state": randn(slots, CONV_WIDTH - 1, D).to(dtype).transpose(1, 2),
    }


def layer_inputs(
    shape: PrefillShape,
    device: torch.device,
    *,
    dim: int = DIM,
    dtype: torch.dtype = torch.bfloat16,
) -> LayerInputs:
    """Of one shape, the same every time."""
    N, starts = len(shape.lengths), _starts(shape.lengths)
    parts = _layer_parts(starts[-1], shape.H, shape.HV, N + 1, dim, dtype, device)
    rows = torch.arange(N, dtype=torch.int32, device=device)
    return LayerInputs(
        shape=shape,
        ssm_state=torch.randn(N + 1, shape.HV, dim, dim, device=device) * 0.1,
        slots=rows + 1,
        has_initial_state=rows % 2 == 1,
        starts=starts,
        cu_seqlens=torch.tensor(starts, dtype=torch.int32, device=device),
        **parts,
    )


def decode_inputs(
    shape: DecodeShape,
    device: torch.device,
    *,
    cold_bytes: int = 1 << 28,
    most_sets: int = 1024,
    dim: int = DIM,
    dtype: torch.dtype = torch.bfloat16,
) -> DecodeInputs:
    """Of one shape, with more than ``cold_bytes`` of states, as far as ``most_sets`` allows."""
    B, HV = shape.B, shape.HV
    state_dtype: torch.dtype = getattr(torch, shape.state_dtype)
    one = B * HV * dim * dim * state_dtype.itemsize
    sets = max(2, min(most_sets, cold_bytes // one + 1))
    parts = _layer_parts(B, shape.H, HV, 1 + sets * B, dim, dtype, device)
    pool = torch.empty(1 + sets * B, HV, dim, dim, dtype=state_dtype, device=device)
    pool.normal_(0, 0.1)
    slots = torch.arange(1, 1 + sets * B, dtype=torch.int32, device=device)
    return DecodeInputs(shape=shape, pool=pool, slots=slots.split(B), **parts)
