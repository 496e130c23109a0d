"""Processes find one another, or say who is missing; when one ends, the others know."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jax._src.clusters import cloud_tpu_cluster

from rmr1_jax.distributed import clusters
from rmr1_jax.distributed.clusters import Place
from rmr1_jax.distributed.lifeline import Lifeline
from rmr1_jax.distributed.multihost import Distributed, join
from rmr1_jax.distributed.rendezvous import Address, Met, meet
from rmr1_jax.errors import LOST, MissingProcessError, UserError
from rmr1_jax.main import main
from tests.processes import free_address, run_job, run_processes

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of other processes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_WORKER", "MEGASCALE", "JAX_COORD", "JOB_COMPLETION")):
            monkeypatch.delenv(name)


def refusal(said: Distributed, *, shared: bool = True) -> str:
    with pytest.raises(UserError) as error:
        join(said, "sft" if shared else "prepare", shared)
    return str(error.value)


class TestTheCommandLine:
    def test_that_says_nothing_means_one_process(self) -> None:
        assert join(Distributed(), "sft", shared=True) is None
        assert join(Distributed(method="off"), "sft", shared=True) is None
        alone = Distributed(coordinator="host:1", process_count="1", process_index="0")
        assert join(alone, "sft", shared=True) is None

    @pytest.mark.parametrize(
        ("said", "problem"),
        [
            ({"method": "mpi"}, "--distributed=mpi is unknown; there are auto, off"),
            ({"coordinator": "a:1"}, "--process_count and --process_index are missing"),
            ({"method": "flags", "process_count": "2"}, "--coordinator and --process_index are"),
            ({"method": "tpu", "process_index": "1"}, "--process_index says by hand what --dist"),
            ({"join_timeout": "soon"}, "--join_timeout=soon must be a number of seconds above 0"),
            ({"join_timeout": "0"}, "--join_timeout=0 must be"),
            ({"method": "slurm"}, "this was not started by srun"),
            ({"method": "gke"}, "neither TPU_WORKER_HOSTNAMES"),
            ({"method": "tpu"}, "no TPU with metadata was found"),
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
        assert join(Distributed(), "prepare", shared=False) is None
        for name, value in SLURM.items():
            monkeypatch.setenv(name, value)
        assert "srun with 8 tasks (use --ntasks=1)" in refusal(Distributed(), shared=False)


class TestTheEnvironment:
    def test_of_slurm_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in SLURM.items():
            monkeypatch.setenv(name, value)
        expected = Place(Address("gpu03", 61443), 8, 5, local_devices=(1,))
        assert clusters.by_environment("auto", 1) == expected
        assert clusters.by_environment("slurm", 1) == expected
        monkeypatch.setenv("SLURM_NTASKS", "1")
        assert clusters.by_environment("slurm", 1) == clusters.ALONE

    @pytest.mark.parametrize(
        ("tasks", "visible", "devices"),
        [
            ("1(x4)", "", None),  # alone on its node: all its GPUs
            ("1", "", None),
            ("8(x2)", "0,1,2,3,4,5,6,7", (1,)),
            ("8(x2),4", "", (1,)),
            ("8(x2)", "3", None),  # Slurm has given it one
        ],
    )
    def test_of_slurm_says_which_gpus(
        self, tasks: str, visible: str, devices: tuple[int, ...] | None
    ) -> None:
        said = SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": visible}
        assert clusters.slurm_devices(said) == devices

    def test_of_an_indexed_job_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "job-0.job:8476")
        monkeypatch.setenv("JAX_PROCESS_COUNT", "4")
        monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
        expected = Place(Address("job-0.job", 8476), 4, 3)
        assert clusters.by_environment("auto", 1) == expected
        monkeypatch.setenv("JAX_PROCESS_COUNT", "four")
        with pytest.raises(UserError, match="what the environment says cannot be used"):
            clusters.by_environment("gke", 1)

    def test_of_two_tpu_slices_on_gke_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,host-1")
        monkeypatch.setenv("TPU_WORKER_ID", "1")
        monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
        monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
        monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost")
        for method in ("auto", "gke", "tpu"):
            found = clusters.by_environment(method, 1)
            assert found == Place(Address("localhost", 8482), 4, 3), method

    def test_of_a_pod_whose_first_has_no_address_yet_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unknown(host: str) -> str:
            raise socket.gaierror(host)

        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
        monkeypatch.setattr(socket, "gethostbyname", unknown)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "slice-1-0,slice-1-1")
        monkeypatch.setenv("TPU_WORKER_ID", "0")
        monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
        monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
        monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "slice-0-0")
        with pytest.raises(MissingProcessError, match="process 0 has no address after 1 s"):
            clusters.by_environment("gke", 1)

    def test_of_one_machine_with_a_tpu_means_one_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        assert join(Distributed(), "sft", shared=True) is None


@pytest.mark.parametrize(
    ("text", "host"),
    [("host-0:8476", "host-0"), ("10.0.0.1:8476", "10.0.0.1"), ("[fd00::7]:8476", "fd00::7")],
)
def test_an_address_reads_as_it_is_written(text: str, host: str) -> None:
    address = Address.parse(text)
    assert address == Address(host, 8476) and str(address) == text


def call_the_roll(
    count: int, *processes: tuple[int, int], limit: float = 20.0
) -> list[Met | UserError]:
    """(index, count) of each process that comes -> what it learns."""
    host, _, port = free_address().rpartition(":")

    def come(index: int, count: int) -> Met | UserError:
        try:
            return meet(Address(host, int(port)), count, index, limit)
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(processes)) as threads:
        return [*threads.map(lambda process: come(*process), processes)]


def close(met: Any) -> None:
    for link in met.links.values():
        link.close()


class TestTheRollCall:
    def test_gives_all_the_same_list(self) -> None:
        found = call_the_roll(3, (0, 3), (1, 3), (2, 3))
        assert all(
            isinstance(met, Met) and met.hosts == [socket.gethostname()] * 3 for met in found
        )
        assert [sorted(met.links) for met in found if isinstance(met, Met)] == [[1, 2], [0], [0]]
        for met in found:
            close(met)

    def test_names_who_is_missing_to_all_who_came(self) -> None:
        found = call_the_roll(5, (0, 5), (2, 5), limit=1.0)
        assert all(isinstance(error, MissingProcessError) for error in found)
        assert len({str(error) for error in found}) == 1
        assert "2 of 5 processes came within 1 s; missing: processes 1, 3, 4." in str(found[0])

    def test_says_where_it_waited_for_the_first(self) -> None:
        [error] = call_the_roll(2, (1, 2), limit=1.0)
        assert isinstance(error, MissingProcessError)
        assert "process 1 of 2: process 0 did not call the roll at localhost:" in str(error)

    def test_refuses_two_of_the_same_number(self) -> None:
        found = call_the_roll(3, (0, 3), (1, 3), (1, 3))
        assert all("say that they are number 1 of 3" in str(error) for error in found)
        assert not any(isinstance(error, MissingProcessError) for error in found)

    def test_refuses_another_number_of_processes(self) -> None:
        found = call_the_roll(2, (0, 2), (1, 4))
        assert all("was started as one of 4, and process 0" in str(error) for error in found)

    def test_does_not_count_strangers(self) -> None:
        host, _, port = free_address().rpartition(":")
        address = Address(host, int(port))
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(meet, address, 2, 0, 20.0)
            for said in (b"GET / HTTP/1.1\r\n\r\n", b"", b"[1]\n"):
                stranger = None
                while stranger is None:
                    try:
                        stranger = socket.create_connection((host, int(port)))
                    except ConnectionRefusedError:
                        continue
                stranger.sendall(said)
                stranger.close()
            other = threads.submit(meet, address, 2, 1, 20.0)
            close(first.result())
            close(other.result())

    def test_says_that_the_port_is_taken(self) -> None:
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=f"process 0 cannot listen at port {port} of"):
                meet(Address("localhost", port), 2, 0, 1.0)


class Ends:
    """The statuses with which lifelines have ended their processes."""

    def __init__(self) -> None:
        self._statuses: dict[int, int] = {}
        self._changed = threading.Condition()

    def end(self, index: int, status: int) -> None:
        with self._changed:
            self._statuses[index] = status
            self._changed.notify_all()

    def __call__(self, index: int) -> int:
        """The status of a process, when it has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: index in self._statuses, 20)
            return self._statuses[index]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ends:
    monkeypatch.setattr("rmr1_jax.distributed.lifeline.GRACE_SECONDS", 0.1)
    return Ends()


@pytest.fixture
def three(ended: Ends) -> Iterator[list[tuple[Lifeline, Met]]]:
    """Three processes that watch one another."""
    found = call_the_roll(3, (0, 3), (1, 3), (2, 3))
    mets = [met for met in found if isinstance(met, Met)]
    yield [(Lifeline(i, met, partial(ended.end, i)), met) for i, met in enumerate(mets)]
    for met in mets:
        close(met)


class TestTheLifeline:
    @pytest.mark.parametrize("gone", [0, 1])
    def test_ends_all_where_one_is_gone(
        self, three: Any, ended: Ends, gone: int, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for link in three[gone][1].links.values():
            link.shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that was killed
        others = {0, 1, 2} - {gone}
        assert [ended(index) for index in others] == [LOST, LOST]
        said = capfd.readouterr().err
        assert f"error: process {gone} of 3 ({socket.gethostname()}) is gone" in said

    @pytest.mark.parametrize("failed", [0, 2])
    def test_passes_an_error_on(
        self, three: Any, ended: Ends, failed: int, capfd: pytest.CaptureFixture[str]
    ) -> None:
        three[failed][0].fail(2, "mend this")
        assert [ended(index) for index in {0, 1, 2} - {failed}] == [2, 2]
        said = capfd.readouterr().err
        assert said.count(f"process {failed} of 3 ({socket.gethostname()}) stopped: mend this") == 2

    def test_lets_all_go_when_the_last_is_done(self, three: Any) -> None:
        with ThreadPoolExecutor(2) as threads:
            early = [threads.submit(three[index][0].leave) for index in (0, 1)]
            assert not wait(early, timeout=0.3).done
            three[2][0].leave()
            assert len(wait(early, timeout=20).done) == 2


def test_a_missing_process_is_named_by_those_that_came() -> None:
    ended = run_job(["--stage=judge", "--join_timeout=3"], 4, 1, only=[0, 2])
    assert [end.status for end in ended] == [LOST, LOST]
    for end in ended:
        assert end.err.startswith(
            "error: 2 of 4 processes came within 3 s; missing: processes 1, 3"
        )
        assert end.err.count("\n") == 1


AGREE = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rmr1_jax.errors import UserError
from rmr1_jax.distributed.hosts import any_process, part_here, run_on_primary
from rmr1_jax.distributed.hosts import assert_same_on_all_hosts

me, file = jax.process_index(), Path(sys.argv[1])

def make():
    if not file.exists():
        file.write_text(f"by {me}")
    return file.read_text()

assert run_on_primary(make, about=file) == "by 0"
assert any_process(me == 1) and not any_process(False)
assert_same_on_all_hosts(b"the same", about="this")
try:
    assert_same_on_all_hosts(f"of {me}".encode(), about="that")
except UserError as error:
    print(error)
devices = np.array(jax.devices())
across = Mesh(devices.reshape(2, 2).T, ("rows", "columns"))  # each column is a process
split = NamedSharding(across, PartitionSpec("rows"))
assert part_here(split, axis=0) == (0, 1)  # every process has all rows
assert part_here(NamedSharding(across, PartitionSpec(None, "columns")), axis=1) == (me, 2)
"""


def test_processes_agree_on_what_there_is(tmp_path: Path) -> None:
    said = run_processes(AGREE, 2, 2, arguments=[str(tmp_path / "made")])
    for line in said:
        assert "that: is not the same in process 0 and in 1; put it where" in line
