"""A made-up serving engine: requests come, are served step by step, and leave.

Every step is one ``gdn_attention`` call over a random mix of prompt pieces, decodes, drafts,
checkpoints, resumptions, padding and empty rows. What the oracle says of each request alone is kept
beside it, and after every step output, states and the rest of the pools are compared with it.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from gdn_dispatch import ChunkMeta, build_chunk_meta, gdn_attention, plan_batch
from gdn_dispatch.testing.layer_inputs import (
    Tokens,
    on_device,
    random_layer,
    random_tokens,
)
from gdn_dispatch.testing.numbers import generator
from gdn_dispatch.testing.pools import Pools
from gdn_dispatch.testing.trace_parts import Request, Row, Setting, Snapshot

__all__ = ["Setting", "Trace"]

ORDINARY = 0.02
"""Size below which an output of these inputs is the rest of a cancellation."""


class Trace:
    """The engine. ``step`` runs one step and checks everything about it."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.random = random.Random(seed)
        self.rng = generator(seed)
        layer = random_layer(setting.dims, bias=setting.bias, dtype=setting.layout.dtype, seed=seed)
        self.layer = layer.with_options(**setting.options)
        self.pools = Pools(setting.slots, setting.dims, setting.layout, setting.device)
        self.free = [n for n in range(setting.slots) if n != setting.pad_slot]
        self.random.shuffle(self.free)
        self.requests: list[Request] = []
        self.kept: dict[int, Snapshot] = {}
        self.counts: dict[str, int] = {}

    def step(self) -> None:
        """Serve one step, and compare everything about it."""
        self._arrive_and_leave()
        rows = self._rows()
        for row in rows:
            self._expect(row)
        extra = self.random.choice([0, 0, 1, 5])
        before = self.pools.snapshot()
        output, gate = self._call(rows, extra)
        self._check_output(rows, output, gate)
        self._check_pools(rows, before)
        for row in rows:
            self._settle(row)

    # -- requests ------------------------------------------------------------------------------

    def _take(self, count: int) -> list[int]:
        return [self.free.pop() for _ in range(count)]

    def _give_back(self, slots: list[int]) -> None:
        for slot in slots:
            self.pools.poison(slot)
            self.free.insert(self.random.randrange(len(self.free) + 1), slot)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _arrive_and_leave(self) -> None:
        stride = self.setting.stride
        for request in list(self.requests):
            if self.random.random() < 0.04:
                self.requests.remove(request)
                self._give_back(request.slots)
                self._count("left")
        awaited = {slot for request in self.requests for slot in request.reads or ()}
        for slot in sorted(set(self.kept) - awaited):
            if self.random.random() < 0.05:
                del self.kept[slot]
                self._give_back([slot])
        while len(self.free) > stride + 3 and self.random.random() < 0.5:
            request = Request(self._take(stride), Snapshot(None, None))
            if self.kept and self.random.random() < 0.5:
                slot = self.random.choice(list(self.kept))
                request.now = self.kept[slot]
                request.reads = [slot] * stride
                self._count("resumed")
            self.requests.append(request)

    # -- rows ----------------------------------------------------------------------------------

    def _rows(self) -> list[Row]:
        if self.random.random() < 0.02:
            return []
        served = [r for r in self.requests if self.random.random() < 0.8]
        rows = [self._row_of(request) for request in served]
        rows += [self._padding() for _ in range(self.random.choice([0, 0, 1, 2]))]
        self.random.shuffle(rows)
        return rows

    def _row_of(self, request: Request) -> Row:
        kind = self._kind_of(request)
        self._count(kind)
        C = self.setting.chunk
        length = {
            "empty": 0,
            "decode": 1,
            "draft": self.random.randint(1, self.setting.stride),
            "prefill": self.random.choice([2, 3, 7, 8, 9, 20, C - 1, C, C + 1, C + 18]),
            "checkpointed": self.random.choice([C, C + 8, 2 * C, 2 * C + 6]),
        }[kind]
        row = Row(
            tokens=self._tokens(length),
            writes=list(request.slots),
            reads=list(request.reads or request.slots),
            has_initial_state=request.now.state is not None,
            speculative=kind == "draft",
            accepted=request.accepted,
            request=request,
        )
        if kind == "draft" and request.reads is None and self.random.random() < 0.2:
            self._move(row)
        if kind == "draft" and length < len(row.writes):
            # An engine need not name slots it has no draft token for, and may have freed them.
            keep = max(length, request.accepted)
            if row.writes == row.reads:
                row.writes[keep:] = row.reads[keep:] = [self._any_padding()] * (
                    len(row.writes) - keep
                )
        if kind == "checkpointed":
            self._add_checkpoints(row)
        return row

    def _kind_of(self, request: Request) -> str:
        if self.random.random() < 0.05:
            return "empty"
        if request.accepted > 1:
            return "draft"  # only a draft can read its conv line from the middle
        kinds = ["decode", "decode", "prefill"]
        kinds += ["checkpointed"] if self.setting.checkpoints else ["prefill"]
        if self.setting.columns:
            kinds += ["draft", "draft", "draft"]
        return self.random.choice(kinds)

    def _move(self, row: Row) -> None:
        """Continue in other slots: they are taken now, the old ones go back after the step."""
        if len(self.free) < len(row.writes) + 2 or not row.has_initial_state:
            return
        row.writes = self._take(len(row.writes))
        self._count("moved")

    def _add_checkpoints(self, row: Row) -> None:
        for offset in range(self.setting.chunk, len(row) + 1, self.setting.chunk):
            if len(self.free) > 1 and self.random.random() < 0.7:
                row.checkpoints[offset] = self.free.pop()
                self._count("checkpoint")

    def _padding(self) -> Row:
        """A row whose tokens, reads and other columns are all nonsense."""
        self._count("padding")
        tokens = self._tokens(self.random.choice([0, 1, 1, 2, 9]))
        tokens = Tokens(*(torch.full_like(x, torch.nan) for x in tokens.arguments.values()))
        stride = self.setting.stride
        anything = [self.random.choice([self._any_padding(), 1, 2]) for _ in range(stride)]
        return Row(
            tokens=tokens,
            writes=[self._any_padding(), *anything[1:]],
            reads=anything,
            has_initial_state=self.random.random() < 0.5,
            speculative=bool(self.setting.columns)
            and len(tokens) <= stride
            and self.random.random() < 0.5,
        )

    def _any_padding(self) -> int:
        choices = [-1, -7]
        if self.setting.pad_slot >= 0:
            choices.append(self.setting.pad_slot)
        return self.random.choice(choices)

    def _tokens(self, length: int) -> Tokens:
        dtype = self.setting.layout.dtype
        return random_tokens(length, self.setting.dims, dtype=dtype, rng=self.rng)

    # -- oracle --------------------------------------------------------------------------------

    def _expect(self, row: Row) -> None:
        """Run the oracle over the row's own tokens; stop where a state is kept."""
        if row.request is None:
            return
        now = row.request.now
        stops = sorted({*row.checkpoints, len(row)})
        if row.speculative:
            stops = list(range(1, len(row) + 1))
        outputs, start = [], 0
        for stop in stops:
            if stop == start:
                break
            output, history, state = self.layer.reference(
                row.tokens.rows(start, stop), now.history, now.state
            )
            now = Snapshot(history, self._stored(state) if row.speculative else state)
            row.after.append(Snapshot(history, self._stored(state)))
            outputs.append(output)
            start = stop
        if outputs:
            row.output = torch.cat(outputs)

    def _stored(self, state: torch.Tensor) -> torch.Tensor:
        """What a pool of a lower precision keeps of a state."""
        dtype = self.setting.layout.state_dtype
        return state if dtype is torch.float32 else state.to(dtype).double()

    # -- the call ------------------------------------------------------------------------------

    def _call(self, rows: list[Row], extra: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        setting, dims = self.setting, self.setting.dims
        rubbish = self._tokens(extra)
        parts = [row.tokens for row in rows] + [
            Tokens(*(torch.full_like(x, torch.nan) for x in rubbish.arguments.values()))
        ]
        step = Tokens(
            torch.cat([t.mixed_qkv for t in parts]),
            torch.cat([t.a for t in parts]),
            torch.cat([t.b for t in parts]),
        )
        device = setting.device
        shape = (len(step), dims.HV, dims.V)
        out = torch.full(shape, torch.nan, dtype=setting.layout.dtype, device=device)
        gates: tuple[torch.Tensor, ...] = ()
        inputs: dict[str, Any] = dict(step.arguments)
        if setting.projections is not None:
            z = torch.randn(out.shape, generator=self.rng).to(out.dtype)
            inputs = step.projections(dims, z, interleaved=setting.projections == "interleaved")
            inputs["z"] = torch.full_like(z, torch.nan)
        inputs = on_device(inputs, device)
        result = gdn_attention(
            **inputs, **on_device(self.layer.arguments, device), **self.pools.arguments,
            meta=self._meta(rows, extra), out=out,
        )  # fmt: skip
        assert result is out
        if setting.projections is not None:
            gates = (inputs["z"].cpu(), z)
        return out.cpu(), gates

    def _meta(self, rows: list[Row], extra: int) -> ChunkMeta:
        setting = self.setting
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row))

        def pick(slots: list[int]) -> list[int] | int:
            return slots if setting.columns else slots[0]

        slots: dict[str, Any] = {
            "state_indices": [pick(row.writes) for row in rows],
            "initial_state_indices": [pick(row.reads) for row in rows],
            "has_initial_state": [row.has_initial_state for row in rows],
        }
        plan: dict[str, Any] = {}
        if any(row.speculative for row in rows):
            plan["speculative"] = [row.speculative for row in rows]
            slots["num_accepted_tokens"] = [row.accepted for row in rows]
        if any(row.checkpoints for row in rows):
            plan["checkpoint_offsets"] = [list(row.checkpoints) for row in rows]
            plan["checkpoint_indices"] = [list(row.checkpoints.values()) for row in rows]
        shape = (len(rows), setting.columns) if setting.columns else (len(rows),)
        device: dict[str, Any] = {}
        if setting.on_device:
            kind = self.random.choice([torch.int32, torch.int64])
            device = {
                name: torch.tensor(x, dtype=kind, device=setting.device)
                for name, x in slots.items()
            }
            device["has_initial_state"] = device["has_initial_state"].bool()
            for name in ("state_indices", "initial_state_indices"):
                device[name] = device[name].view(shape)
        else:
            plan |= slots
            if not rows and setting.columns:
                plan |= {name: torch.empty(shape, dtype=torch.int32) for name in slots
                         if name.endswith("state_indices")}  # fmt: skip
        step = plan_batch(
            starts, **plan, pad_slot=setting.pad_slot, total_tokens=starts[-1] + extra
        )
        return build_chunk_meta(step, setting.device, **device)

    # -- checks --------------------------------------------------------------------------------

    def _close(self, got: torch.Tensor, expected: torch.Tensor | None) -> bool:
        if expected is None or not expected.numel():
            return True
        largest = (got.double() - expected.double()).abs().max()
        # Where q and k happen to be orthogonal the output is what is left of terms that cancel: as
        # far off as they are, not as itself.
        size = max(float(expected.abs().max()), ORDINARY)
        return bool(largest <= self.setting.tolerance * size)

    def _check_output(
        self, rows: list[Row], output: torch.Tensor, gate: tuple[torch.Tensor, ...]
    ) -> None:
        start = 0
        for row in rows:
            got = output[start : start + len(row)]
            start += len(row)
            if row.output is not None:
                assert self._close(got, row.output), f"output of {self._describe(row)}"
            else:
                assert not got.any(), f"output of {self._describe(row)}"
        assert not output[start:].any(), "rows past the last sequence"
        if gate:
            assert torch.equal(*gate), "z"

    def _check_pools(self, rows: list[Row], before: torch.Tensor) -> None:
        states: set[int] = set()
        lines: dict[int, int] = {}
        columns = self.setting.dims.W - 1
        for row in rows:
            if row.request is None or not len(row):
                continue
            if row.speculative:
                written = row.writes[: len(row)]
                lines[row.writes[0]] = max(columns - 1 + len(row), 0)
            else:
                written = [row.writes[0]]
                lines[row.writes[0]] = columns
            states |= set(written)
            for slot in row.checkpoints.values():
                states.add(slot)
                lines[slot] = columns
            self._check_states(row, written)
        assert self.pools.changed_only(before, states, lines), "something else changed"

    def _check_states(self, row: Row, written: list[int]) -> None:
        columns = self.setting.dims.W - 1
        stops = sorted({*row.checkpoints, len(row)})
        if row.speculative:
            for t, slot in enumerate(written):
                assert self._close(self.pools.state(slot), row.after[t].state), self._describe(row)
                line = self.pools.conv[row.writes[0], :, t : t + columns].cpu()
                assert _same(line, row.after[t].history), f"line of {self._describe(row)}"
            return
        places = {len(row): written[0]}
        for stop, after in zip(stops, row.after, strict=True):
            kept = {table[stop] for table in (row.checkpoints, places) if stop in table}
            for slot in sorted(kept):
                where = f"slot {slot} after {stop} of {self._describe(row)}"
                assert self._close(self.pools.state(slot), after.state), where
                assert _same(self.pools.line(slot, columns), after.history), where

    def _describe(self, row: Row) -> str:
        kind = "draft" if row.speculative else "row"
        return (
            f"{kind} of {len(row)} tokens, reads {row.reads}, writes {row.writes}, "
            f"has_initial_state {row.has_initial_state}, accepted {row.accepted}"
        )

    # -- afterwards ----------------------------------------------------------------------------

    def _settle(self, row: Row) -> None:
        request = row.request
        if request is None or not len(row):
            return
        for stop, after in zip(sorted({*row.checkpoints, len(row)}), row.after, strict=False):
            if stop in row.checkpoints:
                self.kept[row.checkpoints[stop]] = after
        moved = row.speculative and row.writes[0] != request.slots[0]
        if moved:
            self._give_back(request.slots)
            request.slots = row.writes
        request.reads = None
        request.accepted = self.random.randint(1, len(row)) if row.speculative else 1
        request.now = row.after[request.accepted - 1 if row.speculative else -1]


def _same(line: torch.Tensor, history: torch.Tensor | None) -> bool:
    return history is not None and torch.equal(line, history)
