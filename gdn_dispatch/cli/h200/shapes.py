"""The shapes of ``bench --suite h200``: 171 published prefills, layers, and decode steps.

``prefill.csv`` holds FlashQLA's published table for one H200: forward milliseconds of
FlashQLA, FlashInfer without context parallelism, and FLA, K = V = 128.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Final

from gdn_dispatch.errors import InvalidArgumentError

__all__ = [
    "DECODE_SHAPES",
    "DIM",
    "LAYER_SHAPES",
    "QUICK_DECODE_SHAPES",
    "QUICK_LAYER_SHAPES",
    "QUICK_PREFILL",
    "DecodeShape",
    "PrefillShape",
    "parse_lengths",
    "prefill_shapes",
    "with_heads",
]

DIM: Final = 128
"""K and V of every shape."""


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """A packed batch.

    Attributes:
        H, HV: Heads.
        lengths: Tokens of each sequence.
        seqlens: The same as published, such as ``8192x4``.
        published: Milliseconds by library, or empty.
    """

    H: int
    HV: int
    lengths: tuple[int, ...]
    seqlens: str
    published: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """``16/64 8192x4``."""
        return f"{self.H}/{self.HV} {self.seqlens}"

    @property
    def facts(self) -> dict[str, int]:
        """Sizes, for the JSON file."""
        return {
            "H": self.H,
            "HV": self.HV,
            "num_seqs": len(self.lengths),
            "num_tokens": sum(self.lengths),
            "longest": max(self.lengths),
        }


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """A decode step: one token for each of B sequences."""

    B: int
    H: int
    HV: int
    state_dtype: str

    @property
    def name(self) -> str:
        """``B=64 HV=32 fp32``."""
        short = {"float32": "fp32", "bfloat16": "bf16"}
        return f"B={self.B} HV={self.HV} {short[self.state_dtype]}"

    @property
    def facts(self) -> dict[str, int]:
        """Sizes, for the JSON file."""
        return {"H": self.H, "HV": self.HV, "num_seqs": self.B, "num_tokens": self.B, "longest": 1}


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths of ``8192x4``, ``1x8192`` or ``12288+4096``."""
    try:
        if "+" in text:
            return tuple(int(part) for part in text.split("+"))
        one, other = sorted(int(part) for part in text.split("x"))
    except ValueError:
        raise InvalidArgumentError("seqlens", repr(text), "8192x4 or 4096+4096") from None
    return (other,) * one  # more tokens than sequences, whichever way round it is written


@cache
def prefill_shapes() -> tuple[PrefillShape, ...]:
    """The published shapes, every head count in turn: a run that is stopped has seen them all."""
    text = resources.files(__package__).joinpath("prefill.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    order = list(dict.fromkeys(row["seqlens"] for row in rows))
    rows.sort(key=lambda row: order.index(row["seqlens"]))
    return tuple(
        PrefillShape(
            int(row["h_qk"]),
            int(row["h_v"]),
            parse_lengths(row["seqlens"]),
            row["seqlens"],
            {
                "FlashQLA": float(row["flash_qla_ms"]),
                "FlashInfer without CP": float(row["flashinfer_no_cp_ms"]),
                "FLA": float(row["fla_ms"]),
            },
        )
        for row in rows
    )


QUICK_PREFILL: Final = tuple(
    f"{heads} {seqlens}"
    for heads in ("2/8", "16/32", "16/64")
    for seqlens in ("1x32768", "1x2048", "8192x4", "1024x8")
)
"""Twelve published shapes: few heads and many, long and short, one sequence and several."""


def _layers(*names: str) -> tuple[PrefillShape, ...]:
    found = []
    for name in names:
        heads, _, seqlens = name.partition(" ")
        H, HV = (int(n) for n in heads.split("/"))
        found.append(PrefillShape(H, HV, parse_lengths(seqlens), seqlens))
    return tuple(found)


LAYER_SHAPES: Final = _layers(
    *(
        f"{heads} {seqlens}"
        for heads in ("2/8", "8/32", "16/32", "16/64")
        for seqlens in ("1x256", "1x1024", "1x2048", "1x4096", "1x8192", "1024x8")
    )
)
"""Whole layer cores, of steps up to 8192 tokens."""

QUICK_LAYER_SHAPES: Final = _layers("2/8 1x2048", "16/32 1x2048", "16/32 1x8192", "16/64 1x8192")

_HEADS: Final = ((2, 8), (4, 16), (16, 32))

DECODE_SHAPES: Final = tuple(
    DecodeShape(B, H, HV, dtype)
    for dtype in ("float32", "bfloat16")
    for H, HV in _HEADS
    for B in (1, 8, 32, 64, 128, 256, 512)
)

QUICK_DECODE_SHAPES: Final = tuple(
    DecodeShape(B, H, HV, dtype)
    for dtype in ("float32", "bfloat16")
    for B, H, HV in ((1, 16, 32), (64, 2, 8), (64, 16, 32), (256, 16, 32))
)


def with_heads(
    shapes: tuple[PrefillShape | DecodeShape, ...], heads: list[str] | None
) -> list[PrefillShape | DecodeShape]:
    """Those of ``shapes`` with one of these head counts, as ``H/HV``; all, if None."""
    return [s for s in shapes if heads is None or f"{s.H}/{s.HV}" in heads]
