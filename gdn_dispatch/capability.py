"""What a backend declares to support, and the reasons it gives against a call.

Both sides are plain data, so that every combination can be tested without a device: a backend
declares a ``Capability``; the core describes a call as ``CallFacts``; ``not_supported_reasons``
compares them and returns *every* reason, each with the value and what is supported.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["CallFacts", "Capability", "Feature"]


class Feature(str, Enum):
    """Things a backend may or may not do; the conformance kit asks for these, never for names."""

    GDN_ATTENTION = "gdn_attention"
    CHUNK_RULE = "chunk_gated_delta_rule"
    RECURRENT_RULE = "fused_recurrent_gated_delta_rule"
    VARLEN = "packed sequences (cu_seqlens)"
    SPECULATIVE = "speculative decode"
    CHECKPOINTS = "state checkpoints"
    RAW_PROJECTIONS = "raw projections (projected_states_qkvz)"
    STATE_V_FIRST = "state_v_first"
    RAW_GATE = "use_gate_in_kernel"
    AUTOGRAD = "gradients"
    BATCH_INVARIANT = "batch invariance"
    META_UPDATE = "metadata updated in place"
    NO_HOST_READ = "no read of a device tensor on the host"  # a CPU-only backend need not care


@dataclass(frozen=True, slots=True)
class CallFacts:
    """One call, reduced to what support can depend on. dtypes are names such as ``bfloat16``.

    Attributes:
        op: ``gdn_attention``, ``chunk_gated_delta_rule``, ``fused_recurrent_gated_delta_rule`` or
            ``build_chunk_meta``.
        device_type: ``torch.device.type`` of the inputs.
        dtype: Activation dtype, or None where it plays no part.
        state_dtype: dtype of the state pool or initial state, or None.
        head_dim_k, head_dim_v, num_heads, num_v_heads: K, V, H, HV; 0 where unknown.
        conv_width: W, or 0.
        features: What the call needs beyond the op itself.
    """

    op: str
    device_type: str
    dtype: str | None = None
    state_dtype: str | None = None
    head_dim_k: int = 0
    head_dim_v: int = 0
    num_heads: int = 0
    num_v_heads: int = 0
    conv_width: int = 0
    features: frozenset[Feature] = frozenset()


_OP_FEATURE = {
    "gdn_attention": Feature.GDN_ATTENTION,
    "chunk_gated_delta_rule": Feature.CHUNK_RULE,
    "fused_recurrent_gated_delta_rule": Feature.RECURRENT_RULE,
}


@dataclass(frozen=True, slots=True)
class Capability:
    """Declared limits of a backend. An empty tuple means: any value.

    Attributes:
        features: What it does.
        dtypes: Activation dtypes. state_dtypes: dtypes of state pools and initial states.
        head_dims_k, head_dims_v: Allowed K and V. max_head_dim: Upper bound on both, 0 for none.
        max_conv_width: Largest W, 0 for any.
        notes: Sentences for the support matrix, such as a slower form of a feature.
    """

    features: frozenset[Feature] = frozenset()
    dtypes: tuple[str, ...] = ()
    state_dtypes: tuple[str, ...] = ()
    head_dims_k: tuple[int, ...] = ()
    head_dims_v: tuple[int, ...] = ()
    max_head_dim: int = 0
    max_conv_width: int = 0
    notes: tuple[str, ...] = ()

    def not_supported_reasons(self, facts: CallFacts) -> tuple[str, ...]:
        """Every reason against ``facts``, in the order of the declaration; empty if supported."""
        reasons: list[str] = []
        op_feature = _OP_FEATURE.get(facts.op)
        needed = facts.features if op_feature is None else facts.features | {op_feature}
        reasons.extend(
            f"does not implement {feature.value}"
            for feature in sorted(needed - self.features, key=lambda f: f.value)
        )
        for label, value, supported in (
            ("dtype", facts.dtype, self.dtypes),
            ("state dtype", facts.state_dtype, self.state_dtypes),
        ):
            if value is not None and supported and value not in supported:
                reasons.append(f"{label} {value} (supports {', '.join(supported)})")
        for name, dim, dims in (
            ("K", facts.head_dim_k, self.head_dims_k),
            ("V", facts.head_dim_v, self.head_dims_v),
        ):
            if dim and dims and dim not in dims:
                reasons.append(f"{name}={dim} (supports {', '.join(map(str, dims))})")
            if dim and self.max_head_dim and dim > self.max_head_dim:
                reasons.append(f"{name}={dim} (supports up to {self.max_head_dim})")
        if facts.conv_width and self.max_conv_width and facts.conv_width > self.max_conv_width:
            reasons.append(f"W={facts.conv_width} (supports up to {self.max_conv_width})")
        return tuple(reasons)
