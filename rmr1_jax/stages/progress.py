"""How far a run has come: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 10.0  # seconds


class JudgingProgress:
    """Pairs done, tokens per second and time left, on standard error.

    Args:
      total: pairs of the input.
      done: pairs that earlier runs judged.
    """

    def __init__(self, *, total: int, done: int, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._total, self._first, self._done = total, done, done
        self._start = self._last_line = time.monotonic()
        self._tokens = self._tokens_of_earlier_calls = self._tokens_of_call = 0
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("pairs  {task.fields[speed]:,.0f} tokens/s "),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                # A rate over the last 30 s would swing with the length of single traces.
                speed_estimate_period=600,
            )
            self._task = self._bar.add_task("", total=total, completed=done, speed=0.0)

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

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self._tokens

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / max(time.monotonic() - self._start, 1e-9)

    def tokens_written(self, tokens: int) -> None:
        """`tokens` counts from the start of one call of the judge; a new call starts from 0."""
        if tokens < self._tokens_of_call:
            self._tokens_of_earlier_calls += self._tokens_of_call
        self._tokens_of_call = tokens
        self._tokens = self._tokens_of_earlier_calls + tokens
        self._show()

    def pair_done(self) -> None:
        self._done += 1
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=self.tokens_per_second)
            return
        now = time.monotonic()
        if now - self._last_line < PLAIN_INTERVAL:
            return
        self._last_line = now
        left = "unknown"
        if self._done > self._first:
            rate = (self._done - self._first) / (now - self._start)
            left = f"{(self._total - self._done) / rate:,.0f} s"
        print(
            f"{self._done} of {self._total} pairs, {self.tokens_per_second:,.0f} tokens/s, "
            f"time left {left}",
            file=self._console.file,
            flush=True,
        )
