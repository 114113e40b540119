"""A made-up serving engine: requests come, are served step by step, and leave.

Every step is one ``gdn_attention`` call over a random mix of prompt pieces, decodes, drafts,
checkpoints, resumptions, padding and empty rows. What the oracle says of each request alone is kept
beside it, and after every step output, states and the rest of the pools are compared with it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import torch

from gdn_dispatch import build_chunk_meta, gdn_attention, plan_batch
from tests.support.layer_inputs import Layer, LayerDims, Tokens, random_layer, random_tokens
from tests.support.numbers import generator
from tests.support.pools import PoolLayout, Pools

CHUNK = 32


ORDINARY = 0.02
"""Size below which an output of these inputs is the rest of a cancellation."""


@dataclass(frozen=True)
class Setting:
    """What stays the same over a trace.

    Attributes:
        dims: The layer's sizes.
        layout: The pools'; ``extra_columns`` of at least S-1 are needed for drafts.
        columns: S of ``state_indices [N, S]``; 0 for ``[N]`` and no drafts.
        slots: Size of the pools.
        pad_slot: As in ``plan_batch``; 0 reserves that slot.
        on_device: Give slots, flags and counts to ``build_chunk_meta``.
        projections: None, ``"flat"`` or ``"interleaved"``.
        bias: Whether the convolution has one.
        options: Of ``gdn_attention``.
        tolerance: Relative to the largest number there is.
    """

    dims: LayerDims = field(default_factory=lambda: LayerDims(H=1, HV=2, K=8, V=8, W=4))
    layout: PoolLayout = field(default_factory=PoolLayout)
    columns: int = 0
    slots: int = 24
    pad_slot: int = -1
    on_device: bool = False
    projections: str | None = None
    bias: bool = True
    options: dict[str, object] = field(default_factory=dict)
    tolerance: float = 5e-6

    @property
    def stride(self) -> int:
        """Slots a request owns."""
        return max(1, self.columns)


@dataclass
class Snapshot:
    """What the oracle knows of a request after some token: ``[D, W-1]`` and ``[HV, K, V]``."""

    history: torch.Tensor | None
    state: torch.Tensor | None


@dataclass
class Request:
    """A request being served.

    Attributes:
        slots: Its own; drafts use all of them, everything else the first.
        now: After its last accepted token.
        reads: Slots to start from where they are not its own: a checkpoint's.
        accepted: Draft tokens accepted of its last step: how far along its slots it reads.
        started: Whether its slots hold anything yet.
    """

    slots: list[int]
    now: Snapshot
    reads: list[int] | None = None
    accepted: int = 1
    started: bool = False


@dataclass
class Row:
    """One row of a step, and what is to come of it."""

    tokens: Tokens
    writes: list[int]
    reads: list[int]
    has_initial_state: bool = True
    speculative: bool = False
    accepted: int = 1
    checkpoints: dict[int, int] = field(default_factory=dict)
    request: Request | None = None
    after: list[Snapshot] = field(default_factory=list)
    output: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)


class Trace:
    """The engine. ``step`` runs one step and checks everything about it."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.random = random.Random(seed)
        self.rng = generator(seed)
        layer = random_layer(setting.dims, bias=setting.bias, dtype=setting.layout.dtype, seed=seed)
        self.layer: Layer = replace(layer, **setting.options)
        self.pools = Pools(setting.slots, setting.dims, setting.layout)
        self.free = [n for n in range(setting.slots) if n != setting.pad_slot]
        self.random.shuffle(self.free)
        self.requests: list[Request] = []
        self.kept: dict[int, Snapshot] = {}
        self.counts: dict[str, int] = {}

    def step(self) -> None:
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
        length = {
            "empty": 0,
            "decode": 1,
            "draft": self.random.randint(1, self.setting.stride),
            "prefill": self.random.choice([2, 3, 7, 8, 9, 20, 31, 32, 33, 50]),
            "checkpointed": self.random.choice([32, 40, 64, 70]),
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
        kinds = ["decode", "decode", "prefill", "checkpointed"]
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
        for offset in range(CHUNK, len(row) + 1, CHUNK):
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
        out = torch.full((len(step), dims.HV, dims.V), torch.nan, dtype=setting.layout.dtype)
        gates: tuple[torch.Tensor, ...] = ()
        inputs: dict[str, object] = dict(step.arguments)
        if setting.projections is not None:
            z = torch.randn(out.shape, generator=self.rng).to(out.dtype)
            inputs = step.projections(dims, z, interleaved=setting.projections == "interleaved")
            inputs["z"] = torch.full_like(z, torch.nan)
            gates = (inputs["z"], z)
        result = gdn_attention(
            **inputs, **self.layer.arguments, **self.pools.arguments, meta=self._meta(rows, extra),
            out=out,
        )  # fmt: skip
        assert result is out
        return out, gates

    def _meta(self, rows: list[Row], extra: int):
        setting = self.setting
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row))
        pick = (lambda x: x) if setting.columns else (lambda x: x[0])
        slots: dict[str, object] = {
            "state_indices": [pick(row.writes) for row in rows],
            "initial_state_indices": [pick(row.reads) for row in rows],
            "has_initial_state": [row.has_initial_state for row in rows],
        }
        plan: dict[str, object] = {}
        if any(row.speculative for row in rows):
            plan["speculative"] = [row.speculative for row in rows]
            slots["num_accepted_tokens"] = [row.accepted for row in rows]
        if any(row.checkpoints for row in rows):
            plan["checkpoint_offsets"] = [list(row.checkpoints) for row in rows]
            plan["checkpoint_indices"] = [list(row.checkpoints.values()) for row in rows]
        shape = (len(rows), setting.columns) if setting.columns else (len(rows),)
        device: dict[str, torch.Tensor] = {}
        if setting.on_device:
            kind = self.random.choice([torch.int32, torch.int64])
            device = {name: torch.tensor(x, dtype=kind) for name, x in slots.items()}
            device["has_initial_state"] = device["has_initial_state"].bool()
            for name in ("state_indices", "initial_state_indices"):
                device[name] = device[name].view(shape)
        else:
            plan |= slots
            if not rows and setting.columns:
                plan |= {name: torch.empty(shape, dtype=torch.int32) for name in slots
                         if name.endswith("state_indices")}  # fmt: skip
        plan = plan_batch(
            starts, **plan, pad_slot=setting.pad_slot, total_tokens=starts[-1] + extra
        )
        return build_chunk_meta(plan, "cpu", **device)

    # -- checks --------------------------------------------------------------------------------

    def _close(self, got: torch.Tensor, expected: torch.Tensor) -> bool:
        if not expected.numel():
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
                line = self.pools.conv[row.writes[0], :, t : t + columns]
                assert torch.equal(line, row.after[t].history), f"line of {self._describe(row)}"
            return
        places = {len(row): written[0]}
        for stop, after in zip(stops, row.after, strict=True):
            for slot in {row.checkpoints.get(stop), places.get(stop)} - {None}:
                where = f"slot {slot} after {stop} of {self._describe(row)}"
                assert self._close(self.pools.state(slot), after.state), where
                assert torch.equal(self.pools.line(slot, columns), after.history), where

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
