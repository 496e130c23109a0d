"""launch/local.sh and launch/docker/build.sh."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import Cloud, reads_only

STAGE = ["--", "--stage=sft", "--odd=a 'b' $c"]
# Notes its signals, a line each after the one that says whether SIGINT was Python's at the start;
# ends a second after the first, unless it is stubborn.
NOTING = f"""#!{sys.executable} -IS
import os, signal, sys, time
index = next(word for word in sys.argv if word.startswith("--process_index="))[-1]
notes, seen = open(os.environ["FAKE"] + "/signals." + index, "a", buffering=1), []
print(signal.getsignal(signal.SIGINT) == signal.default_int_handler, file=notes)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: seen.append(print(number, file=notes) or number))
until = time.monotonic() + 60  # it shall not stay behind
while (not seen or "STUBBORN" in os.environ) and time.monotonic() < until:
    time.sleep(0.05)
time.sleep(1)
sys.exit(128 + seen[0])
"""
IMAGE = "--image=registry.example/rmr1_jax:v1"


def runs(cloud: Cloud) -> list[list[str]]:
    calls = cloud.calls("python")
    return [call[3:] for call in calls if call[1:3] == ["-m", "rmr1_jax.main"]]


def test_a_run_installs_once_and_hands_its_status_on(cloud: Cloud) -> None:
    cloud.scenario(run={"status": 2})
    secrets = f"--env-file={cloud.secrets()}"
    result = cloud.run("local.sh", "run", "--device=cuda", secrets, *STAGE)
    assert result.status == 2 and result.out.rstrip().endswith("True")
    cloud.scenario()
    assert cloud.run("local.sh", "run", "--device=cuda", *STAGE).status == 0
    assert runs(cloud) == [STAGE[1:]] * 2
    installs = [call[-1] for call in cloud.calls("python") if "pip" in call]
    assert installs == [f"{cloud.checkout}[cuda]"]
    assert cloud.run("local.sh", "setup", "--device=tpu").status == 0  # another extra
    assert sum("pip" in call for call in cloud.calls("python")) == 2


@pytest.mark.parametrize(
    ("driver", "options", "extra"),
    [
        ("echo 535.183.01", [], "[cuda12]"),
        ("echo 580.95.05; echo 580.95.05", [], "[cuda]"),
        ("echo no devices were found; exit 6", [], "[cuda]"),
        ("echo 535.183.01", ["--cuda=13"], "[cuda]"),
        ("echo 580.95.05", ["--cuda=12"], "[cuda12]"),
    ],
)
@pytest.mark.parametrize("script", [["local.sh", "setup", "--device=cuda"], ["slurm.sh", "setup"]])
def test_the_driver_says_which_cuda_is_installed(
    cloud: Cloud, script: list[str], driver: str, options: list[str], extra: str
) -> None:
    cloud.add("nvidia-smi", driver)
    result = cloud.run(*script, *options)
    assert result.status == 0, result.err
    (installed,) = [call[-1] for call in cloud.calls("python") if "pip" in call]
    assert installed == f"{cloud.checkout}{extra}"
    assert ("too old for CUDA 13" in result.out) == (extra == "[cuda12]" and not options)


def test_several_processes_find_each_other_by_flags(cloud: Cloud) -> None:
    result = cloud.run("local.sh", "run", "--device=cuda", "--processes=2", "--gpus=4", *STAGE)
    assert result.status == 0, result.err
    common = ["--coordinator=127.0.0.1:12321", "--process_count=2"]
    expected = [[*common, f"--process_index={index}", *STAGE[1:]] for index in (0, 1)]
    assert sorted(runs(cloud)) == expected
    assert "env CUDA_VISIBLE_DEVICES=2,3 " in result.out
    assert "running" in (cloud.checkout / "runs/logs/process_1.log").read_text()


def test_a_signal_reaches_every_process(cloud: Cloud) -> None:
    cloud.scenario(run={"waits": True})
    script = cloud.checkout / "launch/local.sh"
    process = subprocess.Popen(
        [str(script), "run", "--device=cpu", "--processes=2", *STAGE],
        env=cloud.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = cloud.checkout / "runs/logs/process_1.log"
    while process.poll() is None and not (
        len(runs(cloud)) == 2 and log.exists() and "waiting" in log.read_text()
    ):
        time.sleep(0.1)
    time.sleep(1)  # the first writes where nobody reads
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "process 1 ended with status 143" in err


def start_in_terminal(cloud: Cloud, **environment: str) -> "subprocess.Popen[str]":
    """Two processes that note their signals, begun by a process group as a terminal has it."""
    assert cloud.run("local.sh", "setup", "--device=cpu").status == 0
    cloud.replace_python(NOTING)
    process = subprocess.Popen(
        [cloud.checkout / "launch/local.sh", "run", "--device=cpu", "--processes=2", *STAGE],
        env=cloud.environment() | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_notes(cloud, ["True"])
    return process


def wait_for_notes(cloud: Cloud, notes: list[str]) -> None:
    """Until both processes have noted just that; fails after a while."""
    files = [cloud.folder / f"signals.{index}" for index in (0, 1)]
    for _ in range(300):
        found = [file.read_text().split() for file in files if file.exists()]
        if found == [notes] * 2:
            return
        time.sleep(0.1)
    raise AssertionError(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_terminals_group_reaches_each_process_once(
    cloud: Cloud, number: signal.Signals
) -> None:
    process = start_in_terminal(cloud)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    status = 128 + number
    assert process.returncode == status and f"process 1 ended with status {status}" in err
    wait_for_notes(cloud, ["True", str(int(number))])


def test_a_second_interrupt_ends_a_run_that_does_not_stop(cloud: Cloud) -> None:
    process = start_in_terminal(cloud, STUBBORN="yes")
    os.killpg(process.pid, signal.SIGINT)
    wait_for_notes(cloud, ["True", "2"])
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137 and "process 1 ended with status 137" in err


@pytest.mark.parametrize("step", ["-m venv", "-m pip"])
def test_a_step_fails_and_the_same_command_completes(cloud: Cloud, step: str) -> None:
    result = cloud.run("local.sh", "setup", "--device=cpu", fail=step)
    assert result.status == 1 and "broken on purpose" in result.error
    assert "local.sh setup --device=cpu" in result.error
    assert cloud.run("local.sh", "setup", "--device=cpu").status == 0
    assert "set up already" in cloud.run("local.sh", "setup", "--device=cpu").out


def test_a_dry_run_changes_nothing(cloud: Cloud) -> None:
    result = cloud.run("local.sh", "run", "--device=cpu", "--processes=2", "--dry-run", *STAGE)
    assert result.status == 0 and reads_only(cloud.calls())
    assert "-m pip install" in result.out and "env JAX_PLATFORMS=cpu" in result.out
    assert not (cloud.checkout / ".venv").exists() and not (cloud.checkout / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--device=VALUE is missing"),
        (["--device=gpu"], "cpu, cuda or tpu"),
        (["--device=cuda", "--cuda=11"], "--cuda=11: 12 or 13"),
        (["--device=tpu", "--processes=2"], "belong to one process"),
        (["--device=cuda", "--processes=3"], "cannot be shared"),
        (["--device=cpu", "--env-file=absent"], "there is no such file"),
    ],
)
def test_mistakes_are_said(cloud: Cloud, options: list[str], message: str) -> None:
    result = cloud.run("local.sh", "run", *options, *STAGE)
    assert result.status == 2 and message in result.error and cloud.calls() == []


def test_secrets_that_others_can_read_or_that_are_typed_are_refused(cloud: Cloud) -> None:
    result = cloud.run(
        "local.sh", "run", "--device=cpu", f"--env-file={cloud.secrets(mode=0o644)}", *STAGE
    )
    assert result.status == 2 and "chmod 600" in result.error
    secrets = f"--env-file={cloud.secrets()}"
    typed = cloud.run(
        "local.sh", "run", "--device=cpu", secrets, *STAGE, "--key=hf_very_secret_value"
    )
    assert typed.status == 2 and "the value of HF_TOKEN" in typed.error
    assert "hf_very" not in typed.err
    broken = f"--env-file={cloud.secrets('export HF_TOKEN=x')}"
    result = cloud.run("local.sh", "run", "--device=cpu", broken, *STAGE)
    assert result.status == 2 and "line 1: NAME=VALUE is expected" in result.error


def test_an_image_is_built_and_pushed_once(cloud: Cloud) -> None:
    build = ["--for=tpu", IMAGE, "--push", "--yes"]
    assert cloud.run("docker/build.sh", *build).status == 0
    assert [call[1] for call in cloud.calls("docker")] == ["manifest", "build", "push"]
    assert f"--file={cloud.checkout}/launch/docker/Dockerfile.tpu" in cloud.calls("docker")[1]
    again = cloud.run("docker/build.sh", *build)
    assert again.status == 0 and "in its registry already" in again.out
    assert len(cloud.calls("docker")) == 4


@pytest.mark.parametrize(("number", "what"), [(2, "building the image"), (3, "pushing the image")])
def test_an_image_fails_and_the_same_command_completes(
    cloud: Cloud, number: int, what: str
) -> None:
    build = ["--for=cuda", IMAGE, "--push", "--yes"]
    result = cloud.run("docker/build.sh", *build, fail=number)
    assert result.status == 1 and what in result.error and "run again: " in result.error
    assert cloud.run("docker/build.sh", *build).status == 0


def test_building_needs_a_tag_and_docker(cloud: Cloud) -> None:
    latest = cloud.run("docker/build.sh", "--for=tpu", "--image=rmr1_jax:latest")
    assert latest.status == 2 and "a tag other than latest" in latest.error
    cloud.absent.add("docker")
    assert "docker is not installed" in cloud.run("docker/build.sh", "--for=tpu", IMAGE).error
    dry = cloud.run("docker/build.sh", "--for=tpu", IMAGE, "--push", "--dry-run")
    assert dry.status == 0 and "+ docker push" in dry.out and reads_only(cloud.calls())
