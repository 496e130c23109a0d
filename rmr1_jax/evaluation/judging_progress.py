"""How far judging has come."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from rmr1_jax.io.progress import ProgressDisplay


class JudgingProgress(ProgressDisplay):
    """Pairs done, tokens per second and time left, on standard error.

    Args:
      total: pairs of the input.
      done: pairs that earlier runs judged.
    """

    def __init__(self, *, total: int, done: int, console: Console | None = None) -> None:
        self._total, self._first, self._done = total, done, done
        self._start = time.monotonic()
        self._tokens = self._tokens_of_earlier_calls = self._tokens_of_call = 0
        super().__init__(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("pairs  {task.fields[speed]:,.0f} tokens/s "),
            TimeRemainingColumn(),
            TextColumn("left"),
            total=total,
            completed=done,
            console=console,
            speed=0.0,
        )

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
        self._show(last=self._done == self._total)

    def _show(self, *, last: bool = False) -> None:
        self._update(self._done, self._line, last=last, speed=self.tokens_per_second)

    def _line(self) -> str:
        left = "unknown"
        if self._done > self._first:
            rate = (self._done - self._first) / (time.monotonic() - self._start)
            left = f"{(self._total - self._done) / rate:,.0f} s"
        return (
            f"{self._done} of {self._total} pairs, {self.tokens_per_second:,.0f} tokens/s, "
            f"time left {left}"
        )
