"""torch_npu's operators, played on a CPU under the schemas it documents.

They are registered with ``torch.library`` in the namespace ``npu``, refuse whatever the docstrings
of torch_npu 2.13.0 exclude, and compute with the fp64 reference. What a docstring leaves open is
read as vllm-ascend uses the operator. The schemas are written here once more, from torch_npu's
``npu_native_functions_by_codegen.yaml``, so that the adapters' are not compared with themselves.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise

import torch

from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule

CHUNK = (
    "npu_chunk_gated_delta_rule(Tensor query, Tensor key, Tensor value, *, Tensor? beta=None, "
    "Tensor? initial_state=None, Tensor? actual_seq_lengths=None, float? scale=None, "
    "Tensor? g=None) -> (Tensor, Tensor)"
)
RECURRENT = (
    "npu_recurrent_gated_delta_rule(Tensor query, Tensor key, Tensor value, Tensor(a!) state, *, "
    "Tensor? beta=None, float? scale=None, Tensor? actual_seq_lengths=None, "
    "Tensor? ssm_state_indices=None, Tensor? num_accepted_tokens=None, Tensor? g=None, "
    "Tensor? gk=None) -> Tensor"
)
CONV = (
    "npu_fused_causal_conv1d(Tensor x, Tensor weight, Tensor(a!) conv_states, *, "
    "Tensor? query_start_loc=None, Tensor? cache_indices=None, Tensor? initial_state_mode=None, "
    'Tensor? bias=None, Tensor? num_accepted_tokens=None, str? activation="None", '
    "int? pad_slot_id=-1, int? run_mode=0, int? residual_connection=0, int? max_query_len=-1, "
    "Tensor? num_computed_tokens=None, Tensor? block_idx_first_scheduled_token=None, "
    "Tensor? block_idx_last_scheduled_token=None, Tensor? initial_state_idx=None, "
    'int? block_size=128, str? conv_mode="default") -> Tensor'
)


@contextlib.contextmanager
def registered(*schemas, bodies=None):
    """Operators of these schemas, computing on a CPU; gone behind the block."""
    bodies = bodies or {}
    with torch.library._scoped_library("npu", "FRAGMENT") as library:
        for schema in schemas:
            name = library.define(schema)
            if name.removeprefix("npu::") in bodies:
                library.impl(name.removeprefix("npu::"), bodies[name.removeprefix("npu::")], "CPU")
        yield library


def documented(x, dtype, *shape):
    assert x is not None
    assert x.dtype == dtype
    assert tuple(x.shape) == shape
    assert x.is_contiguous()


def common(query, key, value, beta, state, lengths, scale, g, *, slots):
    T, H, K = query.shape
    HV, V = value.shape[1:]
    for x, shape in ((query, (T, H, K)), (key, (T, H, K)), (value, (T, HV, V)), (beta, (T, HV))):
        documented(x, torch.bfloat16, *shape)
    documented(state, torch.bfloat16, slots or state.shape[0], HV, V, K)
    documented(g, torch.float32, T, HV)
    assert lengths.dtype == torch.int32
    assert lengths.ndim == 1
    assert isinstance(scale, float)
    assert HV % H == 0
    assert not (g > 0).any()
    lens = lengths.tolist()
    assert sum(lens) == T > 0
    assert min(lens) > 0
    return [sum(lens[:n]) for n in range(len(lens) + 1)]


def one(query, key, value, g, beta, a, b, scale, state):
    """Tokens a to b from ``state`` ``[HV, V, K]``: output and state, in fp64."""
    out, final = reference_gated_delta_rule(
        *(x[a:b] for x in (query, key, value, g, beta)), scale=scale,
        initial_state=state.transpose(1, 2).double(),
    )  # fmt: skip
    return out, final.transpose(1, 2)


def bodies(calls):
    """What the operators compute; every call is kept in ``calls``."""

    def chunk(
        query, key, value, *, beta=None, initial_state=None, actual_seq_lengths=None, scale=None,
        g=None,
    ):  # fmt: skip
        calls.append(("chunk", locals()))
        starts = common(
            query, key, value, beta, initial_state, actual_seq_lengths, scale, g,
            slots=actual_seq_lengths.shape[0],
        )  # fmt: skip
        assert query.shape[2] == value.shape[2] == 128
        assert max(query.shape[1], value.shape[1]) <= 64
        assert not torch.isinf(g).any()
        found = [
            one(query, key, value, g, beta, a, b, scale, initial_state[n])
            for n, (a, b) in enumerate(pairwise(starts))
        ]
        outs, finals = zip(*found, strict=True)
        return torch.cat(outs).bfloat16(), torch.stack(finals).bfloat16()

    def recurrent(
        query, key, value, state, *, beta=None, scale=None, actual_seq_lengths=None,
        ssm_state_indices=None, num_accepted_tokens=None, g=None, gk=None,
    ):  # fmt: skip
        calls.append(("recurrent", locals()))
        starts = common(
            query, key, value, beta, state, actual_seq_lengths, scale, g, slots=None
        )  # fmt: skip
        documented(ssm_state_indices, torch.int32, query.shape[0])
        assert gk is None
        assert max(b - a for a, b in pairwise(starts)) <= 8
        assert max(*query.shape[1:], *value.shape[1:]) <= 256
        accepted = [1] * (len(starts) - 1)
        if num_accepted_tokens is not None:
            accepted = num_accepted_tokens.tolist()
        slots, outs = ssm_state_indices.tolist(), []
        for (a, b), count in zip(pairwise(starts), accepted, strict=True):
            carried = state[slots[a + count - 1]].clone()
            for t in range(a, b):
                out, carried = one(query, key, value, g, beta, t, t + 1, scale, carried)
                state[slots[t]] = carried.bfloat16()
                outs.append(out)
        return torch.cat(outs).bfloat16()

    def conv(
        x, weight, conv_states, *, query_start_loc=None, cache_indices=None, pad_slot_id=-1, **rest
    ):
        calls.append(("conv", locals()))
        defaults = {
            "initial_state_mode": None, "bias": None, "num_accepted_tokens": None,
            "activation": "None", "run_mode": 0, "residual_connection": 0, "max_query_len": -1,
            "num_computed_tokens": None, "block_idx_first_scheduled_token": None,
            "block_idx_last_scheduled_token": None, "initial_state_idx": None, "block_size": 128,
            "conv_mode": "default",
        }  # fmt: skip
        assert rest == {name: defaults[name] for name in rest}
        W, D = weight.shape
        assert W == 3
        assert D % 128 == 0
        assert x.dtype == weight.dtype == conv_states.dtype
        documented(x, x.dtype, x.shape[0], D)
        documented(conv_states, x.dtype, conv_states.shape[0], W - 1, D)
        assert query_start_loc.dtype == cache_indices.dtype == torch.int32
        y = torch.zeros_like(x)
        slots = cache_indices.tolist()
        for slot, (a, b) in zip(slots, pairwise(query_start_loc.tolist()), strict=True):
            if slot == pad_slot_id or a == b:
                continue
            line = torch.cat([conv_states[slot], x[a:b]])
            y[a:b] = sum(weight[i].double() * line[i : i + b - a].double() for i in range(W))
            conv_states[slot] = line[-(W - 1) :]
        return y

    return {
        "npu_chunk_gated_delta_rule": chunk,
        "npu_recurrent_gated_delta_rule": recurrent,
        "npu_fused_causal_conv1d": conv,
    }
