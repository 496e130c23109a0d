"""The benchmark's side: environments for the peers, and engines in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.grpo_peers.conversation import Job
from rmr1_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = Path(".cache/peers")
PEERS = {"trl": "TRL", "tunix": "Tunix"}
NAMES = {"ours": "rmr1_jax", **PEERS}
MARK = "installed.txt"
TAIL = 15  # lines of a log that a message shows


def pins(name: str) -> Path:
    """What is installed for a peer."""
    return Path(__file__).parent / f"{name}.txt"


def prepare(name: str) -> None:
    """Make a peer's environment, once: this Python, and the pinned packages from the registry."""
    directory, mark = ROOT / ENVIRONMENTS / name, ROOT / ENVIRONMENTS / name / MARK
    if mark.is_file() and mark.read_text() == pins(name).read_text():
        print(f"{directory} is there already", file=sys.stderr)
        return
    print(f"making {directory}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    python = str(directory / "bin" / "python")
    try:
        subprocess.run([python, *install, "--requirement", str(pins(name))], check=True)
    except subprocess.CalledProcessError as error:
        raise UserError(f"pip could not install {pins(name)}: see its message above") from error
    shutil.copyfile(pins(name), mark)


def interpreter(name: str) -> str:
    """The Python of an engine. Raises UserError where `--prepare` has not made it."""
    if name == "ours":
        return sys.executable
    directory = ROOT / ENVIRONMENTS / name
    mark = directory / MARK
    if not mark.is_file() or mark.read_text() != pins(name).read_text():
        raise UserError(
            f"{directory} does not hold what {pins(name)} names; run "
            "`python -m benchmarks.grpo_step --prepare` (several GB), or leave it out with --only"
        )
    return str(directory / "bin" / "python")


def command(name: str) -> list[str]:
    """What runs an engine. Raises UserError as `interpreter` does."""
    return [interpreter(name), "-m", f"benchmarks.grpo_peers.{name}_step"]


@dataclass(frozen=True)
class Step:
    """What an engine measured of one step."""

    seconds: float
    phases: dict[str, float]
    cpu_seconds: float
    peak_bytes: int


class Engine:
    """An engine in a process of its own, which waits while another one is measured."""

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.job = name, job
        self.log = ROOT / ENVIRONMENTS / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command(name),
                cwd=ROOT,
                env=surroundings(job.threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        self._say(job.to_json())
        self.versions: dict[str, str] = self._answer()

    def step(self) -> Step:
        """Take a step. Raises RuntimeError where responses are not as long as was asked."""
        self._say("step")
        answer = self._answer()
        found = answer.pop("lengths")
        if sorted(found) != sorted(length for group in self.job.lengths for length in group):
            raise RuntimeError(f"{self.name} made other lengths than were forced: {found}")
        return Step(**answer)

    def close(self) -> None:
        """End the process, at the latest after a while. May be called again."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # The answer that does not come says why.
            print(line, file=self._process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-TAIL:])
            raise RuntimeError(f"{self.name} ended before its answer; {self.log} ends with\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def surroundings(threads: int) -> dict[str, str]:
    """Variables of an engine's process: the CPU, its threads, no network."""
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
