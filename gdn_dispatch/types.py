"""The plain data that passes between callers, the core and backends.

No logic lives here: who selects is in ``selection``, who validates in ``validation``, who builds
metadata in ``meta``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from gdn_dispatch.capability import Capability
    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.plan.batch import BatchPlan
    from gdn_dispatch.plan.layout import TablesMaker

__all__ = [
    "HOOK_API_VERSION",
    "Available",
    "BackendInfo",
    "GDNOutput",
    "GDNRequest",
    "MetaRequest",
    "ProviderInfo",
    "Rejection",
    "RuleRequest",
    "Unavailable",
]

HOOK_API_VERSION = 1
"""Version of the hook contract. A backend states the one it was written for in ``BackendInfo``."""


@dataclass(frozen=True, slots=True)
class Available:
    """Answer of ``probe``: the backend can run here. ``detail`` says on what, for ``doctor``."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Answer of ``probe``: the backend cannot run here. ``reason`` says why and what would help."""

    reason: str


@dataclass(frozen=True, slots=True)
class ProviderInfo:
    """A kernel library behind a backend, asked for by ``backend="cuda/flashinfer"``.

    Attributes:
        name: The part after the slash.
        capability: What the backend can do with this provider alone.
        unavailable: Why it cannot be used here, or empty.
    """

    name: str
    capability: Capability
    unavailable: str = ""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Static facts about a backend: true on every machine, known without importing an SDK.

    Attributes:
        name: Name of the backend; equal to its entry-point name.
        device_types: ``torch.device.type`` values it serves without being asked by name.
        capability: What it declares to support. Declared and failing is a bug of the backend.
        priority: Among backends that can serve a call, the highest wins; a tie goes to the name
            that sorts first, and the trace says so.
        hook_api: ``HOOK_API_VERSION`` the backend was written for.
        any_device_on_request: Whether an explicit request may use it on other device types.
        chunk_size: Tokens per chunk of its chunk rule; checkpoints fall on its multiples.
        block_sizes: Further block sizes it wants ``chunk_indices`` for.
        conv_block_size: Tokens per causal_conv1d tile, or 0 where it needs no tiles.
        block_size_multiple: Multiple a serving engine's attention block must have for it.
        summary: One line for ``doctor``.
        version: Version of the distribution, for ``doctor``.
        providers: Kernel libraries it can be told to use, as ``backend="name/provider"``.
    """

    name: str
    device_types: tuple[str, ...]
    capability: Capability
    priority: int = 50
    hook_api: int = HOOK_API_VERSION
    any_device_on_request: bool = False
    chunk_size: int = 64
    block_sizes: tuple[int, ...] = ()
    conv_block_size: int = 0
    block_size_multiple: int = 1
    summary: str = ""
    version: str = ""
    providers: tuple[ProviderInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejection:
    """One candidate turned down, and every reason for it.

    Attributes:
        backend: Its name.
        stage: Where it fell out: ``load``, ``disabled``, ``probe``, ``device``, ``choice`` (another
            one was asked for, or only an explicit request may use it) or ``capability``.
        reasons: Sentences with the value and what is supported.
    """

    backend: str
    stage: str
    reasons: tuple[str, ...]


class GDNOutput(NamedTuple):
    """What both compute hooks return, always as a pair.

    Attributes:
        output: ``[T, HV, V]`` from ``gdn_attention``; ``[B, T, HV, V]`` from ``gated_delta_rule``.
        final_state: ``[N, HV, K, V]`` fp32 (``[N, HV, V, K]`` with ``state_v_first``), or ``None``
            where none was asked for. ``gdn_attention`` updates the pools and returns ``None``.
    """

    output: torch.Tensor
    final_state: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class MetaRequest:
    """Argument of the ``build_chunk_meta`` hook.

    The four tensors are what an engine already holds on the device. They are used as they are, not
    copied, and take the place of the field of the same name in ``plan``.

    Attributes:
        plan: Host description of the step.
        device: Device the metadata goes to.
        state_indices: ``[N]`` or ``[N, S]`` int32/int64 slots, on ``device``, or None.
        initial_state_indices: Like ``state_indices``: slots to read from.
        has_initial_state: ``[N]`` bool, on ``device``, or None.
        num_accepted_tokens: ``[N]`` int32/int64, on ``device``, or None.
        num_v_heads: Value heads of this rank, for backends whose block sizes depend on it.
        provider: Kernel library asked for by name, or None: the backend's choice.
        tables_maker: The ``chunk_tables`` hook of a backend that has a compiled one, for the core's
            builder, or None: numpy.
    """

    plan: BatchPlan
    device: torch.device
    state_indices: torch.Tensor | None = None
    initial_state_indices: torch.Tensor | None = None
    has_initial_state: torch.Tensor | None = None
    num_accepted_tokens: torch.Tensor | None = None
    num_v_heads: int | None = None
    provider: str | None = None
    tables_maker: TablesMaker | None = None


@dataclass(slots=True)
class RuleRequest:
    """Argument of the ``gated_delta_rule`` hook: the recurrence alone. Validated by the core.

    Attributes:
        q, k: ``[B, T, H, K]``, any strides. v: ``[B, T, HV, V]``. HV is a multiple of H.
        g: ``[B, T, HV]``: natural-log decay (<= 0, may be -inf), or the raw gate ``a`` where
            ``A_log`` is given.
        beta: ``[B, T, HV]``: write strength, or its logit with ``use_beta_sigmoid_in_kernel``.
        scale: Factor on the output.
        initial_state: ``[N, HV, K, V]`` (``[N, HV, V, K]`` with ``state_v_first``), or None for
            zeros. Not written, unless donated.
        output_final_state: Whether ``GDNOutput.final_state`` is wanted.
        use_qk_l2norm_in_kernel: Normalise q and k over K first (eps 1e-6 inside the root).
        use_beta_sigmoid_in_kernel: beta is a logit.
        allow_neg_eigval: beta is doubled after the sigmoid.
        state_v_first: Layout of both states.
        A_log, dt_bias: ``[HV]``; with ``A_log``, g is raw: decay = -exp(A_log)*softplus(g+dt_bias).
        meta: Packed batch (B = 1), or None for a dense one: B sequences of T tokens.
        recurrent: True asks for the token-by-token form.
        provider: Kernel library asked for by name, or None: the backend's choice.
        donate_initial_state: The final state may be written over ``initial_state`` and that very
            tensor returned. A permission: a backend may ignore it.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    scale: float
    initial_state: torch.Tensor | None
    output_final_state: bool
    use_qk_l2norm_in_kernel: bool
    use_beta_sigmoid_in_kernel: bool
    allow_neg_eigval: bool
    state_v_first: bool
    A_log: torch.Tensor | None
    dt_bias: torch.Tensor | None
    meta: ChunkMeta | None
    recurrent: bool
    provider: str | None = None
    donate_initial_state: bool = False


@dataclass(slots=True)
class GDNRequest:
    """Argument of the ``gdn_attention`` hook: the whole layer core. Validated by the core.

    Either ``mixed_qkv``, ``a`` and ``b`` are given, or ``projected_states_qkvz``,
    ``projected_states_ba`` and ``z``; the others are None.

    Attributes:
        mixed_qkv: ``[T, D]``, D = 2*H*K + HV*V, channels [q | k | v]; row stride free.
        a, b: ``[T, HV]``: raw gate and raw beta.
        projected_states_qkvz: ``[T, 2*H*K + 2*HV*V]``: the engine's fused projection.
        projected_states_ba: ``[T, 2*HV]``.
        z: ``[T, HV, V]``: receives the output gate's channels of the projection.
        gqa_interleaved_layout: False: flat [q | k | v | z] and [b | a]; True: the same, interleaved
            per key head (Qwen3-Next).
        meta: Metadata of the step, built by this backend.
        conv_state: ``[slots, D, L >= W-1]`` view, any strides; updated in place.
        ssm_state: ``[slots, HV, K, V]`` (``[slots, HV, V, K]`` with ``state_v_first``), slot stride
            free; updated in place.
        conv_weight: ``[D, W]``. conv_bias: ``[D]`` or None.
        A_log, dt_bias: ``[HV]``.
        activation: ``"silu"`` or None.
        scale: Factor on the output.
        allow_neg_eigval: beta is doubled after the sigmoid.
        state_v_first: Layout of ``ssm_state``.
        out: ``[T, HV, V]``, to be written in full (padded rows with zeros) and returned.
        num_heads: H; head_dim_k: K; head_dim_v: V; num_v_heads: HV, of this rank.
        provider: Kernel library asked for by name, or None: the backend's choice.
    """

    mixed_qkv: torch.Tensor | None
    a: torch.Tensor | None
    b: torch.Tensor | None
    projected_states_qkvz: torch.Tensor | None
    projected_states_ba: torch.Tensor | None
    z: torch.Tensor | None
    gqa_interleaved_layout: bool
    meta: ChunkMeta
    conv_state: torch.Tensor
    ssm_state: torch.Tensor
    conv_weight: torch.Tensor
    conv_bias: torch.Tensor | None
    A_log: torch.Tensor
    dt_bias: torch.Tensor
    activation: str | None
    scale: float
    allow_neg_eigval: bool
    state_v_first: bool
    out: torch.Tensor
    num_heads: int
    num_v_heads: int
    head_dim_k: int
    head_dim_v: int
    provider: str | None = None
