"""A random Gated DeltaNet layer, its tokens, and what the oracle says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from gdn_dispatch.testing.numbers import generator
from gdn_dispatch.torch_backend.reference import reference_gdn_layer


@dataclass(frozen=True)
class LayerDims:
    """Sizes of a layer."""

    H: int
    HV: int
    K: int
    V: int
    W: int

    @property
    def D(self) -> int:
        """Channels of the convolution."""
        return 2 * self.H * self.K + self.HV * self.V


@dataclass(frozen=True)
class Tokens:
    """``mixed_qkv [T, D]``, ``a [T, HV]``, ``b [T, HV]`` of one sequence or of a step."""

    mixed_qkv: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor

    def __len__(self) -> int:
        return self.mixed_qkv.shape[0]

    def rows(self, start: int, end: int) -> Tokens:
        """Tokens ``start`` to ``end``."""
        return Tokens(self.mixed_qkv[start:end], self.a[start:end], self.b[start:end])

    @property
    def arguments(self) -> dict[str, torch.Tensor]:
        """Under their names in ``gdn_attention``."""
        return {"mixed_qkv": self.mixed_qkv, "a": self.a, "b": self.b}

    def projections(self, dims: LayerDims, z: torch.Tensor, *, interleaved: bool) -> dict[str, Any]:
        """The same as the engine's fused projections; z is the output gate ``[T, HV, V]``."""
        widths = (dims.H * dims.K, dims.H * dims.K, dims.HV * dims.V)
        parts = [*self.mixed_qkv.split(widths, dim=1), z.flatten(1)]
        gates = [self.b, self.a]
        if interleaved:
            parts, gates = ([_by_key_head(x, dims.H) for x in xs] for xs in (parts, gates))
        return {
            "projected_states_qkvz": torch.cat(parts, dim=-1).flatten(1),
            "projected_states_ba": torch.cat(gates, dim=-1).flatten(1),
            "gqa_interleaved_layout": interleaved,
        }


def on_device(arguments: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The same arguments, tensors among them on ``device``."""
    return {
        name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()
    }


def _by_key_head(x: torch.Tensor, H: int) -> torch.Tensor:
    return x.view(x.shape[0], H, x.shape[1] // H)


@dataclass(frozen=True)
class Layer:
    """Weights and options, named as the arguments of ``gdn_attention``."""

    dims: LayerDims
    conv_weight: torch.Tensor
    conv_bias: torch.Tensor | None
    A_log: torch.Tensor
    dt_bias: torch.Tensor
    activation: str | None = "silu"
    scale: float | None = None
    allow_neg_eigval: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Under their names in ``gdn_attention``."""
        names = ("conv_weight", "conv_bias", "A_log", "dt_bias", *self._options)
        return {name: getattr(self, name) for name in names}

    _options = ("activation", "scale", "allow_neg_eigval")

    def reference(
        self,
        tokens: Tokens,
        history: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output, conv history ``[D, W-1]`` and state after these tokens of one sequence."""
        return reference_gdn_layer(
            tokens.mixed_qkv, tokens.a, tokens.b, **self.arguments,
            num_heads=self.dims.H, head_dim_k=self.dims.K, head_dim_v=self.dims.V,
            conv_history=history, initial_state=state, dtype=dtype,
        )  # fmt: skip

    def with_options(self, **options: Any) -> Layer:
        """The same with other weights or options."""
        return replace(self, **options)


def random_layer(
    dims: LayerDims, *, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Layer:
    """Weights and gates in the range of real models'."""
    rng = generator(seed)
    return Layer(
        dims=dims,
        conv_weight=(torch.randn(dims.D, dims.W, generator=rng) * dims.W**-0.5).to(dtype),
        conv_bias=(torch.randn(dims.D, generator=rng) * 0.1).to(dtype) if bias else None,
        A_log=torch.log(torch.rand(dims.HV, generator=rng) * 4 + 0.1),
        # as checkpoints have it: kernels that take it in bf16 lose nothing
        dt_bias=(torch.randn(dims.HV, generator=rng) - 2.0).bfloat16().float(),
    )


def random_tokens(
    T: int, dims: LayerDims, *, dtype: torch.dtype = torch.float32, rng: torch.Generator | int = 0
) -> Tokens:
    """T tokens, all of them noise."""
    if isinstance(rng, int):
        rng = generator(rng)
    shapes = ((T, dims.D), (T, dims.HV), (T, dims.HV))
    return Tokens(*(torch.randn(shape, generator=rng).to(dtype) for shape in shapes))
