"""What ``gdn-dispatch bench`` times, against what, and within which budget."""

from __future__ import annotations

from functools import partial
from typing import Final

from gdn_dispatch.cli.bench import ABSOLUTE, OVERHEAD, SPEEDUP, TIMES_FLOOR, Case
from gdn_dispatch.cli.cases_host import OPS, call_overhead, host_metadata, import_time
from gdn_dispatch.cli.cases_inputs import SHAPE
from gdn_dispatch.cli.cases_transformers import decode, layer, packed, prefill

__all__ = ["CASES", "SHAPE"]

_HF: Final = "transformers"
_HF_LAYER: Final = "transformers' layer core"

CASES: Final = (
    Case("prefill", "T=512", _HF, SPEEDUP, 4.5, partial(prefill, 512)),
    Case("prefill", "T=4096", _HF, SPEEDUP, 6, partial(prefill, 4096)),
    Case("prefill", "T=16384", _HF, SPEEDUP, 6.5, partial(prefill, 16384)),
    Case("packed", "32 x 17..600", f"{_HF}, one by one", SPEEDUP, 3.3, packed),
    Case("decode", "B=1", _HF, SPEEDUP, 5, partial(decode, 1)),
    Case("decode", "B=8", _HF, SPEEDUP, 20, partial(decode, 8)),
    Case("decode", "B=64", _HF, SPEEDUP, 18, partial(decode, 64)),
    Case("decode", "B=1, in place", _HF_LAYER, SPEEDUP, 5, partial(layer, 1)),
    Case("decode", "B=8, in place", _HF_LAYER, SPEEDUP, 20, partial(layer, 8)),
    Case("decode", "B=64, in place", _HF_LAYER, SPEEDUP, 18, partial(layer, 64)),
    *(Case("call", op, "null function", OVERHEAD, 8, partial(call_overhead, op)) for op in OPS),
    Case("import", "alone", "import torch", ABSOLUTE, 50, partial(import_time, 0)),
    Case("import", "with 5 backends", "import torch", ABSOLUTE, 50, partial(import_time, 5)),
    Case("metadata", "N=1", "memory copy", TIMES_FLOOR, None, partial(host_metadata, 1, 33_000)),
    Case("metadata", "N=16", "memory copy", TIMES_FLOOR, None, partial(host_metadata, 16, 77_000)),
    Case("metadata", "N=256", "memory copy", TIMES_FLOOR, 3, partial(host_metadata, 256, 10**6)),
    Case("metadata", "N=1024", "memory copy", TIMES_FLOOR, 3, partial(host_metadata, 1024, 10**6)),
)
"""Every case, suite by suite, with the budget of the design."""
