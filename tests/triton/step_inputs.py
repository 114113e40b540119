"""Where these tests run, groups of rows by hand, and a backend out of the kernels under test.

Under ``TRITON_INTERPRET=1`` everything runs on the CPU; without it, on an accelerator.
"""

import os

import pytest
import torch

pytest.importorskip("triton")

from gdn_dispatch.config import Config
from gdn_dispatch.hookspecs import hookimpl
from gdn_dispatch.layer import run_layer
from gdn_dispatch.meta import MetaSpec, build
from gdn_dispatch.plan.batch import plan_batch
from gdn_dispatch.plan.chunks import chunk_indices, chunk_offsets
from gdn_dispatch.plugins.registry import Registry
from gdn_dispatch.selection.dispatch import active_config, active_registry, install
from gdn_dispatch.torch_backend.capability import CAPABILITY
from gdn_dispatch.triton_kernels.rows import Chunks, Rows, Slots
from gdn_dispatch.types import Available, BackendInfo

if os.environ.get("TRITON_INTERPRET") == "1":
    DEVICE = torch.device("cpu")
elif torch.accelerator.is_available():
    DEVICE = torch.device(torch.accelerator.current_accelerator().type)
else:
    pytest.skip("needs TRITON_INTERPRET=1 or an accelerator", allow_module_level=True)

from gdn_dispatch.triton_kernels.conv import ConvConfig, conv_prefill, conv_update
from gdn_dispatch.triton_kernels.steps import StepConfig, recurrent_rule

CHUNK = 16
CONV = ConvConfig(block_channels=16, num_warps=1, block_tokens=8)
STEP = StepConfig(block_values=8, num_warps=1)


def int32(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def rows_of(lengths, *, sequences=None, starts=None, chunk=None, tail=0):
    """Rows of these lengths; ``tail``: as many rows and chunks more, padded as an update pads."""
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    starts = ends[:-1] if starts is None else starts
    n = len(lengths)
    if sequences is None and tail:
        sequences = list(range(n))
    chunks = None
    if chunk is not None:
        lens = torch.tensor(lengths, dtype=torch.int32).numpy()
        indices = chunk_indices(lens, chunk)
        nonempty = [i for i, length in enumerate(lengths) if length]
        chunks = Chunks(
            size=chunk,
            indices=int32([*indices.tolist(), *[[-1, -1]] * tail]).view(-1, 2),
            offsets=int32([*chunk_offsets(lens, chunk).tolist(), *[indices.shape[0]] * tail]),
            nonempty=int32([*nonempty, *[-1] * tail]),
            count=indices.shape[0] + tail,
        )
    return Rows(
        num_seqs=n + tail,
        sequences=None if sequences is None else int32([*sequences, *[-1] * tail]),
        starts=int32([*starts, *[ends[-1]] * tail]),
        cu_seqlens=int32([*ends, *[ends[-1]] * tail]),
        max_seqlen=max(lengths, default=0),
        chunks=chunks,
    )


def slots_of(write, read=None, *, has=None, accepted=None, pad_slot=-1, checkpoints=()):
    """Slots as tensors; ``checkpoints`` are (sequence, offset, slot)."""
    tensors = [None, None, None]
    if checkpoints:
        tensors = [int32(list(column)) for column in zip(*checkpoints, strict=True)]
    return Slots(
        write=write if isinstance(write, torch.Tensor) else int32(write),
        read=None if read is None else int32(read),
        has_initial_state=None if has is None else torch.tensor(has, device=DEVICE),
        num_accepted_tokens=None if accepted is None else int32(accepted),
        pad_slot=pad_slot,
        checkpoint_sequences=tensors[0],
        checkpoint_offsets=tensors[1],
        checkpoint_slots=tensors[2],
    )


class _Kernels:
    """``LayerKernels``, every row token by token."""

    def __init__(self, meta):
        self.slots = Slots.of(meta)

    def conv_prefill(self, x, conv, group, request):
        conv_prefill(
            x, conv, Rows.of(request.meta, group), self.slots, request.conv_state,
            request.conv_weight, request.conv_bias, request.activation, CONV,
        )  # fmt: skip

    def conv_update(self, x, conv, group, request):
        conv_update(
            x, conv, Rows.of(request.meta, group), self.slots, request.conv_state,
            request.conv_weight, request.conv_bias, request.activation, CONV,
            speculative=group is request.meta.speculative,
        )  # fmt: skip

    def heads_and_gates(self, conv, a, b, request):
        return conv, a, b

    def chunk_rule(self, heads, group, request):
        self.recurrent_rule(heads, group, request)

    def recurrent_rule(self, heads, group, request):
        recurrent_rule(
            *heads, request.A_log, request.dt_bias, Rows.of(request.meta, group), self.slots,
            request.ssm_state, request.out, STEP,
            num_heads=request.num_heads, scale=request.scale,
            state_v_first=request.state_v_first, allow_neg_eigval=request.allow_neg_eigval,
            speculative=group is request.meta.speculative,
        )  # fmt: skip


class StepsBackend:
    """A backend of the kernels under test alone; it keeps no state at checkpoints."""

    @hookimpl
    def backend_info(self):
        return BackendInfo("steps", (DEVICE.type,), CAPABILITY, chunk_size=CHUNK)

    @hookimpl
    def probe(self):
        return Available()

    @hookimpl
    def build_chunk_meta(self, request):
        return build(request, MetaSpec(chunk_size=CHUNK), backend="steps")

    @hookimpl
    def gdn_attention(self, request):
        return run_layer(request, _Kernels(request.meta))


@pytest.fixture
def steps_backend():
    """Public calls run on ``StepsBackend``."""
    registry, config = active_registry(), active_config()
    stand_in = Registry()
    stand_in.register(StepsBackend(), "steps")
    install(stand_in, Config())
    yield
    install(registry, config)


__all__ = ["CHUNK", "CONV", "DEVICE", "STEP", "int32", "plan_batch", "rows_of", "slots_of",
           "steps_backend"]  # fmt: skip
