"""A small checkout, and fake cloud tools on a PATH that holds no real ones."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_TOOL = Path(__file__).with_name("fake_tool.py")
# Without the site packages it starts in a third of the time.
TOOLS = (
    "gcloud kubectl xpk docker sbatch squeue scancel scontrol srun python3.12 mountpoint gcsfuse \
mount mount.nfs umount sudo chown"
)
BASICS = (
    "bash env cat chmod cksum cp cut date dirname find git grep gzip head hostname id mkdir mktemp \
mv nohup rm sed seq setsid sleep sort stat tail tar tee touch tr true wc xargs"
)


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@dataclass
class Cloud:
    """A checkout with `launch/`, the fakes, and what they were asked."""

    folder: Path
    absent: set[str] = field(default_factory=set)

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    def scenario(self, **what: Any) -> None:
        (self.folder / "scenario.json").write_text(json.dumps(what))

    def environment(self, fail: int | str = "") -> dict[str, str]:
        for name in self.absent:
            (self.folder / "bin" / name).unlink(missing_ok=True)
        return {
            "PATH": str(self.folder / "bin"),
            "HOME": str(self.folder / "home"),
            "FAKE": str(self.folder),
            "FAKE_FAIL": str(fail),
            "TMPDIR": str(self.folder / "tmp"),
        }

    def run(self, script: str, *arguments: str, fail: int | str = "") -> Result:
        done = subprocess.run(
            [str(self.checkout / "launch" / script), *arguments],
            env=self.environment(fail),
            cwd=self.checkout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def calls(self, tool: str = "", *, inside: bool | None = False) -> list[list[str]]:
        """What was called, each with the name of its tool; `inside` workers, or outside."""
        file = self.folder / "calls.jsonl"
        records = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        return [
            [record["tool"], *record["arguments"]]
            for record in records
            if tool in ("", record["tool"]) and inside in (None, record["inside"])
        ]

    def forget_calls(self) -> None:
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def add(self, tool: str, script: str) -> None:
        """One more tool on the PATH, by its lines of bash."""
        file = self.folder / "bin" / tool
        file.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        file.chmod(0o755)

    def replace_python(self, source: str) -> None:
        """Another program for that of the environment, which must have been set up."""
        (self.checkout / ".venv/bin/python").write_text(source, encoding="utf-8")

    def secrets(self, text: str = "HF_TOKEN=hf_very_secret_value\n", mode: int = 0o600) -> str:
        file = self.folder / "secrets.env"
        file.write_text(text)
        file.chmod(mode)
        return str(file)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    for name in ("bin", "home", "tmp", "checkout"):
        (tmp_path / name).mkdir()
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "launch", checkout / "launch")
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, checkout)
    source = f"#!{sys.executable} -IS\n{FAKE_TOOL.read_text(encoding='utf-8')}"
    for name in TOOLS.split():
        file = tmp_path / "bin" / name
        file.write_text(source, encoding="utf-8")
        file.chmod(0o755)
    for name in BASICS.split():
        real = shutil.which(name)
        assert real, f"{name} is missing"
        if not (tmp_path / "bin" / name).exists():
            os.symlink(real, tmp_path / "bin" / name)
    return Cloud(tmp_path)


def reads_only(calls: Sequence[Sequence[str]]) -> bool:
    words = {"list", "describe", "get", "config", "manifest", "logs"}
    return all(
        words & {*call} or call[0] == "squeue" or call[:2] == ["python3.12", "-c"] for call in calls
    )
