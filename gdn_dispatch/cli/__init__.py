"""The command line: ``gdn-dispatch doctor | explain | blocksize | bench | demo``.

Every command is a module of this package with ``add_arguments(parser)`` and ``run(args) -> int``.
Only the one that was asked for is imported, and whatever is heavy is imported inside its ``run``,
so that ``gdn-dispatch doctor`` works where half of the machine is broken.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from gdn_dispatch import __version__
from gdn_dispatch.errors import GDNDispatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "MissingExtraError", "main", "require"]

COMMANDS: Final = {
    "doctor": "what is installed here, what runs, and whether it computes the right numbers",
    "explain": "which backend would run a call, and why not the others",
    "blocksize": "the attention block an engine has to use for a model, and why",
    "bench": "time this package against its peers, beside the budgets it sets itself",
    "demo": "a small model with and without this package",
}

BAD_USAGE: Final = 2
INTERRUPTED: Final = 130


class MissingExtraError(GDNDispatchError, ImportError):
    """A command needs a package that only an extra of this one installs."""


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import ``module``, or say what needs it and how to install it.

    Raises:
        MissingExtraError: It cannot be imported; the cause is kept.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {module.partition('.')[0]}: {error}\n"
            f"Install it: pip install 'gdn-dispatch[{extra}]'"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Wrong usage leaves through ``SystemExit(2)``."""
    words = sys.argv[1:] if argv is None else list(argv)
    # No option of the program itself takes a value, so the first bare word is the command.
    command = next((word for word in words if not word.startswith("-")), None)

    parser = argparse.ArgumentParser(
        prog="gdn-dispatch",
        description="One call for Gated DeltaNet attention on every accelerator.",
    )
    parser.add_argument("--version", action="version", version=f"gdn-dispatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module: Any = None
    for name, summary in COMMANDS.items():
        own = commands.add_parser(name, help=summary, description=_sentence(summary))
        if name == command:
            module = importlib.import_module(f"{__name__}.{name}")
            module.add_arguments(own)
    args = parser.parse_args(words)
    try:
        return int(module.run(args))
    except GDNDispatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."
