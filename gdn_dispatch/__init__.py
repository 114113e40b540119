"""One call for Gated DeltaNet attention on every accelerator.

    plan = gdn_dispatch.plan_batch(query_start_loc, state_indices=slots)      # host, once a step
    meta = gdn_dispatch.build_chunk_meta(plan, device)                        # one copy, no sync
    out = gdn_dispatch.gdn_attention(mixed_qkv, a, b, meta=meta, ...)         # every layer

Importing selects a backend, creates no device context and never raises; ``gdn-dispatch doctor``
says what was found.
"""

from gdn_dispatch.api import (
    build_chunk_meta,
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    gdn_attention,
    plan_batch,
)
from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch.errors import (
    BackendContractError,
    BackendNotInstalledError,
    BackendUnavailableError,
    ConfigurationError,
    GDNDispatchError,
    IntegrationError,
    InvalidArgumentError,
    InvalidPlanError,
    MetadataError,
    UnsupportedRequestError,
)
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.meta import ChunkMeta
from gdn_dispatch.plan.batch import BatchPlan
from gdn_dispatch.selection.dispatch import (
    current_backend,
    explain,
    initialise,
    list_backends,
    use_backend,
)
from gdn_dispatch.selection.resolver import Selection
from gdn_dispatch.types import (
    HOOK_API_VERSION,
    Available,
    BackendInfo,
    GDNOutput,
    GDNRequest,
    MetaRequest,
    ProviderInfo,
    Rejection,
    RuleRequest,
    Unavailable,
)
from gdn_dispatch.warmup import LayerSpec, warmup

__version__ = "0.1.0"

__all__ = [
    "HOOK_API_VERSION",
    "Available",
    "BackendContractError",
    "BackendInfo",
    "BackendNotInstalledError",
    "BackendUnavailableError",
    "BatchPlan",
    "Capability",
    "ChunkMeta",
    "ConfigurationError",
    "Feature",
    "GDNDispatchError",
    "GDNOutput",
    "GDNRequest",
    "IntegrationError",
    "InvalidArgumentError",
    "InvalidPlanError",
    "LayerSpec",
    "MetaRequest",
    "MetadataError",
    "ProviderInfo",
    "Rejection",
    "RuleRequest",
    "Selection",
    "Unavailable",
    "UnsupportedRequestError",
    "__version__",
    "build_chunk_meta",
    "chunk_gated_delta_rule",
    "current_backend",
    "explain",
    "fused_recurrent_gated_delta_rule",
    "gdn_attention",
    "hookimpl",
    "list_backends",
    "plan_batch",
    "use_backend",
    "warmup",
]

# Last: plugins import the names above while it runs.
initialise()
