"""How many rows are done: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rmr1_jax.stages.progress import PLAIN_INTERVAL


class RowProgress:
    """Rows done so far, on standard error. `total` may be unknown."""

    def __init__(self, title: str, total: int | None, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._title, self._total = title, total
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=total)

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

    def __call__(self, done: int) -> None:
        """`done` rows are done, those of earlier runs included."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL:
            self._last_line = now
            of = "" if self._total is None else f" of {self._total:,}"
            print(f"{self._title}: {done:,}{of} records", file=self._console.file, flush=True)
