"""The backend under test: what it declares, and calls of the public functions that it runs.

Inputs are made on the CPU, where the oracle is, and moved to the backend's device and back here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any

import torch

from gdn_dispatch import (
    build_chunk_meta,
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    gdn_attention,
    plan_batch,
)
from gdn_dispatch.capability import CallFacts, Capability, Feature
from gdn_dispatch.config import Config
from gdn_dispatch.meta import ChunkMeta
from gdn_dispatch.plugins.registry import FailedPlugin, LoadedPlugin, Registry
from gdn_dispatch.selection.dispatch import (
    active_config,
    active_registry,
    install,
    use_backend,
)
from gdn_dispatch.testing.layer_inputs import Layer, LayerDims, Tokens, on_device
from gdn_dispatch.testing.pools import PoolLayout, Pools
from gdn_dispatch.testing.rule_inputs import Dims, RuleInputs, cu_seqlens, starts_of
from gdn_dispatch.testing.tolerances import TOLERANCES
from gdn_dispatch.types import Available, BackendInfo, ProviderInfo

__all__ = ["FORMS", "Subject", "call_rule", "find_subject", "why_not_here"]

FORMS = {"chunk": Feature.CHUNK_RULE, "recurrent": Feature.RECURRENT_RULE}
_OPERATION = {
    "chunk": "chunk_gated_delta_rule",
    "recurrent": "fused_recurrent_gated_delta_rule",
    "layer": "gdn_attention",
}


@dataclass(frozen=True)
class Subject:
    """The backend under test.

    Attributes:
        name: As in ``backend="name"``; ``name/provider`` tests that provider, held to what
            it declares itself.
        version: Of its distribution, or what it says itself.
        info: What it says of itself.
        device: Where it is tested.
        tolerances: Its own relative errors by dtype, where they differ from ``TOLERANCES``.
        pool_layout: Fields of ``PoolLayout`` in tests that are not about layouts.
        value_heads_multiple: What HV is a multiple of in every test.
    """

    name: str
    version: str
    info: BackendInfo
    device: torch.device
    tolerances: Mapping[str, float]
    pool_layout: Mapping[str, Any] = field(default_factory=dict)
    value_heads_multiple: int = 1

    @property
    def capability(self) -> Capability:
        """What it declares."""
        provider = _provider(self.info, self.name)
        return self.info.capability if provider is None else provider.capability

    @property
    def dtype(self) -> torch.dtype:
        """Activation dtype of tests that are not about dtypes: fp32 where it has that."""
        return _preferred(self.capability.dtypes)

    @property
    def state_dtype(self) -> torch.dtype:
        """The same for state pools and initial states."""
        return _preferred(self.capability.state_dtypes)

    def tolerance(self, dtype: torch.dtype | None = None) -> float:
        """Largest relative error of an output in this dtype, and of the state behind it."""
        name = str(dtype or self.dtype).removeprefix("torch.")
        return self.tolerances.get(name, TOLERANCES[name])

    def dims(self, H: int = 2, HV: int = 4, K: int = 16, V: int = 24) -> Dims:
        """These dims, or the nearest that it declares."""
        limits = self.capability
        return Dims(H, HV, _nearest(K, limits.head_dims_k), _nearest(V, limits.head_dims_v))

    def layer_dims(self, H: int = 2, HV: int = 4, K: int = 8, V: int = 12, W: int = 4) -> LayerDims:
        """The same for a layer."""
        dims = self.dims(H, HV, K, V)
        times = self.value_heads_multiple // gcd(HV, self.value_heads_multiple)
        H, HV = H * times, HV * times
        return LayerDims(H, HV, dims.K, dims.V, min(W, self.capability.max_conv_width or W))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sequence lengths around every block boundary, with empty ones first, middle and last."""
        blocks = {self.info.chunk_size, *self.info.block_sizes, self.info.conv_block_size or 1}
        around = {1, 2}
        for size in blocks:
            if size <= 128:
                around |= {size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1}
        found = sorted(around - {0})
        middle = len(found) // 2
        return (0, *found[:middle], 0, *found[middle:], 0)

    def not_declared(
        self, operation: str, dims: Dims | None, features: set[Feature], **dtypes: str
    ) -> tuple[str, ...]:
        """Every reason why a test need not pass, as the core would give it for a call.

        Args:
            operation: ``chunk``, ``recurrent`` or ``layer``.
            dims: Head dims, where a test is about them.
            features: What the test needs.
            **dtypes: ``dtype`` and ``state_dtype``, where a test is about them.
        """
        facts = CallFacts(
            op=_OPERATION[operation],
            device_type=self.device.type,
            head_dim_k=dims.K if dims else 0,
            head_dim_v=dims.V if dims else 0,
            features=frozenset(features),
            **dtypes,  # type: ignore[arg-type]
        )
        return self.capability.not_supported_reasons(facts)

    # -- calls -----------------------------------------------------------------------------------

    def rule(
        self,
        form: str,
        inputs: RuleInputs,
        lengths: tuple[int, ...] | None = None,
        *,
        output_final_state: bool = True,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and final state, on the CPU.

        Args:
            form: ``chunk`` or ``recurrent``.
            inputs: ``[T, ...]`` of packed sequences where ``lengths`` are given, else ``[B, ...]``.
            lengths: Of the packed sequences.
            output_final_state: As in the call; without it the second result is empty.
            **options: Of the call; tensors are moved.
        """
        if lengths is not None:
            inputs = inputs.packed()
            options = {"cu_seqlens_cpu": cu_seqlens(lengths)} | options
        q, k, v, g, beta = (x.to(self.device) for x in inputs)
        host = {name: options.pop(name) for name in ("cu_seqlens_cpu",) if name in options}
        options = on_device(options, self.device) | host
        output, final = call_rule(
            form, (q, k, v, g, beta), output_final_state=output_final_state, **options
        )
        return output.cpu(), torch.empty(0) if final is None else final.cpu()

    def call(self, form: str, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The public function of a form, by its own keywords; nothing comes back to the CPU."""
        host = {name: arguments.pop(name) for name in ("cu_seqlens_cpu",) if name in arguments}
        inputs = [arguments.pop(name) for name in ("q", "k", "v", "g", "beta")]
        inputs = [x.to(self.device) if isinstance(x, torch.Tensor) else x for x in inputs]
        return call_rule(form, tuple(inputs), **on_device(arguments, self.device), **host)

    def pools(self, slots: int, dims: LayerDims, **layout: Any) -> Pools:
        """Poisoned pools, in dtypes it declares."""
        own = {"dtype": self.dtype, "state_dtype": self.state_dtype, **self.pool_layout}
        layout = own | layout
        return Pools(slots, dims, PoolLayout(**layout), self.device)

    def meta(self, lengths: tuple[int, ...], *, device: Mapping[str, Any] | None = None, **plan: Any
             ) -> ChunkMeta:  # fmt: skip
        """Metadata of a step; ``device`` holds what an engine has there already."""
        given = on_device(dict(device or {}), self.device)
        return build_chunk_meta(plan_batch(starts_of(lengths), **plan), self.device, **given)

    def layer(
        self,
        pools: Pools,
        layer: Layer,
        tokens: Tokens,
        meta: ChunkMeta,
        out: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Output of ``gdn_attention``, on the CPU unless ``out`` is given."""
        inputs: dict[str, Any] = options.pop("inputs", tokens.arguments)
        result = gdn_attention(
            **on_device(inputs, self.device),
            **on_device(layer.arguments | options, self.device),
            **pools.arguments,
            meta=meta,
            out=out,
        )
        return result.cpu() if out is None else result

    def serve(
        self,
        pools: Pools,
        layer: Layer,
        tokens: Tokens,
        lengths: tuple[int, ...],
        **plan: Any,
    ) -> torch.Tensor:
        """One step, planned and run."""
        return self.layer(pools, layer, tokens, self.meta(lengths, **plan))

    # -- running ---------------------------------------------------------------------------------

    @contextmanager
    def chosen(self, *, overstated: bool = False) -> Iterator[None]:
        """Run every public call inside on this backend.

        Args:
            overstated: Let it declare everything meanwhile, to see what it can do but does not
                claim. Its functions are the same.
        """
        if not overstated:
            with use_backend(self.name):
                yield
            return
        registry, config = active_registry(), active_config()
        backend = self.name.partition("/")[0]
        all_features = Capability(features=frozenset(Feature))
        everything = replace(
            self.info,
            capability=all_features,
            providers=tuple(replace(p, capability=all_features) for p in self.info.providers),
        )
        stand_in = Registry()
        stand_in.register(_Overstated(registry.pluggy.get_plugin(backend), everything), backend)
        install(stand_in, Config())
        try:
            with use_backend(self.name):
                yield
        finally:
            install(registry, config)


class _Overstated:
    """The functions of a plugin behind another ``backend_info``."""

    def __init__(self, plugin: object, info: BackendInfo) -> None:
        for name in ("probe", "build_chunk_meta", "gdn_attention", "gated_delta_rule"):
            if hasattr(plugin, name):
                setattr(self, name, getattr(plugin, name))
        self.backend_info = _marked(plugin, lambda: info)


def _marked(plugin: object, function: Any) -> Any:
    """``function`` with the mark that pluggy has put on the plugin's own ``backend_info``."""
    for mark, value in vars(plugin.backend_info).items():  # type: ignore[attr-defined]
        setattr(function, mark, value)
    return function


def call_rule(
    form: str, inputs: Iterable[Any], **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The public function of a form; ``inputs`` are q, k, v, g and beta."""
    q, k, v, g, beta = inputs
    call = chunk_gated_delta_rule if form == "chunk" else fused_recurrent_gated_delta_rule
    return call(q, k, v, g=g, beta=beta, **options)


def find_subject(name: str, device: str | None, tolerances: Mapping[str, float]) -> Subject | None:
    """The installed backend, or provider, of that name; None where ``why_not_here`` says why."""
    if why_not_here(name):
        return None
    plugin = active_registry().plugins[name.partition("/")[0]]
    assert isinstance(plugin, LoadedPlugin)
    where = device or next(iter(plugin.info.device_types), "cpu")
    version = plugin.version or plugin.info.version
    return Subject(name, str(version), plugin.info, torch.device(where), tolerances)


def why_not_here(name: str) -> str:
    """Why ``find_subject`` finds nothing; empty if it finds something."""
    backend, _, wanted = name.partition("/")
    plugin = active_registry().plugins.get(backend)
    if plugin is None:
        known = ", ".join(sorted(active_registry().names))
        return f"no backend {backend!r} is installed (there are {known})"
    if isinstance(plugin, FailedPlugin):
        return plugin.reason
    if not isinstance(plugin.availability, Available):
        return plugin.availability.reason
    provider = _provider(plugin.info, name)
    if wanted and provider is None:
        known = ", ".join(p.name for p in plugin.info.providers) or "none"
        return f"{backend} has no provider {wanted!r} (it has {known})"
    return "" if provider is None else provider.unavailable


def _provider(info: BackendInfo, name: str) -> ProviderInfo | None:
    wanted = name.partition("/")[2]
    return next((p for p in info.providers if p.name == wanted), None)


def _preferred(declared: tuple[str, ...]) -> torch.dtype:
    name = "float32" if not declared or "float32" in declared else declared[0]
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _nearest(dim: int, declared: tuple[int, ...]) -> int:
    return min(declared, key=lambda other: (abs(other - dim), other)) if declared else dim
