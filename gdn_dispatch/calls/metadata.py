"""Metadata calls: host data becomes a plan, a plan becomes metadata of the backend's making."""

from __future__ import annotations

from typing import Any

import torch

from gdn_dispatch.calls.validation import INTEGERS, check_device, check_dtype, describe, refuse
from gdn_dispatch.capability import CallFacts, Feature
from gdn_dispatch.errors import BackendContractError, InvalidPlanError, MetadataError
from gdn_dispatch.meta import ChunkMeta, MetaSpec, build
from gdn_dispatch.plan.batch import BatchPlan
from gdn_dispatch.selection.dispatch import Bound, bind, lookup, tables_maker
from gdn_dispatch.types import MetaRequest

__all__ = ["check_owner", "host_data", "run_build_chunk_meta"]


def host_data(argument: str, value: Any) -> Any:
    """``value`` as plain host data: CPU tensors become numpy views, others are refused."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.device.type != "cpu":
        raise InvalidPlanError(
            argument,
            describe(value),
            "host data: a list, a numpy array or a CPU tensor",
            hint="device tensors go to build_chunk_meta; nothing reads them on the host",
        )
    return value.detach().numpy()


def run_build_chunk_meta(
    plan: Any,
    device: Any,
    state_indices: Any,
    initial_state_indices: Any,
    has_initial_state: Any,
    num_accepted_tokens: Any,
    num_v_heads: Any,
    backend: Any,
) -> ChunkMeta:
    """See ``api.build_chunk_meta``."""
    if not isinstance(plan, BatchPlan):
        refuse("plan", plan, "a BatchPlan from plan_batch")
    device = _device(device)
    given = {
        "state_indices": state_indices,
        "initial_state_indices": initial_state_indices,
        "has_initial_state": has_initial_state,
        "num_accepted_tokens": num_accepted_tokens,
    }
    for name, tensor in given.items():
        if tensor is not None:
            _check_device_input(name, tensor, plan.num_seqs, device)
    if num_v_heads is not None and (
        isinstance(num_v_heads, bool) or not isinstance(num_v_heads, int) or num_v_heads < 1
    ):
        refuse("num_v_heads", describe(num_v_heads), "an int of at least 1")

    features = frozenset(_plan_features(plan))
    key = ("build_chunk_meta", device, features)
    bound = lookup(key, backend) or bind(
        CallFacts("build_chunk_meta", device.type, features=features), backend, key=key
    )
    request = MetaRequest(
        plan,
        device,
        **given,
        num_v_heads=num_v_heads,
        provider=bound.provider,
        tables_maker=tables_maker(),
    )
    if not bound.implemented:
        info = bound.info
        spec = MetaSpec(info.chunk_size, info.block_sizes, info.conv_block_size)
        return build(request, spec, backend=bound.name)
    meta = bound.function(request)
    if not isinstance(meta, ChunkMeta):
        raise BackendContractError(
            f"build_chunk_meta of backend '{bound.name}' returned {type(meta).__name__}, "
            "a ChunkMeta is required"
        )
    return meta


def _device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        refuse("device", describe(device), "a device, such as 'cpu' or 'cuda:0'")
    if found.index is None and found.type != "cpu":
        # "cuda" and "cuda:1" are not equal; tensors always name the one they are on.
        try:
            return torch.device(found.type, torch.get_device_module(found).current_device())
        except (RuntimeError, AssertionError):  # no such device here: no backend will serve it
            return found
    return found


def _check_device_input(name: str, tensor: Any, N: int, device: torch.device) -> None:
    two = name in ("state_indices", "initial_state_indices")
    like = "[N] or [N, S]" if two else "[N]"
    if not isinstance(tensor, torch.Tensor):
        refuse(name, tensor, f"a tensor {like} on {device}", "host data goes to plan_batch")
    if tensor.ndim not in ((1, 2) if two else (1,)) or tensor.shape[0] < N:
        refuse(name, tensor, f"{like} with N = {N}")
    check_dtype(name, tensor, {torch.bool} if name == "has_initial_state" else INTEGERS)
    check_device(name, tensor, device, "the metadata")


def _plan_features(plan: BatchPlan) -> list[Feature]:
    features = []
    if plan.speculative is not None and plan.speculative.any():
        features.append(Feature.SPECULATIVE)
    if plan.checkpoints is not None:
        features.append(Feature.CHECKPOINTS)
    return features


def check_owner(meta: ChunkMeta, bound: Bound) -> None:
    """``meta`` was built by the backend that is to read it."""
    if meta.backend != bound.name:
        raise MetadataError(
            "meta.backend",
            f"'{meta.backend}'",
            f"'{bound.name}', the backend of this call",
            hint=f"build_chunk_meta(..., backend='{bound.name}'), or backend='{meta.backend}' here",
        )
