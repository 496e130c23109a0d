"""The roll call before `jax.distributed` starts: who has come, and who is missing.

JAX ends a process with a stack trace where a peer does not come in time, and does not say which. So
the processes meet first, at the address where its coordinator will listen: the first waits for the
others, and all are told the same. The connections stay open for `lifeline`.
"""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rmr1_jax.errors import MissingProcessError, UserError

RETRY_SECONDS = 0.5
HELLO_SECONDS = 5.0  # within which whoever connects must have said who it is


@dataclass(frozen=True)
class Address:
    """Where the first process listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host  # an IPv6 address
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Of HOST:PORT, an IPv6 address in brackets or without. Raises ValueError."""
        host, _, port = text.rpartition(":")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))


@dataclass(frozen=True)
class Met:
    """All have come: hosts by process, and the connections of this one to the first, or of the
    first to each."""

    hosts: list[str]
    links: dict[int, socket.socket]


def meet(address: Address, count: int, index: int, limit: float) -> Met:
    """Wait until all `count` processes have come, at most `limit` seconds.

    Raises, in all that have come, MissingProcessError where some have not, and UserError where
    something does not fit.
    """
    until = time.monotonic() + limit
    if index == 0:
        return _as_first(address, count, limit, until)
    return _as_other(address, count, index, limit, until)


def send(link: socket.socket, message: Mapping[str, Any]) -> None:
    """One line of JSON. Raises OSError."""
    link.sendall(json.dumps(message).encode() + b"\n")


def _as_first(address: Address, count: int, limit: float, until: float) -> Met:
    me = socket.gethostname()
    hosts, links = {0: me}, dict[int, socket.socket]()
    problem: UserError | None = None
    with _listen(address) as listener:
        while len(hosts) < count and not problem:
            left = until - time.monotonic()
            if left <= 0:
                problem = MissingProcessError(_missing(address, count, hosts, limit))
                break
            listener.settimeout(left)
            try:
                link, _ = listener.accept()
            except TimeoutError:
                continue
            hello = _hello(link)
            if hello is None:
                link.close()  # a stranger
                continue
            index, host = hello["index"], hello["host"]
            if hello["count"] != count:
                problem = UserError(
                    f"process {index} ({host}) was started as one of {hello['count']}, and process "
                    f"0 ({me}) as one of {count}; give all the same number"
                )
            elif index in links and _is_open(links[index]):
                problem = UserError(
                    f"two processes ({hosts[index]} and {host}) say that they are number {index} "
                    f"of {count}; number them from 0 to {count - 1}"
                )
                links[-1] = link
                break
            elif index in links:
                links[index].close()  # it was started again
            hosts[index], links[index] = host, link
    listed = [hosts[index] for index in sorted(hosts)]
    for link in links.values():
        with suppress(OSError):  # whoever has gone meanwhile is missed a moment later
            send(link, _refusal(problem) if problem else {"hosts": listed})
    if problem:
        raise problem
    return Met(listed, links)


def _as_other(address: Address, count: int, index: int, limit: float, until: float) -> Met:
    me = {"index": index, "count": count, "host": socket.gethostname()}
    reached = False
    while (left := until - time.monotonic()) > 0:
        try:
            link = socket.create_connection((address.host, address.port), timeout=left)
            send(link, me)
            # The first may have begun to wait after this one.
            link.settimeout(limit + HELLO_SECONDS)
            answer = read_line(link)
        except OSError:
            answer = None
        if answer is None:
            # Not there yet; or it was an earlier job's coordinator that still listens there.
            time.sleep(RETRY_SECONDS)
            continue
        reached = True
        if problem := answer.get("refused"):
            raise (MissingProcessError if answer.get("missing") else UserError)(problem)
        if hosts := answer.get("hosts"):
            return Met(hosts, {0: link})
    why = "what listens there is not the first process of this job" if reached else "no answer"
    raise MissingProcessError(
        f"process {index} of {count}: process 0 did not call the roll at {address} within "
        f"{limit:g} s ({why}). Check that it was started, that this is the address of its host, "
        "and that no firewall is between them; --join_timeout waits longer"
    )


def _listen(address: Address) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", address.port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {address.port} of {socket.gethostname()} "
            f"({error.strerror}); end what uses it, or take another port for the coordinator"
        ) from error


def _refusal(problem: UserError) -> dict[str, Any]:
    return {"refused": str(problem), "missing": isinstance(problem, MissingProcessError)}


def _hello(link: socket.socket) -> dict[str, Any] | None:
    link.settimeout(HELLO_SECONDS)
    try:
        hello = read_line(link)
    except OSError:
        return None
    if hello is None or not {"index", "count", "host"} <= hello.keys():
        return None
    return hello


def read_line(link: socket.socket) -> dict[str, Any] | None:
    """One message; None where the other side has closed, or does not speak this language."""
    line = b""
    while not line.endswith(b"\n"):
        byte = link.recv(1)  # no more: what follows is another reader's
        if not byte or len(line) > 2**20:
            return None
        line += byte
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _is_open(link: socket.socket) -> bool:
    link.setblocking(False)
    try:
        return bool(link.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        link.settimeout(HELLO_SECONDS)


def _missing(address: Address, count: int, hosts: Mapping[int, str], limit: float) -> str:
    absent = [str(index) for index in range(count) if index not in hosts]
    shown = ", ".join(absent[:16]) + (f" and {len(absent) - 16} more" if len(absent) > 16 else "")
    number = "process" if len(absent) == 1 else "processes"
    return (
        f"{len(hosts)} of {count} processes came within {limit:g} s; missing: {number} {shown}. "
        "Check that each was started with the same command, that it did not end with an error of "
        f"its own, and that its host reaches {address}; --join_timeout waits longer"
    )
