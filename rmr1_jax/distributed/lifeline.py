"""Processes of a run that know at once when one of them has ended, and say which.

A collective waits for every process, so where one is missing the others would hang: JAX notices
after its heartbeats have been missed for a while, and ends them with a stack trace. Here each holds
a connection to the first, which the kernel closes when a process dies, however it dies; a machine
that vanishes is found by TCP's keepalive within a minute.
"""

import ctypes
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rmr1_jax.distributed.rendezvous import Met, read_line, send
from rmr1_jax.errors import LOST

GRACE_SECONDS = 3.0
"""Left to a process that is about to find the same error by itself."""
REPORT_SECONDS = 1.0
"""Left to JAX, which reports the end of the first process at length; our line is to be the last."""
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class Lifeline:
    """Watches the others from a thread of its own; ends this process when one of them has ended.

    Args:
      index, met: this process, and all of them, from the roll call.
      end: ends this process with a status, at once; from the thread.
    """

    def __init__(self, index: int, met: Met, end: Callable[[int], Any] = os._exit) -> None:
        self._index, self._hosts, self._links, self._end = index, met.hosts, met.links, end
        self._done = dict.fromkeys([index, *met.links], False)
        self._all_done = self._ending = False
        self._closed: set[int] = set()
        self._changed = threading.Condition()
        for link in self._links.values():
            link.settimeout(GRACE_SECONDS)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, seconds in KEEPALIVE.items():
                if hasattr(socket, name):
                    link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def leave(self) -> None:
        """This process is done. Returns when all are, so that none is missed by JAX's own end."""
        if self._index:
            self._tell({"done": True})
        with self._changed:
            self._done[self._index] = True
            self._changed.wait_for(lambda: self._all_done or all(self._done.values()))
            self._all_done = True
        if self._index == 0:
            self._tell({"all_done": True})

    def fail(self, status: int, why: str) -> None:
        """Tell the others that this process ends, with its error; then it may."""
        self._ending = True
        self._tell({"failed": self._index, "status": status, "why": why})
        self._let_others_end()

    def _tell(self, message: dict[str, Any], *, but: int | None = None) -> None:
        for index, link in self._links.items():
            if index != but:
                with suppress(OSError):  # then it is gone, and the thread finds that
                    send(link, message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    index, link = key.data, self._links[key.data]
                    try:
                        message = read_line(link)
                    except OSError:
                        message = None
                    if message is None:
                        selector.unregister(link)
                    with self._changed:
                        self._heard(index, message)
                        self._changed.notify_all()

    def _heard(self, index: int, message: dict[str, Any] | None) -> None:
        trouble = message if message and "failed" in message else None
        if message is None:
            self._closed.add(index)
            if not (self._all_done or self._done[index]):
                trouble = {"failed": index, "status": LOST, "why": None}
        elif trouble is None:
            self._done[index] = "done" in message
            self._all_done = "all_done" in message
        if trouble and not self._ending:
            self._ending = True
            if self._index:
                self._stop(**trouble)
            else:  # of its own, since this one goes on to see how the others end
                threading.Thread(target=self._stop, kwargs=trouble, daemon=True).start()

    def _stop(self, failed: int, status: int, why: str | None) -> None:
        """Tell the others, say what has happened, and end."""
        if self._index == 0:
            self._tell({"failed": failed, "status": status, "why": why}, but=failed)
        who = f"process {failed} of {len(self._hosts)} ({self._hosts[failed]})"
        if why is None:
            if failed == 0:
                time.sleep(REPORT_SECONDS)
            line = (
                f"{who} is gone: it was killed, or its machine was taken away. This process stops "
                "as well; the same command, in all processes, goes on from what is saved"
            )
        else:
            line = f"{who} stopped: {why}"
            time.sleep(GRACE_SECONDS)
        sys.stdout.flush()
        print(f"error: {line}", file=sys.stderr, flush=True)
        self._let_others_end()
        self._end(status)

    def _let_others_end(self) -> None:
        """The first goes last: JAX's coordinator is in it, and ends the others with a stack trace
        when it is gone."""
        if self._index == 0:
            with self._changed:
                everyone = self._links.keys()
                self._changed.wait_for(lambda: self._closed == everyone, 2 * GRACE_SECONDS)


def abort_late() -> None:
    """Let an abort of this process wait for some seconds.

    Where the first process dies, JAX's coordinator dies with it, and JAX aborts the others as soon
    as it finds that; so there would be no time to say which process it was. The C function `sleep`
    is the handler: given the number of the signal, 6, it sleeps 6 seconds, then the abort goes on.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
