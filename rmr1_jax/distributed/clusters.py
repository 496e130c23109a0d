"""Where the environment says that this process has its place: Slurm, GKE, a TPU's metadata.

JAX reads most of it; which of them is meant, and what is wrong with it, are said here.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmr1_jax.distributed.rendezvous import Address
from rmr1_jax.errors import MissingProcessError, UserError


@dataclass(frozen=True)
class Place:
    """One process among others: where the first is, how many they are, and which this one is."""

    coordinator: Address
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None  # None: all of this machine's


ALONE = Place(Address("localhost", 0), 1, 0)


def by_environment(method: str, limit: float) -> Place | None:
    """What the environment says; None where `auto` finds nothing.

    Raises MissingProcessError where the first process' host has no address within `limit` seconds,
    UserError where what is said cannot be used.
    """
    looked_for = {
        "auto": (_slurm, _gke, _tpu_if_any),
        "slurm": (_slurm,),
        "gke": (_gke,),
        "tpu": (_gke_tpu, _tpu),
    }[method]
    for look in looked_for:
        try:
            place = look(limit)
        except UserError:
            raise
        except Exception as error:  # of whatever reads metadata: networks, files, numbers
            raise UserError(
                f"--distributed={method}: what the environment says cannot be used "
                f"({type(error).__name__}: {error}); mend it, say it with {FLAGS}, or start "
                "with --distributed=off for one process"
            ) from error
        if place is not None:
            return place
    if method == "auto":
        return None
    raise UserError(f"--distributed={method}: {ABSENT[method]}; or say it with {FLAGS}")


GOOGLE = "0x1ae0"  # as a maker of PCI devices
FLAGS = "--coordinator, --process_count and --process_index"
ABSENT = {
    "slurm": "this was not started by srun (SLURM_PROCID, SLURM_STEP_NODELIST and others are not "
    "set); start it with srun",
    "gke": "neither TPU_WORKER_HOSTNAMES (of a TPU pod) nor JAX_COORDINATOR_ADDRESS, "
    "JAX_PROCESS_COUNT and JOB_COMPLETION_INDEX (of an indexed job) are set",
    "tpu": "no TPU with metadata was found on this machine, or libtpu is not installed",
}


def _slurm(limit: float) -> Place | None:
    if (tasks := slurm_tasks(os.environ)) < 2:
        return ALONE if tasks else None
    from jax._src.clusters.slurm_cluster import SlurmCluster

    return _of_cluster(SlurmCluster, limit, slurm_devices(os.environ))


def slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step that this process is one of; 0 outside of one."""
    names = "JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"
    if any(f"SLURM_{name}" not in environment for name in names):
        return 0
    return int(environment["SLURM_NTASKS"])


def slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """One GPU each where several tasks share a node and see the same GPUs; else all.

    JAX gives each task the one with its local number, even where it is alone on the node.
    """
    on_each = re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    if set(on_each) == {"1"} or (seen and "," not in seen):
        return None
    return (int(environment["SLURM_LOCALID"]),)


def _gke(limit: float) -> Place | None:
    return _gke_tpu(limit) or _indexed_job(os.environ)


def _gke_tpu(limit: float) -> Place | None:
    names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH")
    given = [os.environ[name] for name in names if os.environ.get(name)]
    if not given:
        return None
    if given == ["localhost"] and "MEGASCALE_NUM_SLICES" not in os.environ:
        # One machine. JAX would ask a metadata server for slices, and not every machine has one.
        return ALONE
    from jax._src.clusters.cloud_tpu_cluster import GkeTpuCluster

    return _of_cluster(GkeTpuCluster, limit, None)


def _tpu(limit: float) -> Place | None:
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    return _of_cluster(GceTpuCluster, limit, None)


def _tpu_if_any(limit: float) -> Place | None:
    """The same, without jax where there is none; and where there is no metadata server."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if not any(file.read_text().strip() == GOOGLE for file in vendors):
        return None
    try:
        return _tpu(limit)
    except OSError:  # what requests raises is one
        return None


def _of_cluster(kind: Any, limit: float, devices: tuple[int, ...] | None) -> Place | None:
    """A place from what JAX reads."""
    if not kind.is_env_present():
        return None
    count = int(kind.get_process_count())
    if count == 1:
        return ALONE
    port = os.environ.get("JAX_COORDINATOR_PORT")
    try:
        address = kind.get_coordinator_address(
            timeout_secs=math.ceil(limit), override_coordinator_port=port
        )
    except RuntimeError as error:  # a pod has a name when it runs
        raise MissingProcessError(
            f"the host of process 0 has no address after {limit:g} s ({error}). Check that it was "
            "started; --join_timeout waits longer"
        ) from error
    return Place(Address.parse(address), count, int(kind.get_process_id()), devices)


def _indexed_job(environment: Mapping[str, str]) -> Place | None:
    """Of a Kubernetes job without TPUs: its manifest sets the first two, Kubernetes the third."""
    names = "JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_COUNT", "JOB_COMPLETION_INDEX"
    if any(name not in environment for name in names):
        return None
    address, count, index = (environment[name] for name in names)
    return Place(Address.parse(address), int(count), int(index))
