"""One packed step for the prefill kernels, and the fp64 recurrence to hold them against."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace

import torch

from gdn_dispatch.testing.numbers import relative_error
from gdn_dispatch.testing.rule_inputs import Dims, RuleInputs, inputs_with, mamba_gates
from gdn_dispatch.torch_backend.reference import reference_gated_delta_rule
from gdn_dispatch.triton_kernels.prefill import PrefillConfig, chunk_rule
from gdn_dispatch.triton_kernels.rows import Chunks, Rows, Slots
from gdn_dispatch.triton_kernels.rule_tensors import CHUNK, PrefillInputs, States
from tests.triton.step_inputs import DEVICE

PRECISE = PrefillConfig(block_v=32, precision="ieee", inverse_precision="ieee", num_stages=1)


def int32(values, device="cpu"):
    return torch.tensor(values, dtype=torch.int32, device=device)


def rows_of(lengths, *, device="cpu", gaps=None, sequences=None, spare_chunks=0):
    """Rows of these lengths, ``gaps[i]`` tokens apart."""
    starts, cu, indices, nonempty, offsets = [], [0], [], [], [0]
    position = 0
    for i, length in enumerate(lengths):
        position += 0 if gaps is None else gaps[i]
        starts.append(position)
        position += length
        cu.append(cu[-1] + length)
        n = -(-length // CHUNK)
        offsets.append(offsets[-1] + n)
        if length:
            indices += [[len(nonempty), c] for c in range(n)]
            nonempty.append(i)
    indices += [[-1, -1]] * spare_chunks
    table = int32(indices, device).reshape(-1, 2)
    return Rows(
        num_seqs=len(lengths),
        sequences=None if sequences is None else int32(sequences, device),
        starts=int32(starts, device),
        cu_seqlens=int32(cu, device),
        max_seqlen=max(lengths),
        chunks=Chunks(
            size=CHUNK,
            indices=table,
            offsets=int32(offsets, device),
            nonempty=int32(nonempty or [0], device),
            count=table.shape[0],
        ),
    )


def slots_of(write, *, device="cpu", pad_slot=-1, **others):
    """Slots from lists; ``checkpoints`` as (row, offset, slot)."""
    checkpoints = others.pop("checkpoints", None)
    tensors = {
        "read": None if others.get("read") is None else int32(others["read"], device),
        "has_initial_state": None
        if others.get("has_initial_state") is None
        else torch.tensor(others["has_initial_state"], device=device),
    }
    if checkpoints is not None:
        columns = list(zip(*checkpoints, strict=True))
        names = ("checkpoint_sequences", "checkpoint_offsets", "checkpoint_slots")
        tensors |= {name: int32(c, device) for name, c in zip(names, columns, strict=True)}
    return Slots(write=int32(write, device), num_accepted_tokens=None, pad_slot=pad_slot, **tensors)


def on_device(x, copies):
    """``x`` with its tensors on the device, strides kept; ``copies`` by id: one tensor is one."""
    if isinstance(x, torch.Tensor):
        if id(x) not in copies:
            there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)
            copies[id(x)] = there.copy_(x)
        return copies[id(x)]
    if not is_dataclass(x):
        return x
    return replace(x, **{f.name: on_device(getattr(x, f.name), copies) for f in fields(x)})


@dataclass
class Step:
    """Inputs over all tokens, rows that own some of them, and states by row."""

    lengths: tuple[int, ...]
    dims: Dims
    inputs: RuleInputs
    rows: Rows
    config: PrefillConfig = PRECISE
    l2norm: bool = False
    scale: float | None = None
    extra: dict = field(default_factory=dict)

    @property
    def starts(self):
        return self.rows.starts.tolist()

    def run(self, states: States) -> torch.Tensor:
        x = self.inputs
        inputs = PrefillInputs(
            q=x.q,
            k=x.k,
            v=x.v,
            g=x.g,
            beta=x.beta,
            scale=self.dims.K**-0.5 if self.scale is None else self.scale,
            l2norm=self.l2norm,
            **self.extra,
        )
        out = torch.full_like(x.v, float("nan"))
        copies = {}
        if DEVICE.type == "cpu":
            chunk_rule(inputs, self.rows, states, out, self.config)
        else:
            there = (on_device(arg, copies) for arg in (inputs, self.rows, states, out))
            chunk_rule(*there, self.config)
        for tensor in (states.initial, states.final, out):
            if id(tensor) in copies:
                tensor.copy_(copies[id(tensor)])
        return out

    def oracle(self, row: int, state=None, *, tokens: int | None = None):
        """(output, final state [HV, K, V]) of one row, or of its first tokens."""
        start = self.starts[row]
        length = self.lengths[row] if tokens is None else tokens
        return reference_gated_delta_rule(
            *self.inputs.rows(start, start + length),
            initial_state=state,
            scale=self.scale,
            use_qk_l2norm=self.l2norm,
        )


def step_of(
    lengths,
    dims,
    *,
    gates=mamba_gates,
    dtype=torch.float32,
    device="cpu",
    seed=0,
    correlated=False,
    poison=True,
    gaps=None,
    sequences=None,
    spare_chunks=0,
    **options,
):
    """A step whose tokens outside of all rows are NaN."""
    rows = rows_of(
        lengths, device=device, gaps=gaps, sequences=sequences, spare_chunks=spare_chunks
    )
    total = sum(lengths) + sum(gaps or ())
    inputs = inputs_with(gates, total + 3, dims, seed=seed, correlated=correlated)
    inputs = inputs.to(dtype).map(lambda x: x.to(device))
    if poison:
        alive = torch.zeros(total + 3, dtype=torch.bool)
        for start, length in zip(rows.starts.tolist(), lengths, strict=True):
            alive[start : start + length] = True
        inputs = inputs.map(
            lambda x: x.index_fill(0, (~alive).nonzero()[:, 0].to(device), torch.nan)
        )
    return Step(tuple(lengths), dims, inputs, rows, **options)


def check(got, exact, tolerance):
    error = relative_error(got.cpu(), exact.cpu())
    assert error <= tolerance, error
    return error
