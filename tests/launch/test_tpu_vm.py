"""launch/tpu_vm.sh: from nothing to a finished run, through every failure on the way."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import split
from typing import Any

import pytest

from tests.launch.conftest import Cloud, Result, reads_only

SLICE = ["--name=run1", "--project=p", "--zone=z", "--poll=0"]
CREATE = ["--accelerator=v5e-16", "--capacity=spot"]
STAGE = ["--", "--stage=sft", "--workdir=/mnt/shared/runs/one", "--odd=a 'b' $c"]
UP = ["up", *SLICE, *CREATE, "--mount=gs://bucket/folder", "--yes"]
STEPS = ("create", "scp", "tar -xzf", "worker.sh setup", "worker.sh start")


def up(cloud: Cloud, *more: str, fail: int | str = "") -> Result:
    return cloud.run("tpu_vm.sh", *UP, *more, *STAGE, fail=fail)


def done(cloud: Cloud, step: str) -> int:
    return sum(step in " ".join(call) for call in cloud.calls("gcloud"))


def runs(cloud: Cloud, expected: int = 1) -> list[list[str]]:
    """The starts of a run; one that has just been started takes a moment to be seen."""
    for _ in range(600):
        calls = cloud.calls("python", inside=True)
        found = [call for call in calls if call[1:3] == ["-m", "rmr1_jax.main"]]
        if len(found) >= expected:
            break
        time.sleep(0.1)
    assert len(found) == expected
    return found


def some_nightly(first: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Parameters: the first ones for every run of the tests, the others for each night."""
    return [*first, *(pytest.param(each, marks=pytest.mark.nightly) for each in others)]


def test_up_makes_a_slice_and_runs_on_all_its_workers(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"workers": 2}])
    result = up(cloud)
    assert result.status == 0, result.err
    assert "the run is done" in result.out and "still there and costs money" in result.out
    (create,) = [call for call in cloud.calls("gcloud") if "create" in call]
    assert {
        "run1",
        "--project=p",
        "--zone=z",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-id=run1",
        "--spot",
    } <= set(create)
    expected = ["--join_timeout=1800", "--distributed=tpu", "--stage=sft"]
    expected += ["--workdir=/mnt/shared/runs/one"]
    assert [run[3:] for run in runs(cloud, 2)] == [[*expected, "--odd=a 'b' $c"]] * 2
    installs = [call for call in cloud.calls("python", inside=True) if "pip" in call]
    assert len(installs) == 2 and installs[0][-1].endswith("rmr1_jax[tpu]")
    (mount, _) = cloud.calls("gcsfuse", inside=True)
    assert mount[-2] == "bucket" and mount[mount.index("--only-dir") + 1] == "folder"


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ],
)
def test_each_generation_has_its_software(cloud: Cloud, accelerator: str, runtime: str) -> None:
    options = [*SLICE, f"--accelerator={accelerator}", "--capacity=reserved", "--slices=2"]
    result = cloud.run("tpu_vm.sh", "create", *options, "--dry-run")
    assert f"--runtime-version={runtime} --node-count=2 --node-prefix=run1 --reserved" in result.out


def failing_calls() -> range:
    """As many as `up` makes; test_every_call_can_fail says whether they still are."""
    return range(1, 15)


# Asked for, unpacked, started.
@pytest.mark.parametrize(
    "number", some_nightly([3, 10, 14], sorted({*failing_calls()} - {3, 10, 14}))
)
def test_a_call_fails_and_the_same_command_completes(cloud: Cloud, number: int) -> None:
    first = up(cloud, "--detach", fail=number)
    before = {step: done(cloud, step) for step in STEPS}
    broken = " ".join(cloud.calls("gcloud")[number - 1])
    patient = "worker.sh status" in broken or "tpu-vm list" in broken or number in (4, 5, 6)
    if patient:  # asked again
        assert first.status == 0
        return
    if "auth list" in broken:
        assert first.status == 2 and "gcloud auth login" in first.error
    else:
        assert first.status == 1
        assert "broken on purpose" in first.error and "exit status" in first.error
        assert "to go on, run again: " in first.error and "tpu_vm.sh up --name=run1" in first.error
    second = up(cloud, "--detach")
    assert second.status == 0, second.err
    for step in STEPS:
        repeated = 1 if step in broken or (step == "scp" and "tar -xzf" in broken) else 0
        assert done(cloud, step) - before[step] == (repeated if before[step] else 1), step
    assert runs(cloud)


def test_every_call_can_fail(cloud: Cloud) -> None:
    assert up(cloud, "--detach").status == 0
    assert len(cloud.calls("gcloud")) + 1 == failing_calls().stop


@pytest.mark.parametrize("step", some_nightly(["-m pip"], ["-m venv", "gcsfuse", "sudo mkdir"]))
def test_a_step_on_a_worker_fails_and_is_made_up_for(cloud: Cloud, step: str) -> None:
    result = up(cloud, "--detach", fail=step)
    assert result.status == 1 and "setting up the workers failed" in result.error
    assert up(cloud, "--detach").status == 0
    assert runs(cloud) and done(cloud, " scp ") == 1


def test_an_nfs_share_is_mounted_as_well(cloud: Cloud) -> None:
    assert up(cloud, "--mount=10.0.0.2:/share", "--detach").status == 0
    (mount,) = cloud.calls("mount", inside=True)
    assert mount[1:3] == ["-t", "nfs"] and mount[-2] == "10.0.0.2:/share"


@pytest.mark.parametrize("after", some_nightly(["SUSPENDED"], ["ACTIVE"]))
def test_a_slice_that_is_taken_away_is_made_again_and_the_run_goes_on(
    cloud: Cloud, after: str
) -> None:
    short = {"probes": 3, "after": after, "run": {"waits": True}}
    cloud.scenario(lives=[short, {"run": {"status": 0}}])
    result = up(cloud)
    assert result.status == 0, result.err
    assert "was taken away" in result.out
    actions = [call[4] for call in cloud.calls("gcloud") if call[4] in ("create", "delete")]
    assert actions == ["create", "delete", "create"]
    first, second = runs(cloud, 2)
    assert first == second


def test_a_slice_that_is_taken_away_before_it_was_reached_is_made_again(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"workers": 0}, {}])
    result = up(cloud)
    assert result.status == 0, result.err
    assert "was taken away, though its request is ACTIVE" in result.out
    actions = [call[4] for call in cloud.calls("gcloud") if call[4] in ("create", "delete")]
    assert actions == ["create", "delete", "create"] and runs(cloud)


@pytest.mark.parametrize("started", some_nightly([0], [1]))
def test_a_slice_that_is_taken_away_while_it_is_set_up_is_made_again(
    cloud: Cloud, started: int
) -> None:
    lives = [{"probes": 2}] * started  # the first may have run before it was gone
    cloud.scenario(lives=[*lives, {"taken_in_setup": True}, {}])
    result = up(cloud)
    assert result.status == 0, result.err
    assert "was taken away, though its request is ACTIVE" in result.out
    assert done(cloud, " create ") == started + 2 and runs(cloud)


def test_a_slice_that_is_there_is_not_made_again_for_a_step_that_fails(cloud: Cloud) -> None:
    result = up(cloud, fail="worker.sh setup")
    assert result.status == 1 and "setting up the workers failed" in result.error
    assert done(cloud, " create ") == 1


@pytest.mark.parametrize("after", some_nightly([""], ["DELETING"]))
def test_a_slice_that_was_deleted_from_elsewhere_is_not_made_again(
    cloud: Cloud, after: str
) -> None:
    cloud.scenario(lives=[{"probes": 3, "after": after, "run": {"waits": True}}])
    result = up(cloud)
    assert result.status == 143 and "run1 was deleted, and is not made again" in result.out
    assert done(cloud, " create ") == 1 and done(cloud, " delete ") == 0


@pytest.mark.parametrize("run", some_nightly([{"waits": True}], [{"status": 3}]))
def test_a_run_that_was_stopped_from_elsewhere_is_not_started_again(
    cloud: Cloud, run: dict[str, Any]
) -> None:
    cloud.scenario(lives=[{"run": run}])
    with ThreadPoolExecutor() as threads:
        watched = threads.submit(up, cloud, "--poll=3", "--restarts=1")
        assert runs(cloud)
        assert cloud.run("tpu_vm.sh", "stop", *SLICE, "--yes").status == 0
        result = watched.result()
    assert result.status == 143 and "the run was stopped, and is not started again" in result.out
    assert "costs money" in result.out and runs(cloud)


@pytest.mark.nightly
def test_a_run_that_was_stopped_while_its_new_slice_was_set_up_is_not_started(
    cloud: Cloud,
) -> None:
    first = {"probes": 3, "run": {"waits": True}}
    cloud.scenario(lives=[first, {"stopped_in_setup": True}])
    result = up(cloud)
    assert result.status == 143 and "the run was stopped" in result.out
    assert done(cloud, " create ") == 2 and runs(cloud)


STEPS_LEFT_OUT = some_nightly(["worker.sh start"], [*STEPS[1:-1], "run1:.rmr1_jax/env"])


@pytest.mark.parametrize("step", STEPS_LEFT_OUT)
def test_a_step_that_leaves_a_worker_out_fails_and_is_made_up_for(cloud: Cloud, step: str) -> None:
    cloud.scenario(lives=[{"workers": 2, "left_out": [step, 1], "run": {"waits": True}}])
    options = ["--detach", f"--env-file={cloud.secrets()}"]
    first = up(cloud, *options)
    assert first.status == 1
    if step == "scp":
        assert "unpacking the code failed" in first.error
    elif "env" in step:
        assert "the environment file is not here" in first.error
    else:
        assert "1 of 2 workers did it" in first.error
    second = up(cloud, *options)
    assert second.status == 0, second.err
    assert runs(cloud, 2)
    logs = [cloud.folder / "workers" / worker / ".rmr1_jax/log" for worker in "01"]
    assert all(" True" in log.read_text() for log in logs)  # they have the environment file
    assert cloud.run("tpu_vm.sh", "stop", *SLICE, "--yes").status == 0


@pytest.mark.nightly
def test_an_archive_of_other_code_is_not_unpacked(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"workers": 2}])
    assert up(cloud, "--detach", fail="tar -xzf").status == 1  # copied to both
    (cloud.checkout / "new.txt").write_text("changed")
    state = cloud.folder / "state.json"
    state.write_text(state.read_text().replace('"left_out": ["", 0]', '"left_out": ["scp", 1]'))
    assert "unpacking the code failed" in up(cloud, "--detach").error
    assert not (cloud.folder / "workers/1/rmr1_jax").exists()


@pytest.mark.nightly
def test_workers_are_waited_for_until_all_answer(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"workers": 2, "left_out": ["worker.sh status", 7]}])
    first = up(cloud, "--detach")
    assert first.status == 1 and "1 of 2 workers answered" in first.error
    assert up(cloud, "--detach").status == 0  # two more in vain
    assert done(cloud, "worker.sh status") == 9


@pytest.mark.nightly
def test_of_several_slices_all_workers_are_counted(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"workers": 4}])
    result = up(cloud, "--slices=2")
    assert result.status == 0, result.err
    assert runs(cloud, 4)


def test_a_request_that_fails_is_asked_for_again_but_not_for_ever(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"states": ["FAILED"]}])
    result = up(cloud, "--restarts=2")
    assert result.status == 1 and "gone or interrupted 3 times" in result.error
    assert done(cloud, " create ") == 3


@pytest.mark.parametrize("status", some_nightly([134], [3, 137, 143]))
def test_a_run_that_lost_a_worker_or_was_interrupted_starts_again(
    cloud: Cloud, status: int
) -> None:
    cloud.scenario(lives=[{"run": {"status": status}}])
    result = up(cloud, "--restarts=1")
    assert "the run was interrupted" in result.out and runs(cloud, 2)
    assert done(cloud, " create ") == 1  # the slice stayed


def test_processes_that_do_not_find_one_another_are_not_started_for_ever(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"workers": 2, "run": {"status": 3}}])
    result = up(cloud)
    assert result.status == 1 and "did not find one another, three times" in result.error
    assert "costs money" in result.out and runs(cloud, 6)


@pytest.mark.parametrize("status", [1, 2])
def test_a_run_that_failed_is_not_started_again(cloud: Cloud, status: int) -> None:
    cloud.scenario(lives=[{"run": {"status": status}}])
    result = up(cloud)
    assert result.status == status and runs(cloud)
    assert f"ended with status {status}" in result.error
    log = "running --join_timeout=1800 --distributed=tpu --stage=sft"
    assert log in result.err  # the end of it
    assert "costs money" in result.err


def test_what_is_running_is_left_alone_and_can_be_watched_and_stopped(cloud: Cloud) -> None:
    cloud.scenario(lives=[{"run": {"waits": True}}])
    assert up(cloud, "--detach").status == 0
    again = up(cloud, "--detach")
    assert again.status == 0 and "The run is going on all workers" in again.out
    assert runs(cloud)
    mount = "--mount=gs://bucket/folder"
    same = cloud.run("tpu_vm.sh", "run", *SLICE, mount, *STAGE)
    assert same.status == 0 and "running already" in same.out
    other = cloud.run("tpu_vm.sh", "run", *SLICE, mount, *STAGE, "--more=1")
    assert other.status == 1 and "another run is going" in other.err
    (cloud.checkout / "new.txt").write_text("changed")
    sync = cloud.run("tpu_vm.sh", "sync", *SLICE)
    assert sync.status == 2 and "a run is going on run1" in sync.error
    assert "state=running" in cloud.run("tpu_vm.sh", "status", *SLICE, mount).out
    unasked = cloud.run("tpu_vm.sh", "stop", *SLICE)
    assert unasked.status == 2 and "This ends what runs on run1" in unasked.error
    stop = cloud.run("tpu_vm.sh", "stop", *SLICE, "--yes")
    assert stop.status == 0 and "stopped" in stop.out
    assert "state=stopped" in cloud.run("tpu_vm.sh", "status", *SLICE, mount).out
    assert "waiting" in cloud.run("tpu_vm.sh", "logs", *SLICE).out


def test_delete_when_done_and_delete_of_nothing(cloud: Cloud) -> None:
    assert up(cloud, "--delete-when-done").status == 0
    (delete,) = [call for call in cloud.calls("gcloud") if "delete" in call]
    assert "--force" in delete and "--quiet" in delete
    nothing = cloud.run("tpu_vm.sh", "delete", *SLICE, "--yes")
    assert nothing.status == 0 and "nothing to delete" in nothing.out
    assert done(cloud, " delete ") == 1


def test_a_dry_run_shows_all_and_only_reads(cloud: Cloud) -> None:
    result = up(cloud, "--dry-run")
    assert result.status == 0 and reads_only(cloud.calls())
    shown = [line for line in result.out.splitlines() if line.startswith("+ gcloud")]
    cloud.forget_calls()
    up(cloud, "--detach")
    made = [call for call in cloud.calls("gcloud") if not reads_only([call])]
    made = [call for call in made if "worker.sh status" not in call[-1]]
    assert len(made) == 5
    shown = [line for line in shown if " describe " not in line]
    assert [split(line)[5] for line in shown] == [call[4] for call in made]
    assert split(shown[-1])[1:] == made[-1]  # to the last quote


def test_a_dry_run_shows_that_the_slice_is_deleted_when_done(cloud: Cloud) -> None:
    command = "+ gcloud compute tpus queued-resources delete run1"
    assert command not in up(cloud, "--dry-run").out
    assert command in up(cloud, "--dry-run", "--delete-when-done").out.splitlines()[-1]
    assert reads_only(cloud.calls())


@pytest.mark.parametrize("missing", ["gcloud", "login"])
def test_a_dry_run_needs_neither_gcloud_nor_an_account(cloud: Cloud, missing: str) -> None:
    if missing == "gcloud":
        cloud.absent.add("gcloud")
    else:
        cloud.scenario(account="")
    dry = up(cloud, "--dry-run")
    assert dry.status == 0 and "as if nothing existed yet" in dry.err and " create run1" in dry.out
    real = up(cloud)
    assert real.status == 2 and ("gcloud is not" in real.error)
    assert reads_only(cloud.calls())


def test_nothing_that_costs_is_made_unasked(cloud: Cloud) -> None:
    result = cloud.run("tpu_vm.sh", "create", *SLICE, *CREATE)
    assert result.status == 2 and "costs money" in result.error and "add --yes" in result.error
    assert reads_only(cloud.calls())


def test_another_accelerator_under_the_same_name_is_refused(cloud: Cloud) -> None:
    assert cloud.run("tpu_vm.sh", "create", *SLICE, *CREATE, "--yes").status == 0
    other = ["--accelerator=v6e-8", "--capacity=spot", "--yes"]
    result = cloud.run("tpu_vm.sh", "create", *SLICE, *other)
    assert result.status == 2 and "run1 exists and is a v5litepod-16" in result.error


def test_secrets_are_copied_and_stand_on_no_command_line(cloud: Cloud) -> None:
    file = cloud.secrets()
    assert up(cloud, f"--env-file={file}").status == 0
    text = (cloud.folder / "calls.jsonl").read_text()
    assert "hf_very_secret_value" not in text and "secrets.env" in text
    kept = cloud.folder / "workers/0/.rmr1_jax/env"
    assert kept.read_text() == Path(file).read_text() and kept.stat().st_mode & 0o777 == 0o600
    assert " True" in (cloud.folder / "workers/0/.rmr1_jax/log").read_text()  # the run has it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bogus=1"], "there is no option --bogus"),
        (["--capacity=cheap"], "spot, on-demand or reserved"),
        (["--accelerator=v9-8"], "name its TPU software"),
        (["--accelerator=tpu7x-8"], "through GKE only"),
        (["--mount=bucket"], "--mount=bucket: gs://BUCKET"),
        (["--name=Run_1"], "lower-case letters"),
        (["--poll=soon"], "a whole number"),
        (["--zone="], "--zone needs a value"),
        (["--", "--stage=sft", "--workdir=runs/a"], "lies on the disk of one worker"),
        (["--", "--workdir=/mnt/shared/a"], "say what to run after --"),
        (["--", "--stage=sft"], "name where the run is kept"),
    ],
)
def test_mistakes_are_said_before_anything_is_asked(
    cloud: Cloud, options: list[str], message: str
) -> None:
    result = cloud.run("tpu_vm.sh", *UP, *options, *([] if "--" in options else STAGE))
    assert result.status == 2 and message in result.error
    assert cloud.calls() == []


def test_options_come_from_a_file_too(cloud: Cloud) -> None:
    file = cloud.folder / "slice.txt"
    file.write_text("# ours\nproject=p\nzone=z\nname=run1\n\ninternal-ips\nnetwork=n\n")
    settings = f"--settings={file}"
    result = cloud.run("tpu_vm.sh", "create", settings, "--zone=other", *CREATE, "--dry-run")
    assert result.status == 0 and "--network=n --internal-ips" in result.out
    assert "--zone=other" in result.out and "--zone=z" not in result.out
    file.write_text("colour=red\n")
    assert (
        f"{file}, line 1: there is no option --colour"
        in cloud.run("tpu_vm.sh", "create", settings).error
    )
