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
        """Whether a step is to be given up half-way.

        Several processes must ask at the same places, and get the same answer.
        """
        return self._agreed(self.signal)

    def stop_after(self, step: int) -> bool:
        """Whether this is the step to stop at; with several processes, the same one for all.

        Each tells the others of its signal, or of the notice that its machine will be taken away.
        """
        noticed = None
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            noticed = signal.SIGTERM
        return self._agreed(self.signal or noticed)

    def _agreed(self, number: int | None) -> bool:
        if jax.process_count() == 1:
            return number is not None
        told = multihost_utils.process_allgather(np.int32(number or 0))
        if not told.any():
            return False  # whatever has come since: the others have not heard of it
        self.signal = int(told.max())  # the same in all, since it becomes their exit status
        return True
