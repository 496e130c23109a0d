"""Signals end a run after the step, not in the middle of it."""

import os
import signal

import pytest

from rmr1_jax.training.stop_signal import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step(number: int) -> None:
    with StopSignal() as stop:
        assert not stop.stop_after(1)
        os.kill(os.getpid(), number)
        assert stop.stop_after(2)
        assert stop.signal == number


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
