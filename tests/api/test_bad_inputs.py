"""Every mistake is refused with a typed error that names it, before anything is written.

The table below is a list of mistakes, each one spoiling a good call of ``public_calls``.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import gdn_dispatch
from gdn_dispatch import GDNDispatchError, build_chunk_meta, plan_batch
from gdn_dispatch.errors import InvalidArgumentError, MetadataError
from gdn_dispatch.meta import MetaSpec, build
from gdn_dispatch.testing.numbers import as_bytes
from gdn_dispatch.types import MetaRequest
from tests.support import public_calls as good
from tests.support.public_calls import DIMS, FUNCTIONS, SLOTS, STARTS, TOKENS

H, HV, K, V, W, D = DIMS.H, DIMS.HV, DIMS.K, DIMS.V, DIMS.W, DIMS.D


@dataclass(frozen=True)
class Mistake:
    """``change`` spoils the arguments of ``call``; the error must name ``argument``."""

    call: object
    argument: str
    what: str
    change: dict

    def __str__(self):
        return f"{self.call.__name__}: {self.argument} {self.what}".replace(" ", "_")


MISTAKES = []


def mistake(call, argument, what, *values, naming=None, **change):
    """Add one: ``argument`` gets the value (or what a function makes of the good one)."""
    change = {argument: values[0], **change} if values else change
    MISTAKES.append(Mistake(call, naming or argument, what, change))


def as_type(dtype):
    return lambda x: x.to(dtype)


def elsewhere(x):
    return x.to("meta")


def sparse(x):
    return x.to_sparse()


def shaped(*shape):
    return lambda x: torch.zeros(shape, dtype=x.dtype)


def strided(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def overlapping(x):
    """Every slot (row) of the tensor is the same memory."""
    return x[:1].expand_as(x)


# -- the five inputs of the rule ------------------------------------------------------------------

for name in ("q", "k", "v", "g", "beta"):
    mistake(good.rule, name, "is a list", [1.0])
    mistake(good.rule, name, "is an array", np.zeros((2, 6, 4, 8)))
    mistake(good.rule, name, "has a dimension too few", lambda x: x[0])
    mistake(good.rule, name, "has a dimension too many", lambda x: x.unsqueeze(0))
    mistake(good.rule, name, "is sparse", sparse)
    mistake(good.rule, name, "is of ints", as_type(torch.int32))
    mistake(good.rule, name, "is complex", as_type(torch.complex64))
for name in ("k", "v", "g", "beta"):
    mistake(good.rule, name, "has fewer tokens", lambda x: x[:, :5])
    mistake(good.rule, name, "has fewer batch rows", lambda x: x[:1])
    mistake(good.rule, name, "is on another device", elsewhere)
    mistake(good.rule, name, "is of fp16 beside fp32", as_type(torch.float16))
for name in ("g", "beta"):
    mistake(good.rule, name, "has the key heads' number", lambda x: x[:, :, :H])
mistake(good.rule, "q", "is None", None)
mistake(good.rule, "v", "is None", None)
mistake(good.rule, "k", "has another number of heads", shaped(2, 6, 1, K))
mistake(good.rule, "k", "has another K", shaped(2, 6, H, K + 1))
mistake(good.rule, "v", "has heads that are no multiple of H", shaped(2, 6, 3, V))
mistake(good.rule, "q", "has no heads", q=shaped(2, 6, 0, K), k=shaped(2, 6, 0, K))
mistake(good.rule, "q", "has K = 0", q=shaped(2, 6, H, 0), k=shaped(2, 6, H, 0))
mistake(good.rule, "v", "has V = 0", shaped(2, 6, HV, 0))
mistake(good.rule, "v", "has HV = 0", shaped(2, 6, 0, V))
mistake(
    good.rule, "q", "has B = 0",
    **{name: (lambda x: x[:0]) for name in ("q", "k", "v", "g", "beta", "initial_state")},
)  # fmt: skip
mistake(good.rule, "q", "is of ints like k and v",
        **{name: as_type(torch.int64) for name in ("q", "k", "v")})  # fmt: skip

# -- the rule's options ---------------------------------------------------------------------------

for name in ("output_final_state", "use_qk_l2norm_in_kernel", "use_beta_sigmoid_in_kernel",
             "allow_neg_eigval", "state_v_first", "use_gate_in_kernel"):  # fmt: skip
    mistake(good.rule, name, "is 1", 1)
    mistake(good.rule, name, "is a tensor", torch.tensor(True))
mistake(good.rule, "state_v_first", "is None", None)
for value in (math.nan, math.inf, "1", True, torch.tensor(1.0), 1j):
    mistake(good.rule, "scale", f"is {value!r}", value)
mistake(good.rule, "allow_neg_eigval", "is set without the sigmoid", True)
mistake(good.rule, "A_log", "is given without use_gate_in_kernel", torch.zeros(HV))
mistake(good.rule, "dt_bias", "is given without use_gate_in_kernel", torch.zeros(HV))
mistake(good.rule_with_raw_gates, "A_log", "is missing", None)
for name in ("A_log", "dt_bias"):
    mistake(good.rule_with_raw_gates, name, "is a number", 1.0)
    mistake(good.rule_with_raw_gates, name, "is a scalar", torch.tensor(0.0))
    mistake(good.rule_with_raw_gates, name, "has H entries", torch.zeros(H))
    mistake(good.rule_with_raw_gates, name, "is of ints", as_type(torch.int64))
    mistake(good.rule_with_raw_gates, name, "is on another device", elsewhere)
    mistake(good.rule_with_raw_gates, name, "is of bf16 beside fp32", as_type(torch.bfloat16))

mistake(good.rule, "initial_state", "is a list", [0.0])
mistake(good.rule, "initial_state", "is of one sequence", lambda x: x[0])
mistake(good.rule, "initial_state", "is of too few sequences", lambda x: x[:1])
mistake(good.rule, "initial_state", "has H heads", lambda x: x[:, :H])
mistake(good.rule, "initial_state", "has V first", lambda x: x.transpose(2, 3))
mistake(good.rule, "initial_state", "has K first", state_v_first=True)
mistake(good.rule, "initial_state", "is of ints", as_type(torch.int32))
mistake(good.rule, "initial_state", "is on another device", elsewhere)
mistake(good.rule, "initial_state", "is sparse", sparse)
mistake(good.packed_rule, "initial_state", "has a row too few", lambda x: x[:3])
mistake(good.packed_rule, "initial_state", "has a row too many", lambda x: torch.cat([x, x]))

for value in ("cuda/", "", "no such backend", "a/b/c", 3, ["torch"]):
    mistake(good.rule, "backend", f"is {value!r}", value)
mistake(good.rule, "nonesuch", "is not installed", backend="nonesuch")
mistake(good.rule, "nonesuch", "is not a provider", backend="torch/nonesuch")

# -- packed batches -------------------------------------------------------------------------------

for name in ("cu_seqlens", "cu_seqlens_cpu"):
    mistake(good.packed_rule, name, "is a string", "0, 9")
    mistake(good.packed_rule, name, "has two dimensions", torch.tensor([STARTS]))
    mistake(good.packed_rule, name, "is of floats", torch.tensor(STARTS).float())
mistake(good.packed_rule, "cu_seqlens", "is a list", STARTS)
mistake(good.packed_rule, "cu_seqlens", "is a number", 4)
mistake(good.packed_rule, "cu_seqlens", "is of int16", torch.tensor(STARTS, dtype=torch.int16))
mistake(good.packed_rule, "cu_seqlens_cpu", "is needed", torch.tensor(STARTS).to("meta"),
        naming="cu_seqlens_cpu", cu_seqlens=torch.tensor(STARTS).to("meta"),
        cu_seqlens_cpu=None)  # fmt: skip
mistake(good.packed_rule, "cu_seqlens_cpu", "is on a device", torch.tensor(STARTS).to("meta"),
        cu_seqlens=None)  # fmt: skip
mistake(good.packed_rule, "cu_seqlens_cpu", "differs", [0, 4, 5, 6, 8])
mistake(good.packed_rule, "cu_seqlens_cpu", "is shorter", [0, 5, 8])
for values, what in (
    ([1, 5, 8], "does not start at 0"), ([0, 5, 3, 9], "decreases"), ([], "is empty"),
    ([0, 5, TOKENS + 1], "goes past the tokens"), ([0, -1], "is negative"),
):  # fmt: skip
    mistake(good.packed_rule, "cu_seqlens",
            f"of cu_seqlens {what}", cu_seqlens=torch.tensor(values, dtype=torch.int64),
            initial_state=None)  # fmt: skip
mistake(good.rule, "q", "has B = 2 with cu_seqlens", cu_seqlens=torch.tensor([0, 6]))
mistake(good.rule, "q", "has B = 2 with meta", meta=build_chunk_meta(plan_batch([0, 6]), "cpu"))

# -- metadata -------------------------------------------------------------------------------------


def on_another_device(meta):
    meta.device = torch.device("meta")
    return meta


def foreign(serving):
    slots = {"state_indices": [3, 1, -1, 6]} if serving else {}
    request = MetaRequest(plan_batch(STARTS, total_tokens=TOKENS, **slots), torch.device("cpu"))
    return build(request, MetaSpec(chunk_size=64), backend="cuda")


for call in (good.rule_with_meta, good.attention):
    serving = call is good.attention
    mistake(call, "meta", "is a plan", plan_batch(STARTS, total_tokens=TOKENS))
    mistake(call, "meta", "is a dict", {"cu_seqlens": STARTS})
    mistake(call, "meta.device", "is another", meta=on_another_device)
    mistake(call, "meta.backend", "is another", meta=foreign(serving))
    fewer = {"state_indices": [0]} if serving else {}
    mistake(call, "meta.plan.total_tokens", "is another step's",
            meta=build_chunk_meta(plan_batch([0, 4], **fewer), "cpu"))  # fmt: skip
mistake(good.attention, "meta", "is None", None)
mistake(good.rule_with_meta, "meta.state_indices", "are there", meta=good.serving_meta())
mistake(good.attention, "meta.state_indices", "are missing",
        meta=build_chunk_meta(plan_batch(STARTS, total_tokens=TOKENS), "cpu"))  # fmt: skip
mistake(good.rule_with_meta, "meta.plan.query_start_loc", "differs from cu_seqlens",
        cu_seqlens=torch.tensor([0, 4, 5, 6, 8]))  # fmt: skip

# -- the layer ------------------------------------------------------------------------------------

for name in ("mixed_qkv", "a", "b", "conv_state", "ssm_state", "conv_weight", "conv_bias", "A_log",
             "dt_bias", "out"):  # fmt: skip
    mistake(good.attention, name, "is a list", [1.0])
    mistake(good.attention, name, "has a dimension too few", lambda x: x[0])
    mistake(good.attention, name, "is of ints", as_type(torch.int32))
    mistake(good.attention, name, "is sparse", sparse)
    if name not in ("mixed_qkv",):
        mistake(good.attention, name, "is on another device", elsewhere)
for name in ("mixed_qkv", "a", "b", "conv_state", "ssm_state", "conv_weight", "A_log", "dt_bias"):
    mistake(good.attention, name, "is None", None)
for name in ("a", "b", "conv_state", "out"):
    mistake(good.attention, name, "is of bf16 beside fp32", as_type(torch.bfloat16))
for name in ("a", "b", "out"):
    mistake(good.attention, name, "has a row too few", lambda x: x[:-1])
    mistake(good.attention, name, "has too few heads", lambda x: x[:, :H])
for name in ("conv_weight", "conv_bias", "A_log", "dt_bias"):
    mistake(good.attention, name, "is of fp16 beside fp32", as_type(torch.float16))
mistake(good.attention, "mixed_qkv", "has other channels", lambda x: x[:, :-1])
mistake(good.attention, "conv_state", "has D last", lambda x: x.transpose(1, 2))
mistake(good.attention, "conv_state", "is too short a line", lambda x: x[:, :, 1:])
mistake(good.attention, "conv_weight", "has no taps", lambda x: x[:, :0])
mistake(good.attention, "conv_weight", "has channels that make no head", lambda x: x[:-1])
mistake(good.attention, "conv_weight", "has no channels but v's", lambda x: x[: HV * V])
mistake(good.attention, "conv_weight", "makes 3 key heads for 4",
        lambda x: torch.zeros(6 * K + HV * V, W), naming="conv_weight")  # fmt: skip
mistake(good.attention, "conv_bias", "is too short", lambda x: x[1:])
mistake(good.attention, "A_log", "has H entries", lambda x: x[:H])
mistake(good.attention, "dt_bias", "has H entries", lambda x: x[:H])
mistake(good.attention, "conv_weight", "does not fit K", ssm_state=lambda x: x[:, :, :5])
mistake(good.attention, "ssm_state", "has no heads", lambda x: x[:, :0])
mistake(good.attention, "ssm_state", "is of bool", as_type(torch.bool))
mistake(good.attention, "out", "is strided", strided)
mistake(good.attention, "out", "overlaps itself", overlapping)
mistake(good.attention, "conv_state", "overlaps itself", overlapping)
mistake(good.attention, "ssm_state", "overlaps itself", overlapping)
mistake(good.attention, "mixed_qkv", "has too many rows", naming="a",
        mixed_qkv=lambda x: torch.cat([x, x]))  # fmt: skip
for value in ("relu", "SILU", "", 1, True, ["silu"], torch.nn.functional.silu):
    mistake(good.attention, "activation", f"is {value!r:.20}", value)
for value in (math.nan, -math.inf, "2", False, torch.tensor(2.0)):
    mistake(good.attention, "scale", f"is {value!r}", value)
for name in ("allow_neg_eigval", "state_v_first", "gqa_interleaved_layout"):
    mistake(good.attention, name, "is 0", 0)
    mistake(good.attention, name, "is a string", "False")
mistake(good.attention, "gqa_interleaved_layout", "is set without projections", True)
for name in ("mixed_qkv", "a", "b", "conv_weight", "conv_bias", "A_log", "dt_bias", "conv_state",
             "ssm_state", "out"):  # fmt: skip
    mistake(good.attention, name, "requires grad", lambda x: x.clone().requires_grad_())
for value in (7, "torch/", "no-such"):
    mistake(good.attention, "backend", f"is {value!r}", value)
mistake(good.attention, "nonesuch", "is not installed", backend="nonesuch")

for name, width in (("projected_states_qkvz", D + HV * V), ("projected_states_ba", 2 * HV)):
    mistake(good.attention_from_projections, name, "is None", None)
    mistake(good.attention_from_projections, name, "is a list", [0])
    mistake(good.attention_from_projections, name, "has three dimensions", shaped(1, TOKENS, width))
    mistake(good.attention_from_projections, name, "is too narrow", shaped(TOKENS, width - 1))
mistake(good.attention_from_projections, "projected_states_ba", "has fewer rows", lambda x: x[1:])
mistake(good.attention_from_projections, "projected_states_ba", "is of fp16",
        as_type(torch.float16))  # fmt: skip
mistake(good.attention_from_projections, "projected_states_ba", "is elsewhere", elsewhere)
mistake(good.attention_from_projections, "projected_states_qkvz", "is of ints",
        as_type(torch.int64))  # fmt: skip
for what, value in (("is None", None), ("is flat", lambda x: x.flatten(1)),
                    ("has fewer rows", lambda x: x[1:]), ("is of bf16", as_type(torch.bfloat16)),
                    ("is elsewhere", elsewhere), ("overlaps itself", overlapping)):  # fmt: skip
    mistake(good.attention_from_projections, "z", what, value)
for name, shape in (("mixed_qkv", (TOKENS, D)), ("a", (TOKENS, HV)), ("b", (TOKENS, HV))):
    mistake(good.attention_from_projections, name, "is given too", torch.zeros(shape))

# -- slots outside the pools ----------------------------------------------------------------------


def slots_on_device(**given):
    tensors = {name: torch.tensor(x) for name, x in given.items()}
    return build_chunk_meta(plan_batch(STARTS, total_tokens=TOKENS), "cpu", **tensors)


def drafts_on_device(**given):
    plan = plan_batch(STARTS, total_tokens=TOKENS, speculative=[False, False, False, True])
    step = {"state_indices": [[3, 1], [2, -1], [-1, -1], [6, 5]],
            "num_accepted_tokens": [1, 1, 1, 2]} | given  # fmt: skip
    return build_chunk_meta(plan, "cpu", **{name: torch.tensor(x) for name, x in step.items()})


mistake(good.attention, "state_indices", "in the plan are past the pools",
        meta=good.serving_meta(state_indices=[3, 1, -1, SLOTS]))  # fmt: skip
mistake(good.attention, "state_indices", "are past the shorter conv pool",
        conv_state=lambda x: x[:6])  # fmt: skip
mistake(good.attention, "state_indices", "are past the shorter state pool",
        ssm_state=lambda x: x[:6])  # fmt: skip
mistake(good.attention, "state_indices", "on the device are past the pools",
        meta=slots_on_device(state_indices=[SLOTS, 1, -1, 6]))  # fmt: skip
mistake(good.attention, "initial_state_indices", "on the device are past the pools",
        meta=slots_on_device(state_indices=[3, 1, -1, 6],
                             initial_state_indices=[3, 1, -1, SLOTS]))  # fmt: skip
mistake(good.attention, "slot", "in initial_state_indices is past the pools",
        meta=good.serving_meta(initial_state_indices=[SLOTS + 3, 1, -1, 6]))  # fmt: skip
mistake(good.attention, "slot", "of a checkpoint is past the pools",
        **{name: (lambda x: x.repeat(8, *[1] * (x.ndim - 1))) for name in ("mixed_qkv", "a", "b")},
        out=None, meta=build_chunk_meta(
            plan_batch([0, 8 * TOKENS], state_indices=[0], checkpoint_offsets=[[32]],
                       checkpoint_indices=[[SLOTS]]), "cpu"))  # fmt: skip
mistake(good.speculative_attention, "slot", "of a draft token is past the pools",
        meta=good.serving_meta(**good.SPECULATIVE | {
            "state_indices": [[3, 1], [2, -1], [-1, -1], [6, SLOTS]]}))  # fmt: skip
mistake(good.speculative_attention, "state_indices", "of a draft token on the device are past",
        meta=drafts_on_device(
            state_indices=[[3, 1], [2, -1], [-1, -1], [6, SLOTS]]))  # fmt: skip
for count in (0, 3, -1):
    mistake(good.speculative_attention, "num_accepted_tokens", f"on the device are {count}",
            meta=drafts_on_device(num_accepted_tokens=[1, 1, 1, count]))  # fmt: skip
mistake(good.speculative_attention, "conv_state", "is too narrow for drafts", lambda x: x[:, :, 1:])

# -- plans ----------------------------------------------------------------------------------------

for what, value in (
    ("is None", None), ("is a number", 4), ("is a string", "0 4"), ("is empty", []),
    ("starts at 1", [1, 5, 5, 6, 8]), ("decreases", [0, 5, 4, 6, 8]), ("is of floats", [0.0, 8.0]),
    ("has two dimensions", [STARTS]), ("holds a bool", [0, True, 5, 6, 8]),
    ("is ragged", [[0], [1, 2]]), ("is past int32", [0, 5, 5, 6, 2**31]),
    ("is on a device", torch.tensor(STARTS).to("meta")), ("is a float array", np.zeros(5)),
    ("is a set", {0, 5}), ("holds None", [0, None]), ("holds a string", [0, "5"]),
):  # fmt: skip
    mistake(good.plan, "query_start_loc", what, value)
for name in ("state_indices", "initial_state_indices"):
    for what, value in (
        ("has a row too few", [3, 1, 2]), ("has a row too many", [3, 1, -1, 6, 5]),
        ("is of floats", [3.0, 1.0, 2.0, 6.0]), ("is a number", 3),
        ("holds a bool", [True, 1, 2, 6]), ("is ragged", [[1, 2], [3], [4], [5]]),
        ("has three dimensions", [[[1]], [[2]], [[3]], [[4]]]),
        ("has no columns", np.zeros((4, 0), np.int32)), ("is past int32", [2**31, 1, 2, 3]),
        ("is on a device", torch.zeros(4, dtype=torch.int32, device="meta")),
    ):  # fmt: skip
        mistake(good.plan, name, what, value)
mistake(good.plan, "initial_state_indices", "is of another shape", [[3], [1], [-1], [6]])
mistake(good.plan, "state_indices", "names a slot twice", [3, 1, -1, 3],
        initial_state_indices=None)  # fmt: skip
mistake(good.plan, "initial_state_indices", "reads what another row writes", [6, 1, -1, 4])
for what, value in (("is of ints", [1, 1, 0, 1]), ("has a row too few", [True]),
                    ("has two dimensions", [[True]] * 4), ("is a bool", True),
                    ("is of floats", np.ones(4))):  # fmt: skip
    mistake(good.plan, "has_initial_state", what, value)
    mistake(good.speculative_plan, "speculative", what, value)
for name in ("total_tokens", "pad_slot"):
    for what, value in (("is a float", 9.0), ("is a bool", True), ("is a string", "9"),
                        ("is past int32", 2**40), ("is a list", [9])):  # fmt: skip
        mistake(good.plan, name, what, value)
mistake(good.plan, "total_tokens", "is fewer than there are", 7)
mistake(good.speculative_plan, "state_indices", "have one column only", [3, 2, -1, 6])
mistake(good.speculative_plan, "speculative", "row is longer than S",
        [True, False, False, False])  # fmt: skip
mistake(good.speculative_plan, "initial_state_indices", "have fewer columns",
        [[3], [2], [-1], [6]])  # fmt: skip
for what, value in (("are 0", [1, 1, 1, 0]), ("are more than S", [1, 1, 1, 3]),
                    ("are floats", [1.0] * 4), ("have a row too few", [1, 1, 1]),
                    ("have two dimensions", [[1]] * 4), ("are bools", [True] * 4)):  # fmt: skip
    mistake(good.speculative_plan, "num_accepted_tokens", what, value)
mistake(good.speculative_plan, "state_indices", "shares a draft token's slot",
        [[3, 1], [5, -1], [-1, -1], [6, 3]])  # fmt: skip
for name in ("checkpoint_offsets", "checkpoint_indices"):
    mistake(good.plan_with_checkpoints, name, "is missing", None)
    mistake(good.plan_with_checkpoints, name, "has a list too few", [[32, 64]])
    mistake(good.plan_with_checkpoints, name, "is a number", 32)
    mistake(good.plan_with_checkpoints, name, "is of floats", [[32.0, 64.0], []])
    mistake(good.plan_with_checkpoints, name, "is of numbers, not lists", [32, 64])
    mistake(good.plan_with_checkpoints, name, "is on a device",
            torch.zeros(2, 2, device="meta"))  # fmt: skip
for what, value in (("decrease", [[64, 32], []]), ("repeat", [[32, 32], []]),
                    ("include 0", [[0, 32], []]), ("are negative", [[-32, 32], []]),
                    ("go past the row", [[32, 96], []])):  # fmt: skip
    mistake(good.plan_with_checkpoints, "checkpoint_offsets", what, value)
mistake(good.plan_with_checkpoints, "checkpoint_indices", "are fewer", [[2], []])
mistake(good.plan_with_checkpoints, "state_indices", "is also a checkpoint's", [2, 1])
mistake(good.plan_with_checkpoints, "state_indices", "is repeated among checkpoints",
        checkpoint_indices=[[3, 3], []])  # fmt: skip
mistake(good.speculative_plan, "checkpoint_offsets", "are on a draft row",
        checkpoint_offsets=[[], [], [], [1]], checkpoint_indices=[[], [], [], [0]])  # fmt: skip

# -- building metadata ----------------------------------------------------------------------------

for what, value in (("is None", None), ("is a list", STARTS), ("is another", good.meta())):
    mistake(good.meta, "plan", what, value)
for what, value in (("is None", None), ("is unknown", "abacus"), ("is a float", 1.5),
                    ("is empty", "")):  # fmt: skip
    mistake(good.meta, "device", what, value)
for name in ("state_indices", "initial_state_indices"):
    mistake(good.meta, name, "is a list", [3, 1, -1, 6])
    mistake(good.meta, name, "has a row too few", lambda x: x[:3])
    mistake(good.meta, name, "has a row too many", lambda x: torch.cat([x, x]))
    mistake(good.meta, name, "is of floats", as_type(torch.float32))
    mistake(good.meta, name, "is of int16", as_type(torch.int16))
    mistake(good.meta, name, "is a scalar", torch.tensor(1))
    mistake(good.meta, name, "has three dimensions", lambda x: x.view(4, 1, 1))
    mistake(good.meta, name, "is on another device", elsewhere)
    mistake(good.meta, name, "is in the plan too",
            plan=plan_batch(STARTS, **{name: [3, 1, -1, 6]}))  # fmt: skip
mistake(good.meta, "initial_state_indices", "is of another shape", lambda x: x.view(4, 1))
for what, value in (("is of ints", as_type(torch.int32)), ("is a list", [True] * 4),
                    ("has two dimensions", lambda x: x.view(4, 1)), ("is elsewhere", elsewhere),
                    ("is too short", lambda x: x[:1])):  # fmt: skip
    mistake(good.meta, "has_initial_state", what, value)
mistake(good.meta, "state_indices", "is missing beside has_initial_state",
        state_indices=None, initial_state_indices=None)  # fmt: skip
for value in (0, -4, True, 2.0, "4"):
    mistake(good.meta, "num_v_heads", f"is {value!r}", value)
for value in (3, "/", "tor ch"):
    mistake(good.meta, "backend", f"is {value!r}", value)
mistake(good.meta, "nonesuch", "is not installed", backend="nonesuch")
mistake(good.meta, "meta", "has no backend", device="meta", state_indices=None,
        initial_state_indices=None, has_initial_state=None)  # fmt: skip
mistake(good.meta, "mtia", "has no backend", device="mtia", state_indices=None,
        initial_state_indices=None, has_initial_state=None)  # fmt: skip
for what, value in (("is missing", None), ("is a list", [1] * 4),
                    ("has a row too few", lambda x: x[:3]),
                    ("is of floats", as_type(torch.float32)),
                    ("has two dimensions", lambda x: x.view(4, 1))):  # fmt: skip
    mistake(good.speculative_meta, "num_accepted_tokens", what, value)
mistake(good.speculative_meta, "state_indices", "have one column", lambda x: x[:, 0])
mistake(good.speculative_meta, "speculative", "rows are longer than S",
        state_indices=lambda x: x[:, :1])  # fmt: skip
mistake(good.meta, "checkpoint_offsets", "are no multiples of the chunk", state_indices=None,
        initial_state_indices=None, has_initial_state=None,
        plan=plan_batch([0, 70], state_indices=[0], checkpoint_offsets=[[33]],
                        checkpoint_indices=[[1]]))  # fmt: skip

# -- choosing -------------------------------------------------------------------------------------

for value in ("", "tor ch", "torch/", "/torch", 3, ["torch"], b"torch"):
    mistake(good.use_backend, "backend", f"is {value!r}", name=value)
mistake(good.use_backend, "nonesuch", "is not installed", name="nonesuch")
for value in ("attention", "", None, 3, ["gdn_attention"]):
    mistake(good.explain, "op", f"is {value!r}", value)
for value in ("", "cu da", None, 3, "cuda:x"):
    mistake(good.explain, "device", f"is {value!r}", value)
for name in ("dtype", "state_dtype"):
    for value in ("bf17", 16, ["float32"]):
        mistake(good.explain, name, f"is {value!r}", value)
for name in ("head_dim_k", "head_dim_v", "num_heads", "num_v_heads", "conv_width"):
    mistake(good.explain, name, "is negative", -1)
    mistake(good.explain, name, "is a float", 4.0)
for value in (["teleport"], [3], "speculative", 5):
    mistake(good.explain, "features", f"is {value!r}", value)
for value in ("torch/", 4):
    mistake(good.explain, "backend", f"is {value!r}", value)

# -------------------------------------------------------------------------------------------------


def spoilt(one):
    arguments = one.call()
    for name, value in one.change.items():
        plain = not callable(value) or isinstance(value, torch.nn.Module) or name == "activation"
        arguments[name] = value if plain else value(arguments[name])
    return arguments


def tensors_of(arguments):
    return {
        name: x
        for name, x in arguments.items()
        if isinstance(x, torch.Tensor) and x.layout is torch.strided and x.device.type == "cpu"
    }


EVERY = [
    pytest.param(one, function, id=f"{function.__name__}-{one}")
    for one in MISTAKES
    for function in FUNCTIONS[one.call]
]


@pytest.mark.parametrize(("one", "function"), EVERY)
def test_mistake_is_refused(one, function):
    arguments = spoilt(one)
    before = {name: x.detach().clone() for name, x in tensors_of(arguments).items()}
    with pytest.raises(GDNDispatchError) as caught:
        function(**arguments)
    error = caught.value
    assert one.argument in str(error)
    assert len(str(error)) > len(one.argument) + 10
    if isinstance(error, (InvalidArgumentError, MetadataError)):
        assert error.got
        assert error.expected
        assert f"got {error.got}, expected {error.expected}" in str(error)
    got = arguments.get(one.argument)
    if isinstance(got, (int, float, str)):
        assert str(got) in str(error) or type(got).__name__ in str(error)
    for name, x in before.items():
        assert torch.equal(as_bytes(arguments[name].detach()), as_bytes(x)), f"{name} was written"


def test_there_are_at_least_two_hundred_distinct_mistakes():
    assert len({(one.call, one.argument, one.what) for one in MISTAKES}) == len(MISTAKES)
    assert len(MISTAKES) >= 200
    assert {one.call for one in MISTAKES} == set(FUNCTIONS)


@pytest.mark.parametrize("call", FUNCTIONS, ids=lambda call: call.__name__)
def test_the_calls_are_good_before_they_are_spoilt(call):
    for function in FUNCTIONS[call]:
        function(**call())


@pytest.mark.parametrize("call", FUNCTIONS, ids=lambda call: call.__name__)
def test_unknown_keyword(call):
    for function in FUNCTIONS[call]:
        with pytest.raises(TypeError, match="surprise"):
            function(**call(), surprise=1)


@pytest.mark.parametrize("value", [1, None, torch.tensor(True)], ids=str)
def test_donation_is_a_flag(value):
    with pytest.raises(InvalidArgumentError, match="donate_initial_state"):
        gdn_dispatch.fused_recurrent_gated_delta_rule(**good.rule(), donate_initial_state=value)


@pytest.mark.parametrize("name", ["gk", "gv"])
def test_decay_per_channel_is_refused(name):
    with pytest.raises(InvalidArgumentError, match=name):
        gdn_dispatch.fused_recurrent_gated_delta_rule(**good.rule(), **{name: torch.zeros(1)})
