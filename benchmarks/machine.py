"""The machine: its cores, and whether the benchmark has them for itself."""

import os
import platform
import sys
import time
from pathlib import Path

import jax
import torch
from transformers.utils import logging as transformers_logging

from rmr1_jax.errors import UserError
from rmr1_jax.main import quiet_libraries


def cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Give both engines so many threads; XLA takes one for each core that it may use."""
    if threads < cores():
        if sys.platform != "linux":
            raise UserError(f"--threads below {cores()} is possible on Linux only")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    # torch runs on the CPU here, and so does what it is compared with.
    jax.config.update("jax_platforms", "cpu")


def prepare_process(threads: int) -> None:
    """Of a benchmark that holds both engines: quiet libraries, so many threads for each, and no
    programs kept from earlier runs, which would make a first call look like a later one."""
    quiet_libraries()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    jax.config.update("jax_enable_compilation_cache", False)
    limit_threads(threads)


def processor() -> str:
    """Its name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class OtherLoad:
    """Measures, from its making on, how many cores all other processes keep busy."""

    def __init__(self) -> None:
        self.start, self.others = time.perf_counter(), _others_seconds()

    def cores(self) -> float | None:
        """Averaged over the time; None where the system does not tell."""
        now = _others_seconds()
        if now is None or self.others is None:
            return None
        return max(now - self.others, 0.0) / (time.perf_counter() - self.start)


def _others_seconds() -> float | None:
    """Core-seconds that were used by others since the machine started, plus a constant."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal, in ticks; the rest is counted in these.
    ticks = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()
