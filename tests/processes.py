"""Several JAX processes on one machine, as a pod slice has them, on simulated CPU devices."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGABRT
from tempfile import TemporaryDirectory

from rmr1_jax.main import CACHE_VARIABLE

REPOSITORY = Path(__file__).resolve().parent.parent
# The devices are looked for at once, so that nothing that the script imports can change how many.
BEGIN = "import jax; {join}jax.devices()\n"
MAIN = "import sys; from rmr1_jax.main import main; sys.exit(main(sys.argv[1:]))"
# Process {process} meets signal {number} when it calls a method for the {call}-th time.
MEETS_SIGNAL = """
import os, pkgutil, sys
import jax
from rmr1_jax.distributed import rendezvous
from rmr1_jax.main import main

rendezvous.HEARTBEAT_SECONDS = 20  # where no collective fails, this is how long the others wait

owner, calls = pkgutil.resolve_name({owner!r}), 0
method = getattr(owner, {method!r})

def signalled(*given, **options):
    global calls
    calls += 1
    if calls == {call} and jax.process_index() == {process}:
        os.kill(os.getpid(), {number:d})
    return method(*given, **options)

setattr(owner, {method!r}, signalled)
sys.exit(main(sys.argv[1:]))
"""
JOIN = "jax.distributed.initialize({address!r}, {count}, {index}); "


def run_processes(
    script: str,
    count: int,
    devices: int,
    *,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 600.0,
) -> list[str]:
    """Run `script` (Python source) in `count` processes of `devices` devices each, as one job.

    Each finds `jax.distributed` initialised, `arguments` in `sys.argv[1:]`, and the repository
    importable; one process alone is not distributed. Returns what each has printed. Where one
    fails, the others are ended, since they would wait for it, and AssertionError shows its errors.
    """
    address = free_address()
    variables = _variables(devices, environment)
    with TemporaryDirectory() as directory:
        # Files, not pipes: a full pipe would hold up one process, and with it all others.
        paths = [Path(directory) / str(index) for index in range(count)]
        running = []
        for index, path in enumerate(paths):
            join = JOIN.format(address=address, count=count, index=index) if count > 1 else ""
            running.append(_start(BEGIN.format(join=join) + script, arguments, variables, path))
        _wait(running, time.monotonic() + timeout)
        for process, path in zip(running, paths, strict=True):
            errors = path.with_suffix(".err").read_text()[-4000:]
            assert process.returncode == 0, f"process {path.name}: {process.returncode}\n{errors}"
        return [path.with_suffix(".out").read_text() for path in paths]


LOST_ANOTHER = (3, -SIGABRT)
"""How a process ends that has lost another: with a line of ours, or aborted by JAX."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (minus the signal that killed it), what it wrote."""

    status: int
    out: str
    err: str


def meets_signal(number: int, process: int, *, call: int, of: str) -> str:
    """A script for `run_job`: one process meets a signal as it calls a method, `module:Class.name`,
    for the `call`-th time."""
    owner, _, method = of.rpartition(".")
    return MEETS_SIGNAL.format(
        number=number, process=process, call=call, owner=owner, method=method
    )


def run_job(
    arguments: Sequence[str],
    count: int,
    devices: int,
    *,
    script: str = MAIN,
    only: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
    address: str | None = None,
    timeout: float = 300.0,
) -> list[Ended]:
    """The command line in `count` processes of `devices` devices each, started by flags.

    Unlike `run_processes` nothing is done for them, and they end by themselves, however one of them
    ends. Those that have not after `timeout` seconds are killed, and AssertionError says so.

    Args:
      arguments: of the command line.
      script: Python source, which runs `rmr1_jax.main` and may do something before.
      only: the processes that are started at all.
      address: of the coordinator; by default a free one.
    """
    address, variables = address or free_address(), _variables(devices, environment)
    flags = [f"--coordinator={address}", f"--process_count={count}"]
    with TemporaryDirectory() as directory:
        paths = [Path(directory) / str(index) for index in (range(count) if only is None else only)]
        running = []
        for path in paths:
            given = [*arguments, *flags, f"--process_index={path.name}"]
            running.append(_start(script, given, variables, path))
        late: list[str] = []
        until = time.monotonic() + timeout
        try:
            for process, path in zip(running, paths, strict=True):
                try:
                    process.wait(max(until - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    late.append(path.name)
                    process.kill()
                    process.wait()
        finally:
            for process in running:  # none stays behind where the tests are interrupted
                process.kill()
        ended = [
            Ended(process.returncode, *(path.with_suffix(s).read_text() for s in (".out", ".err")))
            for process, path in zip(running, paths, strict=True)
        ]
    errors = "\n".join(end.err[-2000:] for end in ended)
    assert not late, f"processes {', '.join(late)} did not end\n{errors}"
    return ended


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


def _variables(devices: int, environment: Mapping[str, str] | None) -> dict[str, str]:
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        # Compiling takes most of the time: only the first process may keep what it compiles.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "PYTHONPATH": str(REPOSITORY),
        **(environment or {}),
    }
    # As the command line does before it imports JAX; a script may import it before that.
    programs = variables.get(CACHE_VARIABLE) or str(REPOSITORY / ".cache" / "xla")
    variables["JAX_COMPILATION_CACHE_DIR"] = programs
    variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return variables


def _start(
    script: str, arguments: Sequence[str], variables: Mapping[str, str], path: Path
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", script, *arguments]
    with path.with_suffix(".out").open("w") as out, path.with_suffix(".err").open("w") as err:
        return subprocess.Popen(command, env=variables, cwd=REPOSITORY, stdout=out, stderr=err)


def _wait(running: Sequence[subprocess.Popen[bytes]], until: float) -> None:
    """Until all have ended, or one has failed, or time is up: then the others are killed."""
    try:
        while any(process.poll() is None for process in running):
            if any(process.returncode for process in running) or time.monotonic() > until:
                break
            time.sleep(0.05)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
