"""The layer core on the torch kernels: groups of the step become jobs on views of the pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from gdn_dispatch.errors import InvalidArgumentError, MetadataError
from gdn_dispatch.layer import run_layer
from gdn_dispatch.torch_backend.kernels.conv import (
    ConvJob,
    ConvWeights,
    convolve,
    convolve_single_tokens,
)
from gdn_dispatch.torch_backend.kernels.gates import decay_from_gate, write_strength
from gdn_dispatch.torch_backend.kernels.jobs import Heads, SequenceJob
from gdn_dispatch.torch_backend.kernels.steps import StepJob, run_steps
from gdn_dispatch.torch_backend.meta import TorchChunkMeta
from gdn_dispatch.torch_backend.rule import run_jobs

if TYPE_CHECKING:
    from gdn_dispatch.meta import SequenceGroup
    from gdn_dispatch.types import GDNOutput, GDNRequest

__all__ = ["gdn_attention"]


def gdn_attention(request: GDNRequest) -> GDNOutput:
    """Run a validated request; refuses, before anything is written, slots outside the pools."""
    meta = request.meta
    if not isinstance(meta, TorchChunkMeta):
        raise MetadataError("meta", type(meta).__name__, "metadata built for backend 'torch'")
    return run_layer(request, _Kernels(request, meta))


class _Row(NamedTuple):
    """A live row of the step: its tokens, and the slots it reads (None: zeros) and writes."""

    number: int
    start: int
    length: int
    read: int | None
    write: int


@dataclass(frozen=True, slots=True)
class _SpeculativeRow:
    """A live speculative row: where its state and its conv line come from and go to."""

    start: int
    length: int
    read: int | None  # state slot
    writes: tuple[int | None, ...]  # state slot after each token
    line_read: int | None
    line_write: int
    history_start: int  # first column of the conv history in the line


class _Kernels:
    """``LayerKernels`` of one call; slots are resolved and checked once, in the constructor."""

    def __init__(self, request: GDNRequest, meta: TorchChunkMeta) -> None:
        self.weights = ConvWeights(request.conv_weight, request.conv_bias, request.activation)
        # Views for which slot, head and channel come first, whatever the engine's layout.
        state = request.ssm_state
        self.state = state.transpose(2, 3) if request.state_v_first else state
        self.conv_state = request.conv_state
        self.history_columns = self.weights.width - 1
        self.pad_slot = meta.plan.pad_slot
        self.slots = meta.host_slots()
        self.pool = min(state.shape[0], request.conv_state.shape[0])
        self.rows = {
            id(group): self._rows(group)
            for group in (meta.prefill, meta.decode)
            if group is not None
        }
        self.speculative = [] if meta.speculative is None else self._speculative(meta.speculative)
        self.checkpoints = self._checkpoints(meta)
        self.padded = self._padded(meta)

    # -- slots ---------------------------------------------------------------------------------

    def _slot(self, name: str, slot: int) -> int | None:
        """The slot, or None where it is padding."""
        if slot < 0 or slot == self.pad_slot:
            return None
        if slot >= self.pool:
            raise InvalidArgumentError(
                name, f"slot {slot}", f"slots below {self.pool}, the smaller pool's size"
            )
        return slot

    def _reads(self, row: int) -> bool:
        has = self.slots.has_initial_state
        return has is None or bool(has[row])

    def _rows(self, group: SequenceGroup) -> list[_Row]:
        host, (write, read, _, _) = group.host, self.slots
        if write.ndim == 2:
            write, read = write[:, 0], read[:, 0] if read.ndim == 2 else read
        rows = []
        for n, start, length in zip(
            host.sequences.tolist(), host.starts.tolist(), host.lens.tolist(), strict=True
        ):
            target = self._slot("state_indices", int(write[n]))
            if target is None or not length:
                continue
            source = None
            if self._reads(n):
                source = self._slot("initial_state_indices", int(read[n]))
            rows.append(_Row(n, start, length, source, target))
        return rows

    def _speculative(self, group: SequenceGroup) -> list[_SpeculativeRow]:
        host, (write, read, _, accepted) = group.host, self.slots
        columns = write.shape[1]
        rows = []
        for n, start, length in zip(
            host.sequences.tolist(), host.starts.tolist(), host.lens.tolist(), strict=True
        ):
            line = self._slot("state_indices", int(write[n, 0]))
            if line is None or not length:
                continue
            taken = int(accepted[n]) if accepted is not None else 0
            if not 1 <= taken <= columns:
                raise InvalidArgumentError(
                    "num_accepted_tokens", f"{taken} in row {n}", f"1 to {columns}"
                )
            reads = self._reads(n)
            rows.append(
                _SpeculativeRow(
                    start,
                    length,
                    self._slot("initial_state_indices", int(read[n, taken - 1])) if reads else None,
                    tuple(self._slot("state_indices", int(s)) for s in write[n, :length]),
                    self._slot("initial_state_indices", int(read[n, 0])) if reads else None,
                    line,
                    taken - 1,
                )
            )
        return rows

    def _checkpoints(self, meta: TorchChunkMeta) -> dict[int, list[tuple[int, int]]]:
        """(offset, slot) by row."""
        found: dict[int, list[tuple[int, int]]] = {}
        wanted = meta.plan.checkpoints
        if wanted is not None:
            for row, offset, slot in zip(
                wanted.sequences.tolist(),
                wanted.offsets.tolist(),
                wanted.slots.tolist(),
                strict=True,
            ):
                target = self._slot("checkpoint_indices", slot)
                if target is not None:
                    found.setdefault(row, []).append((offset, target))
        return found

    def _padded(self, meta: TorchChunkMeta) -> list[tuple[int, int]]:
        """Token spans of rows that are padding."""
        write = self.slots.write if self.slots.write.ndim == 1 else self.slots.write[:, 0]
        write = write[: meta.plan.num_seqs]  # the engine's buffer may be longer than this step
        starts = meta.plan.query_start_loc
        padding = (write < 0) | (write == self.pad_slot)
        return [
            (int(starts[n]), int(starts[n + 1]))
            for n in padding.nonzero()[0].tolist()
            if starts[n + 1] > starts[n]
        ]

    # -- the five kernels ----------------------------------------------------------------------

    def conv_prefill(
        self, x: torch.Tensor, conv: torch.Tensor, group: SequenceGroup, request: GDNRequest
    ) -> None:
        """See ``LayerKernels``."""
        columns = self.history_columns
        history = self.conv_state[:, :, :columns]
        jobs = [
            ConvJob(
                row.start,
                row.length,
                None if row.read is None else history[row.read],
                history[row.write],
                tuple((o, history[s]) for o, s in self.checkpoints.get(row.number, ())),
            )
            for row in self.rows[id(group)]
        ]
        convolve(x, conv, jobs, self.weights)

    def conv_update(
        self, x: torch.Tensor, conv: torch.Tensor, group: SequenceGroup, request: GDNRequest
    ) -> None:
        """See ``LayerKernels``."""
        if group is request.meta.speculative:
            self._conv_speculative(x, conv)
            return
        rows = self.rows[id(group)]
        if not rows:
            return
        pool = self.conv_state[:, :, : self.history_columns]
        index = torch.tensor(
            [[row.start, row.read or 0, row.write] for row in rows], device=x.device
        ).t()
        tokens, reads, writes = index.unbind(0)
        from_zero = [i for i, row in enumerate(rows) if row.read is None]
        convolve_single_tokens(x, conv, tokens, pool, reads, writes, from_zero, self.weights)

    def _conv_speculative(self, x: torch.Tensor, conv: torch.Tensor) -> None:
        columns = self.history_columns
        jobs = []
        for row in self.speculative:
            read = None
            if row.line_read is not None:
                end = row.history_start + columns
                read = self.conv_state[row.line_read, :, row.history_start : end]
            kept = columns - 1 + row.length
            write = self.conv_state[row.line_write, :, : max(kept, 0)]
            jobs.append(ConvJob(row.start, row.length, read, write))
        convolve(x, conv, jobs, self.weights)

    def heads_and_gates(
        self, conv: torch.Tensor, a: torch.Tensor, b: torch.Tensor, request: GDNRequest
    ) -> Heads:
        """See ``LayerKernels``. q and k stay as they are: the rules normalise what they load."""
        H, K, V = request.num_heads, request.head_dim_k, request.head_dim_v
        q, k, v = conv.split((H * K, H * K, request.num_v_heads * V), dim=1)
        g = decay_from_gate(a, request.A_log, request.dt_bias)
        beta = write_strength(b, is_logit=True, allow_neg_eigval=request.allow_neg_eigval)
        return Heads(
            q.unflatten(1, (H, K)).unsqueeze(0),
            k.unflatten(1, (H, K)).unsqueeze(0),
            v.unflatten(1, (-1, V)).unsqueeze(0),
            g.unsqueeze(0),
            beta.unsqueeze(0),
            request.scale,
            l2norm=True,
        )

    def chunk_rule(self, heads: Heads, group: SequenceGroup, request: GDNRequest) -> None:
        """See ``LayerKernels``."""
        self._zero_padded(request)
        run_jobs(heads, self._jobs(group), request.out.unsqueeze(0), recurrent=False)

    def recurrent_rule(self, heads: Heads, group: SequenceGroup, request: GDNRequest) -> None:
        """See ``LayerKernels``."""
        self._zero_padded(request)
        out = request.out.unsqueeze(0)
        if group is not request.meta.speculative:
            run_jobs(heads, self._jobs(group), out, recurrent=True)
        elif self.speculative:
            run_steps(heads, [self._speculative_job(row) for row in self.speculative], out)

    def _jobs(self, group: SequenceGroup) -> list[SequenceJob]:
        return [
            SequenceJob(
                0,
                row.start,
                row.length,
                None if row.read is None else self.state[row.read],
                self.state[row.write],
                tuple((o, self.state[s]) for o, s in self.checkpoints.get(row.number, ())),
            )
            for row in self.rows[id(group)]
        ]

    def _speculative_job(self, row: _SpeculativeRow) -> StepJob:
        read = None if row.read is None else self.state[row.read]
        writes = tuple(None if s is None else self.state[s] for s in row.writes)
        return StepJob(SequenceJob(0, row.start, row.length, read, None), writes)

    def _zero_padded(self, request: GDNRequest) -> None:
        for start, end in self.padded:
            request.out[start:end].zero_()
        self.padded = []
