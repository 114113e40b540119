"""Options of ``gdn-dispatch bench --suite h200``; apart, so that asking for help imports little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

__all__ = ["PARTS", "add_arguments"]

PARTS: Final = ("prefill", "calls", "layer", "decode", "steps")
"""What the suite consists of; see ``gdn_dispatch.cli.h200``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    group = parser.add_argument_group("of --suite h200, which needs a CUDA device")
    group.add_argument("--quick", action="store_true", help="a few shapes of every part")
    group.add_argument("--part", action="append", choices=PARTS, help="may be repeated; else all")
    group.add_argument("--heads", action="append", metavar="H/HV", help="only these head counts")
    group.add_argument("--without", action="append", metavar="NAME", help="leave a contestant out")
    group.add_argument("--minutes", type=float, metavar="M", help="begin no case after M minutes")
    group.add_argument("--commit", metavar="TEXT", help="goes into the results, without a checkout")
