"""launch/slurm.sh and the job that it submits."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import Cloud, reads_only

STAGE = ["--", "--stage=grpo", "--workdir=/shared/runs/one", "--odd=a 'b' $c"]
JOB = ["submit", "--name=run1", "--nodes=2", "--gpus=4", "--time=24:00:00", "--yes"]


def set_up(cloud: Cloud) -> None:
    assert cloud.run("slurm.sh", "setup").status == 0


def run_job(
    cloud: Cloud, *, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What Slurm would do with what was submitted: run a copy of the script."""
    cloud.scenario(run={"status": status})
    (submitted,) = cloud.calls("sbatch")
    end = next(i for i, word in enumerate(submitted[1:], 1) if not word.startswith("--"))
    copy = cloud.folder / "slurm_script"
    copy.write_text(Path(submitted[end]).read_text())
    slurm = {"SLURM_JOB_ID": "41", "SLURM_JOB_NAME": "run1", "SLURM_NTASKS": "8"}
    return subprocess.run(
        ["bash", str(copy), *submitted[end + 1 :]],
        env=cloud.environment() | slurm | environment,
        cwd=cloud.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_job_is_set_up_submitted_and_left_alone(cloud: Cloud) -> None:
    missing = cloud.run("slurm.sh", *JOB, *STAGE)
    assert missing.status == 2 and "slurm.sh setup" in missing.error
    set_up(cloud)
    assert any(call[-1].endswith("[cuda]") for call in cloud.calls("python"))
    result = cloud.run("slurm.sh", *JOB, "--partition=gpu", "--gpu-type=h100", *STAGE)
    assert result.status == 0, result.err
    (submitted,) = cloud.calls("sbatch")
    assert {
        "--job-name=run1",
        "--nodes=2",
        "--gpus-per-node=h100:4",
        "--ntasks-per-node=4",
        "--requeue",
        "--signal=TERM@120",
        "--partition=gpu",
    } <= set(submitted)
    assert submitted[-3:] == STAGE[1:]
    again = cloud.run("slurm.sh", *JOB, *STAGE)
    assert again.status == 0 and "there already: 41 RUNNING" in again.out
    assert len(cloud.calls("sbatch")) == 1


def test_one_process_for_a_node(cloud: Cloud) -> None:
    set_up(cloud)
    result = cloud.run("slurm.sh", *JOB, "--processes=node", "--dry-run", *STAGE)
    assert "--gpus-per-node=4 --ntasks-per-node=1" in result.out
    assert reads_only(cloud.calls("squeue") + cloud.calls("sbatch"))


def test_the_job_runs_on_all_tasks_with_its_secrets(cloud: Cloud) -> None:
    set_up(cloud)
    assert cloud.run("slurm.sh", *JOB, f"--env-file={cloud.secrets()}", *STAGE).status == 0
    done = run_job(cloud)
    assert done.returncode == 0, done.stderr
    (step,) = cloud.calls("srun")
    assert step[-5:] == ["--join_timeout=1800", "--distributed=slurm", *STAGE[1:]]
    assert "running" in done.stdout and done.stdout.rstrip().count("True") == 1
    assert "hf_very_secret_value" not in (cloud.folder / "calls.jsonl").read_text()
    assert cloud.calls("scontrol") == []


def test_a_job_that_was_interrupted_queues_itself_again(cloud: Cloud) -> None:
    set_up(cloud)
    cloud.run("slurm.sh", *JOB, "--restarts=3", *STAGE)
    assert run_job(cloud, status=143).returncode == 0
    assert cloud.calls("scontrol") == [["scontrol", "requeue", "41"]]
    last = run_job(cloud, status=143, SLURM_RESTART_COUNT="3")
    assert last.returncode == 143 and "which is the limit" in last.stderr
    assert run_job(cloud, status=2).returncode == 2
    assert len(cloud.calls("scontrol")) == 1


@pytest.mark.parametrize("status", [3, 134])  # another process is gone, noticed by us or by JAX
def test_a_job_that_lost_a_process_goes_on_unless_it_always_does(cloud: Cloud, status: int) -> None:
    set_up(cloud)
    cloud.run("slurm.sh", *JOB, *STAGE)
    for ending in (status, status, 143, status, status):
        assert run_job(cloud, status=ending).returncode == 0
    assert cloud.calls("scontrol") == [["scontrol", "requeue", "41"]] * 5
    last = run_job(cloud, status=status)
    assert last.returncode == status and "lost 3 times in a row" in last.stderr
    assert len(cloud.calls("scontrol")) == 5


def test_a_job_of_which_one_task_failed_is_not_queued_again(cloud: Cloud) -> None:
    """srun returns the highest status: that of the tasks which JAX aborted for it."""
    set_up(cloud)
    cloud.run("slurm.sh", *JOB, *STAGE)
    srun = cloud.folder / "bin" / "srun"
    srun.write_text('#!/usr/bin/env bash\nshift 2\nSTATUS=2 "$@"\nSTATUS=134 "$@"\nexit 134\n')
    cloud.replace_python('#!/usr/bin/env bash\nexit "$STATUS"\n')
    assert run_job(cloud).returncode == 2
    assert cloud.calls("scontrol") == []


def test_processors_of_a_process_reach_the_step(cloud: Cloud) -> None:
    set_up(cloud)
    cloud.run("slurm.sh", *JOB, "--cpus=12", *STAGE)
    assert "--cpus-per-task=12" in cloud.calls("sbatch")[0]
    cloud.replace_python('#!/usr/bin/env bash\necho "processors: ${SRUN_CPUS_PER_TASK-unsaid}"\n')
    assert "processors: 12" in run_job(cloud, SLURM_CPUS_PER_TASK="12").stdout
    assert "processors: unsaid" in run_job(cloud).stdout


def test_a_cancelled_job_saves_and_does_not_come_back(cloud: Cloud) -> None:
    set_up(cloud)
    cloud.run("slurm.sh", *JOB, *STAGE)
    # While it runs: the step is told, and saves.
    cancel = [cloud.checkout / "launch/slurm.sh", "cancel", "--name=run1", "--yes"]
    cloud.replace_python(f"#!/usr/bin/env bash\n{shlex.join(map(str, cancel))}\nexit 143\n")
    ended = run_job(cloud)
    assert ended.returncode == 0 and cloud.calls("scontrol") == [], ended.stderr
    assert cloud.calls("scancel") == [["scancel", "--signal=TERM", "41"]]
    gone = cloud.run("slurm.sh", "cancel", "--name=run1", "--yes")
    assert gone.status == 0 and "nothing to cancel" in gone.out


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "COMPLETING", "REQUEUED"])
def test_a_job_that_waits_is_cancelled_at_once(cloud: Cloud, state: str) -> None:
    set_up(cloud)
    cloud.scenario(job=state)
    cloud.run("slurm.sh", *JOB, *STAGE)
    assert f"41 {state}" in cloud.run("slurm.sh", "status", "--name=run1").out
    assert cloud.run("slurm.sh", "cancel", "--name=run1", "--yes").status == 0
    assert cloud.calls("scancel") == [["scancel", "41"]]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_cancelled_job_whose_processes_start_just_then_ends(cloud: Cloud, state: str) -> None:
    set_up(cloud)
    cloud.scenario(job=state)
    cloud.run("slurm.sh", *JOB, *STAGE)
    assert cloud.run("slurm.sh", "cancel", "--name=run1", "--yes").status == 0
    ended = run_job(cloud)
    assert ended.returncode == 0 and cloud.calls("scontrol") == [], ended.stderr
    assert not any("rmr1_jax.main" in call for call in cloud.calls("python"))


@pytest.mark.parametrize("step", ["-m venv", "-m pip", "squeue", "sbatch"])
def test_a_step_fails_and_the_same_command_completes(cloud: Cloud, step: str) -> None:
    for command in (["setup"], [*JOB, *STAGE]):
        result = cloud.run("slurm.sh", *command, fail=step)
        if result.status:
            break
    assert result.status == 1 and "broken on purpose" in result.error
    assert "run again: " in result.error and "slurm.sh" in result.error
    set_up(cloud)
    assert cloud.run("slurm.sh", *JOB, *STAGE).status == 0
    assert sum("venv" in call for call in cloud.calls("python3.12")) == 1 + (step == "-m venv")
    assert len(cloud.calls("sbatch")) == 1 + (step == "sbatch")


def test_logs_are_those_of_the_newest_job(cloud: Cloud) -> None:
    none = cloud.run("slurm.sh", "logs", "--name=run1")
    assert none.status == 2 and "no log of run1" in none.error
    folder = cloud.checkout / "runs/slurm"
    folder.mkdir(parents=True)
    (folder / "run1-41.log").write_text("old\n")
    (folder / "run1-42.log").write_text("step 7\n")
    assert "step 7" in cloud.run("slurm.sh", "logs", "--name=run1").out


def test_away_from_a_cluster(cloud: Cloud) -> None:
    cloud.absent |= {"squeue", "sbatch"}
    result = cloud.run("slurm.sh", *JOB, *STAGE)
    assert result.status == 2 and "on a login node" in result.error
    dry = cloud.run("slurm.sh", *JOB, "--dry-run", *STAGE)
    assert dry.status == 0 and "+ sbatch --job-name=run1" in dry.out
    assert not (cloud.checkout / "runs").exists()


def test_nothing_is_queued_unasked(cloud: Cloud) -> None:
    set_up(cloud)
    result = cloud.run("slurm.sh", *JOB[:-1], *STAGE)
    assert result.status == 2 and "add --yes" in result.error and cloud.calls("sbatch") == []
