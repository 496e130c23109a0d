"""How the processes of a run join one another, and how one of them ends.

`jax.distributed.initialize` does the work: it reads what Slurm, GKE and TPUs say about a run, waits
for its processes, and ends (by an abort) those that have lost another. Ours are the options, a line
that says what is waited for, and the exit status.
"""

import math
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmr1_jax.errors import LOST, MissingProcessError, UserError

METHODS = ("auto", "off", "tpu", "slurm", "gke", "flags")
OPTIONS = ("distributed", "coordinator", "process_count", "process_index", "join_timeout")
HELP = f"""\
  --distributed=METHOD   how several processes find one another: {", ".join(METHODS)}
                         (auto: as the environment says, else one process)
  --coordinator=HOST:PORT --process_count=N --process_index=I
                         given by hand (together they mean --distributed=flags)
  --join_timeout=300     seconds to wait for the others at the start"""
FLAGS = "--coordinator, --process_count and --process_index"
ABSENT = {
    "slurm": "this was not started by srun (SLURM_PROCID, SLURM_STEP_NODELIST and others are not "
    "set); start it with srun",
    "gke": "neither TPU_WORKER_HOSTNAMES (of a TPU pod) nor JAX_COORDINATOR_ADDRESS, "
    "JAX_PROCESS_COUNT and JOB_COMPLETION_INDEX (of an indexed job) are set",
    "tpu": "no TPU with metadata was found on this machine, or libtpu is not installed",
}
GOOGLE = "0x1ae0"  # as a maker of PCI devices

HEARTBEAT_SECONDS = 60
"""A process that has been silent for this long is taken for lost."""
SHUTDOWN_SECONDS = 3600
"""A process that is done waits for those that still write; heartbeats find those that are lost."""
GRACE_SECONDS = 3.0
"""Left to the others to report an error that all of them meet, before the coordinator ends."""
# The errors of devices and of communication begin with one of these codes, whatever their type.
RESTARTABLE = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED"
    r"|FAILED_PRECONDITION|RESOURCE_EXHAUSTED): "
)


@dataclass(frozen=True)
class Distributed:
    """The options of the command line about the processes of a run, as they were typed."""

    method: str = "auto"
    coordinator: str = ""
    process_count: str = ""
    process_index: str = ""
    join_timeout: str = "300"

    @property
    def flags(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in OPTIONS[1:4]}


@dataclass(frozen=True)
class Place:
    """What `jax.distributed.initialize` is given, and how a message describes it."""

    who: str  # this process
    where: str  # the others
    arguments: Mapping[str, Any]


def join(asked: Distributed, stage: str, shared: bool) -> None:
    """Join the other processes of the run, if there are any.

    Args:
      asked: the options of the command line.
      stage: its name.
      shared: whether several processes can share its work.

    Raises UserError where options contradict one another or the environment, and
    MissingProcessError where the coordinator's host has no address in time. Where a process does
    not come in time, JAX aborts those that did.
    """
    limit = _check(asked)
    if not shared:
        _refuse_several(asked, stage)
        return
    method = "flags" if any(asked.flags.values()) else asked.method
    if method == "off":
        return
    if method == "flags":
        place = _by_flags(asked)
    elif is_one_of_several():  # joined by whoever started this
        return
    else:
        place = _by_environment(method)
    if place is not None:
        _initialize(place, method, math.ceil(limit))


def is_one_of_several() -> bool:
    """Whether this process has joined others. Does not import jax."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def leave(status: int) -> None:
    """End this process at once if it is one of several; return if it is alone.

    An ordinary exit would wait for the others, which may be waiting for this one.
    """
    if not is_one_of_several():
        return
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    try:
        coordinates = jax.process_index() == 0
    except RuntimeError:  # there are no devices, which may be why it ends
        coordinates = True
    if coordinates:
        time.sleep(GRACE_SECONDS)  # JAX aborts the others as soon as the coordinator is gone
    os._exit(status)


def exit_status(error: BaseException) -> int:
    """LOST where devices or another process failed, since a restart may help; else 1."""
    cause: BaseException | None = error
    while cause is not None:
        if RESTARTABLE.match(str(cause)):
            return LOST
        cause = cause.__cause__ or cause.__context__
    return 1


def _initialize(place: Place, method: str, limit: int) -> None:
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    print(
        f"{place.who}: waiting for the others at {place.where}, at most {limit} s. If one does not "
        "come, JAX ends this process with DEADLINE_EXCEEDED: check that each was started with the "
        "same command, has a number of its own and reaches that address; --join_timeout waits "
        "longer",
        file=sys.stderr,
        flush=True,
    )
    try:
        jax.distributed.initialize(
            **place.arguments,
            initialization_timeout=limit,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except Exception as error:  # of whatever reads metadata: networks, files, numbers
        if "Failed to recognize coordinator" in str(error):  # a pod has a name once it runs
            raise MissingProcessError(
                f"the host of process 0 has no address after {limit} s ({error}). Check that it "
                "was started; --join_timeout waits longer"
            ) from error
        if "Failed to start RPC server" in str(error):
            raise UserError(
                f"process 0 cannot listen at {place.where}: end what uses that port, or take "
                "another one for the coordinator"
            ) from error
        # Nobody answers at the metadata server, or what does names no other processes.
        absent = isinstance(error, OSError) or "should be defined" in str(error)
        if method == "auto" and absent:
            print("no TPU metadata: this is taken for the only process", file=sys.stderr)
            return
        reason = f"{type(error).__name__}: {error}"
        if absent and method in ABSENT:
            reason = f"{ABSENT[method]} ({reason})"
        raise UserError(
            f"--distributed={method}: the environment cannot be used: {reason}. Fix it, give "
            f"{FLAGS} instead, or start one process with --distributed=off"
        ) from error
    # JAX takes SIGTERM for a notice that training will hear of; elsewhere it would be lost.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_count() == 1:  # a TPU of one host
        jax.distributed.shutdown()
        return
    # While all are here: on a CPU the first exchange has to come about within 30 seconds, and the
    # others would wait for files that the first process makes. Later ones may take longer.
    asked = int(place.arguments.get("num_processes", jax.process_count()))
    counts = np.unique(multihost_utils.process_allgather(np.int32(asked)))
    if len(counts) > 1 or counts[0] != jax.process_count():
        raise UserError(
            f"{jax.process_count()} processes came, started with --process_count="
            f"{' and '.join(map(str, counts))}; start all with the same number"
        )
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes have joined", file=sys.stderr)


def _by_environment(method: str) -> Place | None:
    """What the environment says; None for one process.

    Raises UserError where it does not say what `method` needs.
    """
    if method in ("auto", "slurm") and (tasks := slurm_tasks(os.environ)):
        return _slurm(os.environ) if tasks > 1 else None
    if method in ("auto", "gke", "tpu") and (hosts := _tpu_hosts(os.environ)):
        # One machine: JAX would ask a metadata server for slices, and not every machine has one.
        several = hosts != "localhost" or "MEGASCALE_NUM_SLICES" in os.environ
        return _detected("gketpu", "this host", f"the TPU hosts {hosts}") if several else None
    if method in ("auto", "gke") and (job := _indexed_job(os.environ)):
        return job
    if method == "tpu" or (method == "auto" and _has_tpu()):
        return _detected("gcetpu", "this host", "the first host of this TPU")
    if method == "auto":
        return None
    raise UserError(f"--distributed={method}: {ABSENT[method]}; or give {FLAGS}")


def _detected(cluster: str, who: str, where: str, **more: Any) -> Place:
    return Place(who, where, {"cluster_detection_method": cluster, **more})


def slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step that this process is one of; 0 outside of one."""
    names = "JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"
    if any(f"SLURM_{name}" not in environment for name in names):
        return 0
    return _whole("SLURM_NTASKS", environment["SLURM_NTASKS"])


def _slurm(environment: Mapping[str, str]) -> Place:
    who = f"process {environment['SLURM_PROCID']} of {environment['SLURM_NTASKS']}"
    where = f"the first node of {environment['SLURM_STEP_NODELIST']}"
    # JAX gives each task one GPU, even where it is alone on its node; [] stands for all of them.
    devices: list[int] | None = None if shares_gpus(environment) else []
    return _detected("slurm", who, where, local_device_ids=devices)


def shares_gpus(environment: Mapping[str, str]) -> bool:
    """Whether several tasks share this node and see the same GPUs."""
    on_each = re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    return set(on_each) != {"1"} and (not seen or "," in seen)


def _tpu_hosts(environment: Mapping[str, str]) -> str:
    """The hosts of a TPU slice, as GKE, JobSet and XPK name them."""
    names = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return next((environment[name] for name in names if environment.get(name)), "")


def _indexed_job(environment: Mapping[str, str]) -> Place | None:
    """Of a Kubernetes job without TPUs: its manifest sets the first two, Kubernetes the third."""
    names = "JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_COUNT", "JOB_COMPLETION_INDEX"
    if any(name not in environment for name in names):
        return None
    address, count, index = (environment[name] for name in names)
    return _numbered(address, _whole(names[1], count), _whole(names[2], index))


def _has_tpu() -> bool:
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(file.read_text().strip() == GOOGLE for file in vendors)


def _check(asked: Distributed) -> float:
    """Raises UserError; returns the time limit in seconds."""
    if asked.method not in METHODS:
        raise UserError(f"--distributed={asked.method} is unknown; there are {', '.join(METHODS)}")
    try:
        limit = float(asked.join_timeout)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 2**31:  # JAX takes 32 bits
        raise UserError(f"--join_timeout={asked.join_timeout} must be a number of seconds above 0")
    given = [name for name, value in asked.flags.items() if value]
    missing = [f"--{name}" for name in asked.flags if name not in given]
    if given and asked.method not in ("auto", "flags"):
        raise UserError(
            f"--{given[0]} sets by hand what --distributed={asked.method} finds out; give one of "
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


def _by_flags(asked: Distributed) -> Place | None:
    match = re.fullmatch(r".+:(\d{1,5})", asked.coordinator)
    if not match or not 0 < int(match[1]) < 2**16:
        raise UserError(f"--coordinator={asked.coordinator} must be HOST:PORT, such as host-0:8476")
    count, index = (_whole(f"--{name}", asked.flags[name]) for name in OPTIONS[2:4])
    if count < 1:
        raise UserError("--process_count=0 must be 1 or more")
    if index >= count:
        raise UserError(
            f"--process_index={index} must be from 0 to {count - 1}, as --process_count={count}"
        )
    return _numbered(asked.coordinator, count, index)


def _numbered(address: str, count: int, index: int) -> Place | None:
    arguments = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
    return Place(f"process {index} of {count}", address, arguments) if count > 1 else None


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text):
        raise UserError(f"{name}={text} must be a whole number")
    return int(text)
