"""Processes join one another as options or the environment say; those that cannot, end."""

import os
import socket
from pathlib import Path
from signal import SIGABRT, SIGSEGV
from typing import Any

import jax
import pytest

from rmr1_jax.distributed import rendezvous
from rmr1_jax.distributed.rendezvous import Distributed, exit_status, join, shares_gpus
from rmr1_jax.errors import LOST, MissingProcessError, UserError
from rmr1_jax.main import main
from tests.processes import run_job, run_processes

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}
INDEXED_JOB = {
    "JAX_COORDINATOR_ADDRESS": "job-0.job:8476",
    "JAX_PROCESS_COUNT": "4",
    "JOB_COMPLETION_INDEX": "3",
}
TPU_HOSTS = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}


class Joined(Exception):
    """Raised in place of waiting for processes that do not exist."""


@pytest.fixture(autouse=True)
def asked_of_jax(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `jax.distributed.initialize` is given, in an environment without other processes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE", "JAX_COORD", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    asked: dict[str, Any] = {}

    def initialize(**given: Any) -> None:
        asked.update(given)
        raise Joined

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return asked


def refusal(said: Distributed, *, shared: bool = True) -> str:
    with pytest.raises(UserError) as error:
        join(said, "sft" if shared else "prepare", shared)
    return str(error.value)


class TestTheCommandLine:
    def test_without_options_means_one_process(self) -> None:
        join(Distributed(), "sft", shared=True)
        join(Distributed(method="off"), "sft", shared=True)
        alone = Distributed(coordinator="host:1", process_count="1", process_index="0")
        join(alone, "sft", shared=True)

    def test_gives_jax_the_place_and_the_time_limit(
        self, asked_of_jax: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = Distributed("auto", "host-0:8476", "4", "3", join_timeout="20")
        assert "Joined" in refusal(given)
        assert asked_of_jax["coordinator_address"] == "host-0:8476"
        assert (asked_of_jax["num_processes"], asked_of_jax["process_id"]) == (4, 3)
        assert asked_of_jax["initialization_timeout"] == 20
        said = "process 3 of 4: waiting for the others at host-0:8476, at most 20 s. If one does"
        assert capsys.readouterr().err.startswith(said)

    @pytest.mark.parametrize(
        ("said", "problem"),
        [
            ({"method": "mpi"}, "--distributed=mpi is unknown; there are auto, off"),
            ({"coordinator": "a:1"}, "--process_count and --process_index are missing"),
            ({"method": "flags", "process_count": "2"}, "--coordinator and --process_index are"),
            ({"method": "tpu", "process_index": "1"}, "--process_index sets by hand what --dist"),
            ({"join_timeout": "soon"}, "--join_timeout=soon must be a number of seconds above 0"),
            ({"join_timeout": "0"}, "--join_timeout=0 must be"),
            ({"method": "slurm"}, "this was not started by srun"),
            ({"method": "gke"}, "neither TPU_WORKER_HOSTNAMES"),
        ],
    )
    def test_is_refused_where_it_contradicts_itself_or_the_environment(
        self, said: dict[str, str], problem: str
    ) -> None:
        assert problem in refusal(Distributed(**said))

    @pytest.mark.parametrize(
        ("coordinator", "count", "index", "problem"),
        [
            ("host", "2", "0", "--coordinator=host must be HOST:PORT"),
            ("host:99999", "2", "0", "--coordinator=host:99999 must be HOST:PORT"),
            ("host:1", "two", "0", "--process_count=two must be a whole number"),
            ("host:1", "0", "0", "--process_count=0 must be 1 or more"),
            ("host:1", "2", "2", "--process_index=2 must be from 0 to 1"),
            ("host:1", "2", "-1", "--process_index=-1 must be a whole number"),
        ],
    )
    def test_needs_numbers_that_fit(
        self, coordinator: str, count: str, index: str, problem: str
    ) -> None:
        said = {"coordinator": coordinator, "process_count": count, "process_index": index}
        assert problem in refusal(Distributed(**said))

    def test_of_a_stage_for_one_process_takes_no_several(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--stage=prepare", "--distributed=tpu", "--output=x"]) == 2
        message = "--stage=prepare works in one process, and was started with --distributed=tpu"
        assert message in capsys.readouterr().err
        join(Distributed(), "prepare", shared=False)
        for name, value in SLURM.items():
            monkeypatch.setenv(name, value)
        assert "srun with 8 tasks (use --ntasks=1)" in refusal(Distributed(), shared=False)


class TestTheEnvironment:
    @pytest.mark.parametrize(
        ("environment", "methods", "expected"),
        [
            (
                SLURM,
                ("auto", "slurm"),
                {"cluster_detection_method": "slurm", "local_device_ids": None},
            ),
            (
                SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"},  # alone on its node: all its GPUs
                ("auto", "slurm"),
                {"cluster_detection_method": "slurm", "local_device_ids": []},
            ),
            (
                INDEXED_JOB,
                ("auto", "gke"),
                {"coordinator_address": "job-0.job:8476", "num_processes": 4, "process_id": 3},
            ),
            (TPU_HOSTS, ("auto", "gke", "tpu"), {"cluster_detection_method": "gketpu"}),
            (
                {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
                ("auto", "gke", "tpu"),
                {"cluster_detection_method": "gketpu"},
            ),
            ({}, ("tpu",), {"cluster_detection_method": "gcetpu"}),
        ],
    )
    def test_says_what_jax_is_to_detect(
        self,
        environment: dict[str, str],
        methods: tuple[str, ...],
        expected: dict[str, Any],
        asked_of_jax: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for method in methods:
            asked_of_jax.clear()
            refusal(Distributed(method))
            assert expected.items() <= asked_of_jax.items(), method

    @pytest.mark.parametrize(
        "environment", [SLURM | {"SLURM_NTASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}]
    )
    def test_of_one_process_is_not_given_to_jax(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        join(Distributed(), "sft", shared=True)

    def test_that_is_no_number_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (INDEXED_JOB | {"JAX_PROCESS_COUNT": "four"}).items():
            monkeypatch.setenv(name, value)
        assert "JAX_PROCESS_COUNT=four must be a whole number" in refusal(Distributed("gke"))

    @pytest.mark.parametrize(
        ("tasks", "visible", "shares"),
        [
            ("1(x4)", "", False),
            ("1", "", False),
            ("8(x2)", "0,1,2,3,4,5,6,7", True),
            ("8(x2),4", "", True),
            ("8(x2)", "3", False),  # Slurm has given it one
        ],
    )
    def test_of_slurm_says_whether_tasks_share_gpus(
        self, tasks: str, visible: str, shares: bool
    ) -> None:
        said = SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": visible}
        assert shares_gpus(said) == shares


class TestWhatJaxCannotUse:
    @pytest.mark.parametrize(
        ("error", "kind", "problem"),
        [
            (OSError("no metadata server"), UserError, "no TPU with metadata was found"),
            (
                ValueError("coordinator_address should be defined."),
                UserError,
                "no TPU with metadata was found",
            ),
            (
                RuntimeError("Failed to recognize coordinator address slice-0-0"),
                MissingProcessError,
                "process 0 has no address after 300 s",
            ),
            (
                jax.errors.JaxRuntimeError("UNKNOWN: Failed to start RPC server"),
                UserError,
                "process 0 cannot listen at the first host of this TPU",
            ),
            (KeyError("x"), UserError, "--distributed=tpu: the environment cannot be used: KeyErr"),
        ],
    )
    def test_becomes_one_line(
        self,
        error: Exception,
        kind: type[UserError],
        problem: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def initialize(**given: Any) -> None:
            raise error

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        with pytest.raises(UserError) as refused:
            join(Distributed("tpu"), "sft", shared=True)
        assert type(refused.value) is kind and problem in str(refused.value)

    @pytest.mark.parametrize("error", [OSError("x"), ValueError("... should be defined.")])
    def test_means_one_process_where_nothing_was_asked(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def initialize(**given: Any) -> None:
            raise error

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        monkeypatch.setattr(rendezvous, "_has_tpu", lambda: True)
        join(Distributed(), "sft", shared=True)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        [ended] = run_job(["--stage=judge"], 2, 1, only=[0], address=address, timeout=60)
    # JAX names it, and sometimes crashes after that, before we can.
    assert "Address already in use" in ended.err
    if ended.status != -SIGSEGV:
        assert ended.status == 2
        assert f"error: process 0 cannot listen at {address}: end what uses that" in ended.err


def test_only_errors_of_devices_and_of_communication_are_worth_a_restart() -> None:
    lost = ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    assert exit_status(lost) == LOST
    assert exit_status(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")) == LOST
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = lost
    assert exit_status(wrapped) == LOST
    assert exit_status(KeyError("INTERNAL")) == 1
    assert exit_status(ValueError("INVALID_ARGUMENT: shapes")) == 1


def test_a_process_that_waits_in_vain_is_ended_in_time() -> None:
    [ended] = run_job(["--stage=judge", "--join_timeout=2"], 2, 1, only=[0], timeout=60)
    assert ended.status == -SIGABRT
    lines = ended.err.splitlines()
    assert lines[0].startswith("process 0 of 2: waiting for the others at localhost:")
    assert "at most 2 s. If one does not come, JAX ends this process with DEADLINE" in lines[0]
    assert "DEADLINE_EXCEEDED" in ended.err.partition("\n")[2]


AGREE = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rmr1_jax.errors import UserError
from rmr1_jax.distributed import hosts
from rmr1_jax.distributed.hosts import any_process, broadcast_from_primary, part_here
from rmr1_jax.distributed.hosts import assert_same_on_all_hosts, assert_shared_directory
from rmr1_jax.distributed.hosts import run_on_primary

me, folder = jax.process_index(), Path(sys.argv[1])
file, mine = folder / "made", folder / str(me)
mine.mkdir()
hosts.SEEN_WITHIN = 1.0

def make():
    if not file.exists():
        file.write_text(f"by {me}")
    return file.read_text()

assert run_on_primary(make, about=file) == "by 0"
assert any_process(me == 1) and not any_process(False)
assert_same_on_all_hosts(b"the same", about="this")
assert_shared_directory(folder)

def refused(check, *given, about):
    try:
        check(*given, about) if about else check(*given)
    except UserError as error:
        print(error)

def fail():
    raise UserError("only the first knows why")

refused(assert_same_on_all_hosts, f"of {me}".encode(), about="that")
refused(assert_shared_directory, mine, about=None)
refused(broadcast_from_primary, fail, about="these")
devices = np.array(jax.devices())
across = Mesh(devices.reshape(2, 2).T, ("rows", "columns"))  # each column is a process
split = NamedSharding(across, PartitionSpec("rows"))
assert part_here(split, axis=0) == (0, 1)  # every process has all rows
assert part_here(NamedSharding(across, PartitionSpec(None, "columns")), axis=1) == (me, 2)
"""


def test_processes_agree_on_what_exists(tmp_path: Path) -> None:
    first, second = run_processes(AGREE, 2, 2, arguments=[str(tmp_path)])
    for said in (first, second):
        assert "that: is not the same in process 0 and in 1; put it where" in said
        assert "process 1 of 2 cannot see what process 0 writes there" in said
    assert "only the first knows why" in first
    assert "these: cannot be used; the first process says why" in second


@pytest.mark.nightly
def test_another_number_of_processes_is_refused() -> None:
    """The first is told of two processes, the second of three."""
    script = (
        "import sys; from rmr1_jax.main import main; given = sys.argv[1:]; "
        "given[-2] = f'--process_count={2 + int(given[-1][-1])}'; sys.exit(main(given))"
    )
    ended = run_job(["--stage=judge", "--join_timeout=60"], 2, 1, script=script)
    assert [end.status for end in ended] == [2, 2]
    for end in ended:
        assert "2 processes came, started with --process_count=2 and 3" in end.err
