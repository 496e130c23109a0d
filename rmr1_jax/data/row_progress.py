"""How many rows are done."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from rmr1_jax.io.progress import ProgressDisplay


class RowProgress(ProgressDisplay):
    """Rows done so far, on standard error. `total` may be unknown."""

    def __init__(self, title: str, total: int | None, console: Console | None = None) -> None:
        self._title, self._total = title, total
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            description=title,
            total=total,
            console=console,
        )

    def __call__(self, done: int) -> None:
        """`done` rows are done, those of earlier runs included."""
        of = "" if self._total is None else f" of {self._total:,}"
        self._update(done, lambda: f"{self._title}: {done:,}{of} records")
