"""launch/gke: manifests that Kubernetes can read, and what is done with them."""

import json
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmr1_jax.errors import LOST
from tests.launch.conftest import Cloud, reads_only

STAGE = ["--", "--stage=sft", "--workdir=/mnt/shared/runs/one"]
IMAGE = "--image=europe-docker.pkg.dev/p/rmr1/rmr1_jax:v1"
JOBSET = ["--name=run1", IMAGE, "--accelerator=v5e", "--topology=4x4", "--bucket=gs://bucket"]
CLUSTER = ["--name=run1", "--cluster=c", "--project=p", "--zone=z"]
XPK = [*CLUSTER, "--accelerator=v5p-128", IMAGE, "--storage=shared"]


def manifest(cloud: Cloud, *options: str, stage: list[str] = STAGE) -> dict[str, Any]:
    result = cloud.run("gke/jobset.sh", "render", *JOBSET, *options, *stage)
    assert result.status == 0, result.err
    document: dict[str, Any] = yaml.safe_load(result.out)
    return document


def job(document: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = document["spec"]["replicatedJobs"]
    spec: dict[str, Any] = replicated["template"]["spec"]
    return spec


def pod(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job(document)["template"]["spec"]
    return spec


def test_a_manifest_says_what_was_asked_for(cloud: Cloud) -> None:
    document = manifest(cloud, "--slices=2", "--restarts=7")
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert document["metadata"]["name"] == "run1"
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert document["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert job(document)["parallelism"] == job(document)["completions"] == 4
    assert pod(document)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod(document)["containers"]
    assert container["args"] == ["--join_timeout=1800", "--distributed=gke", *STAGE[1:]]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["volumeMounts"][0] == {"name": "shared", "mountPath": "/mnt/shared"}
    assert pod(document)["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    assert "@" not in str(document)


@pytest.mark.parametrize(
    ("accelerator", "topology", "label", "hosts", "chips"),
    [
        ("v4", "2x2x4", "tpu-v4-podslice", 4, 4),
        ("v5p", "4x4x4", "tpu-v5p-slice", 16, 4),
        ("v5e", "1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e", "2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v6e", "16x16", "tpu-v6e-slice", 64, 4),
        ("tpu7x", "2x2x2", "tpu7x", 2, 4),
    ],
)
def test_hosts_and_chips_follow_from_the_topology(
    cloud: Cloud, accelerator: str, topology: str, label: str, hosts: int, chips: int
) -> None:
    document = manifest(cloud, f"--accelerator={accelerator}", f"--topology={topology}")
    assert pod(document)["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert job(document)["completions"] == hosts
    assert pod(document)["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_another_join_timeout_is_left_alone(cloud: Cloud) -> None:
    (container,) = pod(manifest(cloud, stage=[*STAGE, "--join_timeout=60"]))["containers"]
    assert container["args"] == ["--distributed=gke", *STAGE[1:], "--join_timeout=60"]


def test_spot_nodes_and_a_claim(cloud: Cloud) -> None:
    without = [each for each in JOBSET if not each.startswith("--bucket")]
    result = cloud.run("gke/jobset.sh", "render", *without, "--claim=filestore", "--spot", *STAGE)
    document = yaml.safe_load(result.out)
    assert pod(document)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod(document)["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert pod(document)["volumes"][1]["persistentVolumeClaim"] == {"claimName": "filestore"}
    assert job(document)["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "false"


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(min_codepoint=32, exclude_categories=["C", "Zl", "Zp"])))
def test_arguments_arrive_as_they_were_written(cloud: Cloud, text: str) -> None:
    document = manifest(cloud, stage=[*STAGE, f"--field={text} & @NAME@ \\1 \"'$x"])
    assert pod(document)["containers"][0]["args"][-1] == f"--field={text} & @NAME@ \\1 \"'$x"


def test_errors_of_the_run_end_the_jobset_and_lost_pods_restart_it(cloud: Cloud) -> None:
    document = manifest(cloud)
    (rule,) = job(document)["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2]
    assert LOST not in rule["onExitCodes"]["values"]
    (rule,) = document["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # What a podFailurePolicy asks of its pods.
    assert pod(document)["restartPolicy"] == "Never"
    assert pod(document)["containers"][0]["name"] == "rmr1-jax"


def test_an_argument_of_two_lines_is_refused(cloud: Cloud) -> None:
    result = cloud.run("gke/jobset.sh", "apply", *JOBSET, "--yes", *STAGE, "--field=a\nb")
    assert result.status == 2 and "holds a line break" in result.error and cloud.calls() == []


def test_apply_status_logs_delete(cloud: Cloud) -> None:
    assert cloud.run("gke/jobset.sh", "apply", *JOBSET, "--yes", *STAGE).status == 0
    applied = yaml.safe_load((cloud.folder / "applied.yaml").read_text())
    assert applied == manifest(cloud)
    again = cloud.run("gke/jobset.sh", "apply", *JOBSET, "--yes", *STAGE)
    assert again.status == 0 and "there already" in again.out
    assert sum(call[2] == "apply" for call in cloud.calls("kubectl")) == 1
    assert cloud.run("gke/jobset.sh", "status", "--name=run1").status == 0
    assert cloud.run("gke/jobset.sh", "logs", "--name=run1", "--host=2", "--follow").status == 0
    assert "job-completion-index=2" in " ".join(cloud.calls("kubectl")[-1])
    assert cloud.run("gke/jobset.sh", "delete", "--name=run1", "--yes").status == 0
    gone = cloud.run("gke/jobset.sh", "delete", "--name=run1", "--yes")
    assert gone.status == 0 and "run1 is not there" in gone.out


def kept(cloud: Cloud) -> dict[str, bool]:
    """What the cluster has."""
    found: dict[str, bool] = json.loads((cloud.folder / "state.json").read_text())
    return found


def test_delete_leaves_no_secret(cloud: Cloud) -> None:
    secrets = f"--env-file={cloud.secrets()}"
    delete = ["delete", "--name=run1", "--yes"]
    assert cloud.run("gke/jobset.sh", "apply", *JOBSET, secrets, "--yes", *STAGE).status == 0
    assert cloud.run("gke/jobset.sh", *delete).status == 0
    assert kept(cloud) == {}
    cloud.forget_calls()
    failed = cloud.run("gke/jobset.sh", "apply", *JOBSET, secrets, "--yes", *STAGE, fail=5)
    assert "starting run1 failed" in failed.error
    assert kept(cloud) == {"secret": True}
    unasked = cloud.run("gke/jobset.sh", *delete[:-1])
    assert unasked.status == 2 and "This deletes the Secret run1-env." in unasked.error
    assert cloud.run("gke/jobset.sh", *delete).status == 0
    assert kept(cloud) == {}


def test_a_context_alone_names_the_cluster(cloud: Cloud) -> None:
    cloud.scenario(context="")
    command = ["apply", *JOBSET, "--yes", *STAGE]
    unnamed = cloud.run("gke/jobset.sh", *command)
    assert unnamed.status == 2 and "kubectl knows no cluster: " in unnamed.error
    unknown = cloud.run("gke/jobset.sh", "--context=other", *command)
    assert unknown.status == 2 and "kubectl knows no cluster by --context=other" in unknown.error
    assert cloud.run("gke/jobset.sh", "--context=cluster", *command).status == 0
    made = cloud.calls("kubectl")[-1]
    assert made[1:4] == ["--context=cluster", "--namespace=default", "apply"]


@pytest.mark.parametrize("number", range(1, 6))
def test_a_call_fails_and_the_same_command_completes(cloud: Cloud, number: int) -> None:
    command = ["apply", *JOBSET, f"--env-file={cloud.secrets()}", "--yes", *STAGE]
    result = cloud.run("gke/jobset.sh", *command, fail=number)
    if number == 1:
        assert result.status == 2 and "get-credentials" in result.error
    else:
        assert result.status == 1 and "broken on purpose" in result.error
        assert "run again: " in result.error and "jobset.sh apply" in result.error
    again = cloud.run("gke/jobset.sh", *command)
    assert again.status == 0, again.err
    assert len(cloud.calls("kubectl")) == number + 5
    assert (cloud.folder / "applied.yaml").exists()
    assert "hf_very_secret_value" not in (cloud.folder / "calls.jsonl").read_text()


@pytest.mark.parametrize("script", ["gke/jobset.sh", "gke/xpk.sh"])
def test_a_dry_run_only_reads_and_needs_no_cluster(cloud: Cloud, script: str) -> None:
    command = ["apply", *JOBSET] if "jobset" in script else ["create", *XPK]
    result = cloud.run(script, *command, "--dry-run", *STAGE)
    assert result.status == 0 and reads_only(cloud.calls())
    cloud.absent |= {"kubectl", "xpk"}
    absent = cloud.run(script, *command, "--dry-run", *STAGE)
    assert absent.status == 0 and "as if nothing existed yet" in absent.err
    real = cloud.run(script, *command, "--yes", *STAGE)
    assert real.status == 2 and "is not installed or not on the PATH" in real.error


@pytest.mark.parametrize("verb", ["apply", "status", "logs", "delete"])
def test_a_dry_run_names_the_cluster_and_the_namespace(cloud: Cloud, verb: str) -> None:
    cloud.absent.add("kubectl")
    where = ["--context=theirs", "--namespace=team"]
    options = [*JOBSET, *where, "--dry-run", *STAGE]
    result = cloud.run("gke/jobset.sh", verb, *options)
    assert result.status == 0, result.err
    shown = [line for line in result.out.splitlines() if line.startswith("+ ")]
    assert shown and all(line.split()[1:4] == ["kubectl", *where] for line in shown)


@pytest.mark.parametrize("script", ["gke/jobset.sh", "gke/xpk.sh"])
def test_nothing_that_costs_is_started_unasked(cloud: Cloud, script: str) -> None:
    command = ["apply", *JOBSET] if "jobset" in script else ["create", *XPK]
    result = cloud.run(script, *command, *STAGE)
    assert result.status == 2 and "costs money" in result.error and "add --yes" in result.error
    assert reads_only(cloud.calls())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--topology=4x4x4", "has 2 sides"),
        ("--accelerator=h100", "v4, v5e, v5p, v6e or tpu7x"),
        ("--image=rmr1_jax", "with a tag or a digest"),
        ("--image=rmr1_jax:latest", "other than latest"),
        ("--claim=c", "one of the two"),
        ("--chips-per-host=3", "not so many to a host"),
        ("--slices=two", "a whole number"),
        ("--workdir=runs", "no option --workdir"),
    ],
)
def test_mistakes_are_said(cloud: Cloud, option: str, message: str) -> None:
    result = cloud.run("gke/jobset.sh", "apply", *JOBSET, option, "--yes", *STAGE)
    assert result.status == 2 and message in result.error and cloud.calls() == []


def test_xpk_starts_shows_and_ends_a_workload(cloud: Cloud) -> None:
    secrets = f"--env-file={cloud.secrets()}"
    command = ["create", *XPK, "--slices=2", "--capacity=spot", secrets, "--yes", *STAGE]
    assert cloud.run("gke/xpk.sh", *command).status == 0
    created = cloud.calls("xpk")[-1]
    arguments = ["--join_timeout=1800", "--distributed=gke", *STAGE[1:]]
    assert created[-1] == "--command=python -m rmr1_jax.main " + " ".join(arguments)
    assert {
        "--tpu-type=v5p-128",
        "--num-slices=2",
        "--spot",
        "--storage=shared",
        f"--restart-on-exit-codes={LOST},134,137,139,143",
        secrets,
    } <= set(created)
    assert "there already" in cloud.run("gke/xpk.sh", *command).out
    assert "Running" in cloud.run("gke/xpk.sh", "status", *CLUSTER).out
    assert cloud.run("gke/xpk.sh", "delete", *CLUSTER, "--yes").status == 0
    assert "nothing to delete" in cloud.run("gke/xpk.sh", "delete", *CLUSTER, "--yes").out
    assert "hf_very_secret_value" not in (cloud.folder / "calls.jsonl").read_text()


@pytest.mark.parametrize("number", [1, 2])
def test_xpk_fails_and_the_same_command_completes(cloud: Cloud, number: int) -> None:
    result = cloud.run("gke/xpk.sh", "create", *XPK, "--yes", *STAGE, fail=number)
    assert result.status == 1 and "broken on purpose" in result.error
    assert cloud.run("gke/xpk.sh", "create", *XPK, "--yes", *STAGE).status == 0
