"""What the backend declares. A call that needs more never reaches it."""

from __future__ import annotations

from gdn_dispatch import Capability, Feature

CHUNK_SIZE = 64
"""Checkpoints fall on its multiples. The kernels here need no chunks; most need some."""

CAPABILITY = Capability(
    # Everything but AUTOGRAD, as NumPy records no gradients, and NO_HOST_READ, as it is the host.
    features=frozenset(
        {
            Feature.GDN_ATTENTION,
            Feature.CHUNK_RULE,
            Feature.RECURRENT_RULE,
            Feature.VARLEN,
            Feature.SPECULATIVE,
            Feature.CHECKPOINTS,
            Feature.RAW_PROJECTIONS,  # run_layer splits them
            Feature.STATE_V_FIRST,
            Feature.RAW_GATE,
            Feature.BATCH_INVARIANT,  # every sequence is computed alone
            Feature.META_UPDATE,  # slots are read from the metadata's tensors in every call
        }
    ),
    dtypes=("float32", "bfloat16", "float16", "float64"),
    state_dtypes=("float32", "bfloat16", "float16", "float64"),
    notes=("chunk_gated_delta_rule: token by token, like the recurrent form",),
)
