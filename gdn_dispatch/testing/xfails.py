"""``xfails.txt``: what a backend is known to get wrong, each with a reason and a link.

One entry a line, ``#`` begins a comment::

    test_equals_the_oracle[from zero-strong decay-chunk] | loses the sign of -0.0 | https://...

The id is the name of a test of the kit, with its parameters or, for all of them, without. An entry
expires when its test passes: that is a failure, until the line is taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gdn_dispatch.errors import InvalidArgumentError

__all__ = ["Exclusion", "matching", "read_exclusions"]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """One line of the file.

    Attributes:
        test: Name of a test, with or without parameters.
        reason: Why it fails.
        link: Where that is being worked on.
    """

    test: str
    reason: str
    link: str


def read_exclusions(path: Path | str | None) -> tuple[Exclusion, ...]:
    """Every entry of the file; none without a file.

    Raises:
        InvalidArgumentError: A line that is not ``id | reason | link``; or there is no such file.
    """
    if path is None:
        return ()
    path = Path(path)
    if not path.is_file():
        raise InvalidArgumentError("xfails", str(path), "a file that exists, or None")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        # parameters of a test may hold anything, so the fields are counted from the end
        fields = [field.strip() for field in text.rsplit("|", 2)]
        if len(fields) != 3 or not all(fields):
            raise InvalidArgumentError(
                f"{path.name}, line {number}", repr(text), "test id | reason | link"
            )
        found.append(Exclusion(*fields))
    return tuple(found)


def matching(exclusions: tuple[Exclusion, ...], name: str) -> Exclusion | None:
    """The entry for the test called ``name``, parameters included; or None."""
    function = name.partition("[")[0]
    return next((e for e in exclusions if e.test in (name, function)), None)
