"""Several JAX processes on one machine, as a pod slice has them, on simulated CPU devices."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
# The devices are looked for at once, so that nothing that the script imports can change how many.
BEGIN = "import jax; {join}jax.devices()\n"
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
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(REPOSITORY),
        **(environment or {}),
    }
    with TemporaryDirectory() as directory:
        # Files, not pipes: a full pipe would hold up one process, and with it all others.
        paths = [Path(directory) / str(index) for index in range(count)]
        running = []
        for index, path in enumerate(paths):
            join = JOIN.format(address=address, count=count, index=index) if count > 1 else ""
            with (
                path.with_suffix(".out").open("w") as out,
                path.with_suffix(".err").open("w") as err,
            ):
                begin = BEGIN.format(join=join)
                command = [sys.executable, "-c", begin + script, *arguments]
                running.append(
                    subprocess.Popen(command, env=variables, cwd=REPOSITORY, stdout=out, stderr=err)
                )
        _wait(running, time.monotonic() + timeout)
        for process, path in zip(running, paths, strict=True):
            errors = path.with_suffix(".err").read_text()[-4000:]
            assert process.returncode == 0, f"process {path.name}: {process.returncode}\n{errors}"
        return [path.with_suffix(".out").read_text() for path in paths]


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
