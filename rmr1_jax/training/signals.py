"""When to stop early: SIGTERM, Ctrl-C, or the notice that a machine will be taken away."""

import signal
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopSignal:
    """Notes the first signal, so that the loop can save; a second Ctrl-C interrupts at once.

    `signal` is the number of the one that came, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self) -> bool:
        """Whether a step may be given up half-way; several processes finish it together."""
        return self.signal is not None and jax.process_count() == 1

    def stop_after(self, step: int) -> bool:
        """Whether this is the step to stop at; with several processes, the same one for all.

        Each tells the others of its signal, or of the notice that its machine will be taken away.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        noticed = signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        told = multihost_utils.process_allgather(np.int32(self.signal or noticed))
        if not told.any():
            return False  # whatever has come since: the others have not heard of it
        self.signal = self.signal or int(told.max())
        return True
