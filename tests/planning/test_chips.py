"""Names of chips that are not here."""

import pytest
from jax.experimental import topologies

from rmr1_jax.errors import UserError
from rmr1_jax.planning.chips import devices_of, parse_topology


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v6e-8", "v6e:2x4", 8),
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v4-16", "v4:2x2x2", 8),
        ("v5e:4x4*2", "v5e:4x4*2", 32),
        ("H200:8", "h200:8", 8),
        ("b200-1", "b200:1", 1),
        ("h100:16", "h100:16", 16),
    ],
)
def test_names_as_people_write_them(text: str, name: str, chips: int) -> None:
    topology = parse_topology(text)
    assert (topology.name, topology.chips) == (name, chips)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tpu", "names no chip and shape"),
        ("v9:2x2", "v9 is unknown"),
        ("v5e:2x2x2", "a v5e slice has 2 sides"),
        ("v5p:4x4", "a v5p slice has 3 sides"),
        ("v5e-12", "there is no such slice"),
        ("v5p-9", "there is no such slice"),
        ("v5e:4x4*0", "is no number of slices"),
        ("h200:none", "names no chip and shape"),
        ("h200:2x4", "is no number of GPUs"),
        ("h200:8*2", "is no number of GPUs"),
        ("h200:12", "machines of 8 GPUs do not make 12"),
    ],
)
def test_what_is_no_topology_is_named(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_topology(text)


class TestDevices:
    @pytest.fixture(autouse=True)
    def compiler(self) -> None:
        pytest.importorskip("libtpu", reason="the TPU compiler is not installed")

    def test_are_of_the_chip_that_was_asked_for(self) -> None:
        devices = devices_of(parse_topology("v6e-8"))
        assert len(devices) == 8
        assert {device.device_kind for device in devices} == {"TPU v6 lite"}

    def test_of_several_slices_know_theirs(self) -> None:
        devices = devices_of(parse_topology("v5e:2x2*2"))
        assert [device.slice_index for device in devices] == [0, 0, 0, 0, 1, 1, 1, 1]

    def test_a_shape_that_no_slice_has_is_refused(self) -> None:
        with pytest.raises(UserError, match="v5e:3x3: the compiler knows no such topology"):
            devices_of(parse_topology("v5e:3x3"))


class TestGpus:
    def test_without_their_compiler_are_refused_with_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def absent(**options: object) -> None:
            raise NotImplementedError("topology not implemented for cuda")

        monkeypatch.setattr(topologies, "get_topology_desc", absent)
        with pytest.raises(UserError, match=r"the GPU compiler is not installed .*'jax\[cuda13\]'"):
            devices_of(parse_topology("h200:8"))

    @pytest.mark.parametrize(
        ("text", "kind", "hosts"),
        [("h100:2", "NVIDIA H100", 1), ("h200:8", "NVIDIA H200", 1), ("b200:16", "NVIDIA B200", 2)],
    )
    def test_are_of_the_kind_that_was_asked_for(self, text: str, kind: str, hosts: int) -> None:
        pytest.importorskip("jax_plugins.xla_cuda13", reason="the GPU compiler is not installed")
        topology = parse_topology(text)
        devices = devices_of(topology)
        assert {device.device_kind for device in devices} == {kind}
        assert len(devices) == topology.chips == hosts * topology.part
        assert {device.process_index for device in devices} == set(range(hosts))
