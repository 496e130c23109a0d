"""What linters say of launch/, and what its scripts say of themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import REPOSITORY, Cloud

LAUNCH = REPOSITORY / "launch"
SOURCED = {"lib.sh", "tpu_vm/slice.sh", "tpu_vm/workers.sh"}
SCRIPTS = sorted(str(file.relative_to(LAUNCH)) for file in LAUNCH.rglob("*.sh"))
COMMANDS = [each for each in SCRIPTS if each not in SOURCED]
BIN = Path(sys.executable).parent
DOCKERFILES = sorted((LAUNCH / "docker").glob("Dockerfile.*"))


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        [BIN / "shellcheck", "--external-sources", *SCRIPTS, "slurm.sbatch", "--source-path=.."],
        cwd=LAUNCH,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", *DOCKERFILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_pinned_and_not_roots(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.search(r"^FROM python:3\.\d+\.\d+-[\w-]+$", text, re.MULTILINE)
    assert re.search(r"^USER \$USER_ID$", text, re.MULTILINE)
    assert int(re.findall(r"^ARG USER_ID=(\d+)$", text, re.MULTILINE)[0]) > 0
    assert not re.search(r"TOKEN|KEY|PASSWORD|SECRET", text)
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    kept = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in " ".join(copied).split():
        assert (REPOSITORY / name).exists() and f"!{name}" in kept


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_keeps_its_caches_where_its_user_may_write(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    [owned] = re.findall(r'chown "\$USER_ID" (.*)$', text, re.MULTILINE)
    for name in ("RMR1_JAX_CACHE", "HF_HOME"):
        [place] = re.findall(rf"\b{name}=(\S+)", text)
        assert any(Path(place).is_relative_to(folder) for folder in owned.split())


@pytest.mark.parametrize("script", COMMANDS)
def test_a_script_explains_itself(cloud: Cloud, script: str) -> None:
    assert (LAUNCH / script).stat().st_mode & 0o111
    result = cloud.run(script, "--help")
    assert result.status == 0 and result.err == "" and cloud.calls() == []
    assert not any(line.startswith("#") for line in result.out.splitlines())
    if script == "tpu_vm/worker.sh":  # for tpu_vm.sh, not for people
        return
    text = (LAUNCH / script).read_text(encoding="utf-8")
    options = {name.replace("_", "-") for name in re.findall(r"\bopt_(\w+)=", text)}
    options |= {"dry-run", "settings"}
    explained = set(re.findall(r"--([a-z][a-z-]*)", result.out))
    assert options <= explained, "options that --help does not name"
    unknown = cloud.run(script, "--bogus")
    assert unknown.status == 2 and "there is no option --bogus" in unknown.error


@pytest.mark.parametrize("script", [each for each in COMMANDS if "docker" not in each])
def test_without_a_command_the_help_is_shown(cloud: Cloud, script: str) -> None:
    result = cloud.run(script)
    assert "Commands, each of which" in result.out or "setup MOUNT" in result.out
