"""What long work shows: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 10.0  # seconds


class ProgressDisplay:
    """Starts and stops with its block; subclasses call `_update`.

    Args:
      columns: of the bar; they may show the fields.
      description, total, completed, fields: those of rich's task; `total` may be unknown.
      console: standard error by default.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        description: str = "",
        total: int | None,
        completed: int = 0,
        console: Console | None = None,
        **fields: Any,
    ) -> None:
        self._console = console or Console(file=sys.stderr)
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal and not self._console.quiet:
            # A rate over the last 30 s would swing with the length of single traces.
            self._bar = Progress(*columns, console=self._console, speed_estimate_period=600)
            self._task = self._bar.add_task(description, total=total, completed=completed, **fields)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line of its own, whatever the bar does."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _update(
        self, completed: int, line: Callable[[], str], *, last: bool = False, **fields: Any
    ) -> None:
        """Move the bar; or print `line`, if the last one is some time ago or this is the `last`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, **fields)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL or last:
            self._last_line = now
            self.say(line())


class Bar(NamedTuple):
    """How a `bar` is moved."""

    advance: Callable[[int], None]  # by so many more
    reach: Callable[[int], None]  # to so many in all


@contextmanager
def bar(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar on a terminal, gone once its block ends; nothing elsewhere, or if `quiet`."""
    console = Console(stderr=True, quiet=quiet)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield Bar(
            lambda count: progress.advance(task, count),
            lambda done: progress.update(task, completed=done),
        )
