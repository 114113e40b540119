"""Arguments that Ascend's operators take as Python ints: read from the plan, never from a device.

What vllm-ascend's operators took until mid-2026, and its AscendC chunk rule still takes. Whatever a
device alone knows is missing here, and asking for it is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from gdn_dispatch.errors import InvalidArgumentError, MetadataError

if TYPE_CHECKING:
    from gdn_dispatch.meta import ChunkMeta
    from gdn_dispatch.plan.arrays import BoolArray, Int32Array
    from gdn_dispatch.plan.groups import HostGroup

__all__ = ["ConvHostArguments", "RuleHostArguments", "host_group"]

Ints = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RuleHostArguments:
    """Of the chunk rule, over the n sequences of the prefill group, m of which have tokens.

    Attributes:
        cu_seqlens: ``n+1`` ints.
        chunk_indices_chunk64: Rows [q, i] of ``IDX(64)``, flattened.
        cu_seqlens_kern: ``m+1`` ints, ``cu_seqlens`` without empty sequences; None where m = n.
        keep: n bools, which sequences have tokens; None where all do.
        actual_seq_lengths: m ints, the tokens of the sequences kept.
    """

    cu_seqlens: Ints
    chunk_indices_chunk64: Ints
    cu_seqlens_kern: Ints | None
    keep: tuple[bool, ...] | None
    actual_seq_lengths: Ints

    @classmethod
    def of(cls, meta: ChunkMeta) -> RuleHostArguments:
        """Those of ``meta``.

        Raises:
            MetadataError: The step has no prefill rows.
        """
        group = host_group(meta, "prefill")
        kept = group.lens > 0
        kern = keep = None
        if not kept.all():
            kern = (0, *_ints(group.cu_seqlens[1:][kept]))
            keep = tuple(kept.tolist())
        return cls(
            cu_seqlens=_ints(group.cu_seqlens),
            chunk_indices_chunk64=meta.chunk_indices_host,
            cu_seqlens_kern=kern,
            keep=keep,
            actual_seq_lengths=_ints(group.lens[kept]),
        )


@dataclass(frozen=True, slots=True)
class ConvHostArguments:
    """Of a causal convolution over the n rows of one kind.

    Attributes:
        query_start_loc: ``n+1`` ints, packed within the rows.
        cache_indices: n slots, column 0 of ``[N, S]``: where the convolution's line is.
        initial_state_mode: n ints, 1 where the row goes on from its slot; None for rows that all
            do: decode and speculative ones.
        num_accepted_tokens: n ints of speculative rows; None for others.
    """

    query_start_loc: Ints
    cache_indices: Ints
    initial_state_mode: Ints | None = None
    num_accepted_tokens: Ints | None = None

    @classmethod
    def of(cls, meta: ChunkMeta, kind: str) -> ConvHostArguments:
        """Those of the rows of one kind.

        Raises:
            MetadataError: There are no such rows, or a field is known to the device alone.
        """
        group = host_group(meta, kind)
        plan = meta.plan
        slots = _known("state_indices", plan.state_indices)
        own = slots if slots.ndim == 1 else slots[:, 0]
        mode = accepted = None
        if kind == "prefill":
            mode = _initial_state_mode(meta, group)
        elif kind == "speculative":
            counts = _known("num_accepted_tokens", plan.num_accepted_tokens)
            accepted = _ints(counts[group.sequences])
        return cls(_ints(group.cu_seqlens), _ints(own[group.sequences]), mode, accepted)

    def padded(
        self, num_tokens: int, *, tokens_per_seq: int = 1, pad_slot: int = -1
    ) -> ConvHostArguments:
        """With rows added until a captured graph's ``num_tokens`` are accounted for.

        An operator captured on x ``[num_tokens, D]`` wants ``query_start_loc[-1]`` to be that
        number. Added rows have ``tokens_per_seq`` tokens, the padding slot, no initial state, and
        one accepted token, where there is such a field.

        Args:
            num_tokens: Tokens the graph was captured with.
            tokens_per_seq: Tokens of every row it was captured with: 1, or 1 + draft tokens.
            pad_slot: The slot that is padding.

        Raises:
            InvalidArgumentError: The rows have more tokens than that, or what is missing is no
                multiple of ``tokens_per_seq``.
        """
        if tokens_per_seq < 1:
            raise InvalidArgumentError("tokens_per_seq", f"{tokens_per_seq}", "at least 1")
        used = self.query_start_loc[-1]
        missing = num_tokens - used
        if missing < 0:
            raise InvalidArgumentError(
                "num_tokens", f"{num_tokens}", f"at least {used}, the tokens of the rows",
                hint="this step does not fit the captured graph",
            )  # fmt: skip
        if missing % tokens_per_seq:
            raise InvalidArgumentError(
                "num_tokens", f"{num_tokens}, {missing} more than the rows have",
                f"{used} and a multiple of tokens_per_seq = {tokens_per_seq}",
            )  # fmt: skip
        rows = missing // tokens_per_seq
        more = tuple(range(used + tokens_per_seq, num_tokens + 1, tokens_per_seq))
        mode, accepted = self.initial_state_mode, self.num_accepted_tokens
        return ConvHostArguments(
            self.query_start_loc + more,
            self.cache_indices + (pad_slot,) * rows,
            None if mode is None else mode + (0,) * rows,
            None if accepted is None else accepted + (1,) * rows,
        )


def host_group(meta: ChunkMeta, kind: str) -> HostGroup:
    """Host side of the rows of one kind.

    Raises:
        MetadataError: The step has none.
    """
    group = getattr(meta, kind, None) if kind in ("prefill", "decode", "speculative") else None
    if group is None:
        raise MetadataError(kind, "a step without such rows", f"{kind} rows in the plan")
    host: HostGroup = group.host
    return host


def _initial_state_mode(meta: ChunkMeta, group: HostGroup) -> Ints:
    if meta.has_initial_state is None:
        return (1,) * group.num_seqs
    has = _known("has_initial_state", meta.plan.has_initial_state)
    return tuple(map(int, has[group.sequences].tolist()))


ArrayT = TypeVar("ArrayT", "Int32Array", "BoolArray")


def _known(field: str, values: ArrayT | None) -> ArrayT:
    if values is None:
        raise MetadataError(
            field, "nothing on the host", "host values, which host arguments are made of",
            hint=f"pass {field} to plan_batch, or use operators that take device tensors",
        )  # fmt: skip
    return values


def _ints(values: Int32Array) -> Ints:
    return tuple(values.tolist())
