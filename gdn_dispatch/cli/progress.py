"""Progress on stderr: a bar where someone is watching, one plain line per case where not."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as RichProgress

__all__ = ["Progress", "progress"]


class Progress(Protocol):
    """What a long command tells about itself."""

    def case(self, description: str) -> None:
        """The next case begins."""

    def step(self, text: str) -> None:
        """One step of the current case is done; ``text`` is at most a few words."""

    def end_case(self) -> None:
        """It is done, and so are the steps it may have left."""


@contextmanager
def progress(cases: int, steps: int, *, stream: TextIO | None = None) -> Iterator[Progress]:
    """Progress over ``cases`` of ``steps`` steps each.

    Args:
        cases: How many cases there will be.
        steps: Steps of each.
        stream: Where it is shown; stderr if None, so that results can be piped.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _Lines(cases, stream)
        return
    try:
        from rich import progress as rich
        from rich.console import Console
    except ImportError:
        yield _Lines(cases, stream)
        return
    columns = (
        # fixed widths: the bar must not jump when a name or a step is longer than the last
        rich.TextColumn("{task.description:<28.28}"),
        rich.BarColumn(bar_width=30),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[text]:<24.24}", style="dim"),
    )
    with rich.Progress(*columns, console=Console(file=stream), transient=True) as bar:
        yield _Bar(bar, cases, steps)


class _Lines:
    def __init__(self, cases: int, stream: TextIO) -> None:
        self._cases, self._stream, self._done = cases, stream, 0

    def case(self, description: str) -> None:
        self._done += 1
        width = len(str(self._cases))
        line = f"[{self._done:>{width}}/{self._cases}] {description}"
        print(line, file=self._stream, flush=True)

    def step(self, text: str) -> None:
        pass

    def end_case(self) -> None:
        pass


class _Bar:
    def __init__(self, bar: RichProgress, cases: int, steps: int) -> None:
        self._bar, self._steps, self._begun = bar, steps, 0
        self._task = bar.add_task("", total=cases * steps, text="")

    def case(self, description: str) -> None:
        self._begun += 1
        self._bar.update(self._task, description=description, text="preparing")

    def step(self, text: str) -> None:
        self._bar.update(self._task, advance=1, text=text)

    def end_case(self) -> None:
        self._bar.update(self._task, completed=self._begun * self._steps, text="")
