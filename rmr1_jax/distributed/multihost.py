"""How the processes of a job find one another, and end together.

JAX knows how to read a TPU's metadata, GKE's and Slurm's variables; which of them is meant, a time
limit, errors that name what is missing, and an end that is the same for all are here.
"""

import math
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

from rmr1_jax.distributed.clusters import Place, by_environment, slurm_tasks
from rmr1_jax.distributed.lifeline import Lifeline, abort_late
from rmr1_jax.distributed.rendezvous import Address, meet
from rmr1_jax.errors import UserError

METHODS = ("auto", "off", "tpu", "slurm", "gke", "flags")
OPTIONS = ("distributed", "coordinator", "process_count", "process_index", "join_timeout")
HELP = f"""\
  --distributed=METHOD   how several processes find one another: {", ".join(METHODS)}
                         (auto: by what the environment says, else one process)
  --coordinator=HOST:PORT --process_count=N --process_index=I
                         say it yourself (together they mean --distributed=flags)
  --join_timeout=300     seconds to wait for the others at the start"""
TELL_SECONDS = 10.0  # until a peer's end, which made an error here, is known here


@dataclass(frozen=True)
class Distributed:
    """What the command line says of the processes of a job; empty: nothing."""

    method: str = "auto"
    coordinator: str = ""
    process_count: str = ""
    process_index: str = ""
    join_timeout: str = "300"

    @property
    def flags(self) -> dict[str, str]:
        return {
            "coordinator": self.coordinator,
            "process_count": self.process_count,
            "process_index": self.process_index,
        }


def join(asked: Distributed, stage: str, shared: bool) -> "Joined | None":
    """Take this process' place among those of its job; None where it is alone.

    Args:
      asked: by the command line.
      stage: its name.
      shared: whether several processes can share its work.

    Raises UserError where options contradict one another or the environment is not what was asked
    for, MissingProcessError where a process does not come in time.
    """
    limit = _check(asked)
    if not shared:
        _refuse_several(asked, stage)
        return None
    method = "flags" if any(asked.flags.values()) else asked.method
    if method == "off":
        return None
    place: Place | None
    if method == "flags":
        place = _by_flags(asked)
    elif is_one_of_several():  # by whoever started this
        return None
    else:
        place = by_environment(method, limit)
    if place is None or place.count == 1:
        return None
    return Joined(place, limit)


class Joined:
    """This process among the others, until they end together."""

    def __init__(self, place: Place, limit: float) -> None:
        import jax
        import numpy as np
        from jax.experimental import multihost_utils

        self.place = place
        met = meet(place.coordinator, place.count, place.index, limit)
        self._lifeline = Lifeline(place.index, met)
        abort_late()
        jax.distributed.initialize(
            str(place.coordinator),
            place.count,
            place.index,
            local_device_ids=place.local_devices,
            initialization_timeout=math.ceil(max(limit, 60)),
            cluster_detection_method="deactivate",
        )
        # While all are here: on a CPU the first exchange has to come about within 30 seconds, and
        # the others would wait for files that the first process makes. Later ones may take longer.
        multihost_utils.process_allgather(np.int32(place.index))
        if threading.current_thread() is threading.main_thread():
            # JAX takes SIGTERM for a notice that training will hear of; elsewhere it would be lost.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if place.index == 0:
            print(
                f"{place.count} processes on {len(set(met.hosts))} "
                f"{'host' if len(set(met.hosts)) == 1 else 'hosts'}; the first is {met.hosts[0]}",
                file=sys.stderr,
            )

    def leave(self) -> None:
        """Wait until all are done; one that fails meanwhile ends this process too."""
        self._lifeline.leave()

    def hear(self) -> None:
        """After an error that may come of another's end: if it does, this ends the process."""
        time.sleep(TELL_SECONDS)

    def fail(self, status: int, why: str) -> NoReturn:
        """Tell the others why, and end: JAX's own end would wait for them."""
        self._lifeline.fail(status, why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_one_of_several() -> bool:
    """Whether this process has joined others; asks nothing of the devices, and does not import
    jax."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _check(asked: Distributed) -> float:
    """Raises UserError; returns the time limit in seconds."""
    if asked.method not in METHODS:
        raise UserError(f"--distributed={asked.method} is unknown; there are {', '.join(METHODS)}")
    try:
        limit = float(asked.join_timeout)
    except ValueError:
        limit = 0.0
    if not 0 < limit < math.inf:
        raise UserError(f"--join_timeout={asked.join_timeout} must be a number of seconds above 0")
    given = [name for name, value in asked.flags.items() if value]
    missing = [f"--{name}" for name in asked.flags if name not in given]
    if given and asked.method not in ("auto", "flags"):
        raise UserError(
            f"--{given[0]} says by hand what --distributed={asked.method} finds out; give one of "
            "the two"
        )
    if missing and (given or asked.method == "flags"):
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: "
            "--coordinator=HOST:PORT, --process_count and --process_index go together"
        )
    return limit


def _refuse_several(asked: Distributed, stage: str) -> None:
    count = asked.process_count if asked.process_count != "1" else ""
    several = f"--process_count={count}" if count else ""
    if not several and asked.method not in ("auto", "off", "flags"):
        several = f"--distributed={asked.method}"
    if not several and asked.method == "auto" and (tasks := slurm_tasks(os.environ)) > 1:
        several = f"srun with {tasks} tasks (use --ntasks=1)"
    if several:
        raise UserError(
            f"--stage={stage} works in one process, and was started with {several}; start it once"
        )


def _by_flags(asked: Distributed) -> Place:
    match = re.fullmatch(r".+:(\d{1,5})", asked.coordinator)
    if not match or not 0 < int(match[1]) < 2**16:
        raise UserError(f"--coordinator={asked.coordinator} must be HOST:PORT, such as host-0:8476")
    count, index = (_whole(name, getattr(asked, name)) for name in OPTIONS[2:4])
    if count < 1 or index >= count:
        raise UserError(
            f"--process_index={index} must be from 0 to {count - 1}, as --process_count={count}"
            if count
            else "--process_count=0 must be 1 or more"
        )
    return Place(Address.parse(asked.coordinator), count, index)


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text):
        raise UserError(f"--{name}={text} must be a whole number")
    return int(text)
