"""A mesh line is read, checked against devices, model and batch, and refused with what would do."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import mesh_utils, topologies
from jax.sharding import NamedSharding, PartitionSpec

from rmr1_jax.config.mesh_config import AXES, MeshShape, parse_mesh
from rmr1_jax.distributed.mesh import check_mesh, make_mesh
from rmr1_jax.distributed.sharding_rules import DECODING_RULES, TRAINING_RULES, Rules
from rmr1_jax.errors import UserError

# Qwen2.5-0.5B.
SIZES = {"embed": 896, "heads": 14, "kv_heads": 2, "mlp": 4864, "vocab": 151_936, "layers": 24}


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("data=1,fsdp=-1,tensor=2", MeshShape(data=1, fsdp=-1, tensor=2)),
        ("tensor=2", MeshShape(data=1, fsdp=1, tensor=2)),
        (" tensor = 4 , data = 2 ", MeshShape(data=2, fsdp=1, tensor=4)),
        ("", MeshShape(data=1, fsdp=-1, tensor=1)),
        ("  ", MeshShape(data=1, fsdp=-1, tensor=1)),
    ],
)
def test_mesh_line_is_read(text: str, shape: MeshShape) -> None:
    assert parse_mesh(text) == shape


@pytest.mark.parametrize(
    ("text", "part", "problem"),
    [
        ("data=1,fdsp=4", "'fdsp=4'", "names no axis; the axes are data, fsdp, tensor"),
        ("data=1,", "''", "names no axis"),
        ("8", "'8'", "names no axis"),
        ("tensor", "'tensor'", "needs a whole number"),
        ("tensor=two", "'tensor=two'", "needs a whole number"),
        ("tensor=0", "'tensor=0'", "needs a whole number"),
        ("tensor=-2", "'tensor=-2'", "needs a whole number"),
        ("tensor=2.0", "'tensor=2.0'", "needs a whole number"),
        ("data=2,data=2", "'data=2'", "names data for the second time"),
        ("data=-1,fsdp=-1", "'fsdp=-1'", "is the second -1"),
    ],
)
def test_unreadable_line_is_refused_with_the_bad_part_and_an_example(
    text: str, part: str, problem: str
) -> None:
    with pytest.raises(UserError) as error:
        parse_mesh(text)
    message = str(error.value)
    assert f"mesh {text!r}: {part} {problem}" in message
    assert message.endswith("Write for example data=1,fsdp=-1,tensor=2.")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        shape = parse_mesh(text)
    except UserError:
        return
    assert parse_mesh(str(shape)) == shape


@pytest.mark.parametrize("text", ["", "data=-1", "data=2,fsdp=-1,tensor=2", "fsdp=4,tensor=2"])
def test_mesh_that_fits_is_returned_with_every_axis_known(text: str) -> None:
    shape = check_mesh(parse_mesh(text), num_devices=8, sizes=SIZES, rules=TRAINING_RULES, batch=16)
    assert shape.data * shape.fsdp * shape.tensor == 8


def refusal(text: str, rules: Rules = TRAINING_RULES, **changes: int) -> str:
    batch, devices = changes.pop("batch", 16), changes.pop("num_devices", 8)
    with pytest.raises(UserError) as error:
        check_mesh(
            parse_mesh(text),
            num_devices=devices,
            sizes={**SIZES, **changes},
            rules=rules,
            batch=batch,
        )
    return str(error.value)


def test_mesh_of_too_few_or_too_many_devices_is_refused() -> None:
    assert "1 x 2 x 2 = 4 devices, and there are 8" in refusal("fsdp=2,tensor=2")
    assert "16 x 1 x 1 = 16 devices, and there are 8" in refusal("data=16")


def test_axes_that_leave_no_whole_number_for_the_rest_are_refused() -> None:
    message = refusal("fsdp=-1,tensor=3")
    assert "1 x 3 = 3 does not divide the 8 devices" in message
    assert message.endswith("data=1,fsdp=4,tensor=2 would do.")


def test_every_model_axis_that_does_not_divide_is_named_at_once() -> None:
    message = refusal("fsdp=-1,tensor=4", mlp=4866)
    assert message == (
        "mesh data=1,fsdp=2,tensor=4 does not fit: heads 14 is not a multiple of tensor 4; "
        "kv_heads 2 is not a multiple of tensor 4; mlp 4866 is not a multiple of tensor 4. "
        "data=1,fsdp=4,tensor=2 would do."
    )


def test_embed_must_divide_by_fsdp_only_where_the_rules_split_it() -> None:
    assert "embed 900 is not a multiple of fsdp 8" in refusal("fsdp=8", embed=900)
    sizes = {**SIZES, "embed": 900}
    check_mesh(MeshShape(fsdp=8), num_devices=8, sizes=sizes, rules=DECODING_RULES)


def test_batch_must_divide_by_data_times_fsdp() -> None:
    message = refusal("data=2,fsdp=4", batch=12)
    assert "batch 12 is not a multiple of data 2 x fsdp 4" in message
    assert message.endswith("data=1,fsdp=4,tensor=2 would do.")


def test_where_no_mesh_divides_the_batch_a_batch_is_advised_too() -> None:
    message = refusal("data=8", batch=1)
    assert message.endswith("data=8,fsdp=1,tensor=1 would do with a batch that is a multiple of 8.")


def test_odd_vocabulary_is_no_reason_to_refuse() -> None:
    sizes = {**SIZES, "vocab": 151_665}
    check_mesh(MeshShape(fsdp=4, tensor=2), num_devices=8, sizes=sizes, rules=TRAINING_RULES)


@given(
    text=st.sampled_from(["", "tensor=-1", "data=3,fsdp=-1", "fsdp=5,tensor=2", "data=7"]),
    num_devices=st.integers(1, 64),
    heads=st.integers(1, 12),
    batch=st.integers(1, 48),
)
def test_the_mesh_that_is_advised_fits(text: str, num_devices: int, heads: int, batch: int) -> None:
    sizes = {"heads": 2 * heads, "kv_heads": heads, "embed": 6 * heads, "mlp": 24}
    asked = parse_mesh(text)

    def check(shape: MeshShape, batch: int) -> MeshShape:
        return check_mesh(
            shape, num_devices=num_devices, sizes=sizes, rules=TRAINING_RULES, batch=batch
        )

    try:
        check(asked, batch)
    except UserError as error:
        advice = str(error).rsplit(". ", 1)[1]
        mesh, _, rest = advice.removesuffix(".").partition(" would do")
        if rest:
            batch = int(rest.split()[-1])
        assert check(parse_mesh(mesh), batch) == parse_mesh(mesh)


@pytest.mark.devices8
def test_mesh_is_built_over_all_devices_in_the_order_of_the_axes() -> None:
    mesh = make_mesh(parse_mesh("data=2,fsdp=-1,tensor=2"))
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.devices8
def test_mesh_is_built_over_the_devices_given() -> None:
    mesh = make_mesh(MeshShape(tensor=2), jax.devices()[2:4])
    assert list(mesh.devices.flat) == jax.devices()[2:4]
    with pytest.raises(UserError, match="there are 3"):
        make_mesh(MeshShape(tensor=2), jax.devices()[:3])


@pytest.mark.devices8
def test_topology_that_jax_cannot_lay_out_keeps_the_plain_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("the torus cannot be cut into that shape")

    expected = make_mesh(MeshShape(data=2, fsdp=4))
    monkeypatch.setattr(mesh_utils, "create_device_mesh", refuse)
    assert make_mesh(MeshShape(data=2, fsdp=4)) == expected


@dataclass(frozen=True)
class Chip:
    """A TPU device that is nowhere, on a torus of 4 x 2."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "nowhere"
    process_index: int = 0


def chips(*sizes: int) -> Any:
    """Of slices of these sizes, listed in no order."""
    found = [
        Chip(10 * number + i, number, (i % 4, i // 4, 0))
        for number, size in enumerate(sizes)
        for i in range(size)
    ]
    return found[1::2] + found[0::2]


def test_slices_follow_one_another_along_data() -> None:
    mesh = make_mesh(MeshShape(data=4, fsdp=2, tensor=2), chips(8, 8))
    of_slice = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert (of_slice == np.array([0, 0, 1, 1])[:, None, None]).all()
    assert len(set(mesh.devices.flat)) == 16


def test_mesh_that_no_slice_holds_whole_is_refused_with_one_that_would_do() -> None:
    with pytest.raises(UserError) as error:
        make_mesh(MeshShape(fsdp=8, tensor=2), chips(8, 8))
    assert str(error.value) == (
        "mesh data=1,fsdp=8,tensor=2 does not fit: data 1 is not a multiple of the 2 slices of the "
        "16 devices. data=2,fsdp=4,tensor=2 would do."
    )
    with pytest.raises(UserError, match="the slices have 8, 4 devices"):
        make_mesh(MeshShape(data=12), chips(8, 4))


def test_two_real_slices_reduce_gradients_over_the_network_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("libtpu")
    for name, value in {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}.items():
        monkeypatch.setenv(name, value)
    found = topologies.get_topology_desc("v5e:2x4", platform="tpu", num_slices=2)
    mesh = make_mesh(MeshShape(data=2, fsdp=4, tensor=2), found.devices)
    assert [chip.slice_index for chip in mesh.devices[:, 0, 0]] == [0, 1]

    def placed(shape: tuple[int, int], *axes: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)

    gradient = jax.grad(lambda weights, x: (x @ weights).sum())
    weights, x = placed((128, 128), "fsdp", "tensor"), placed((32, 128), ("data", "fsdp"))
    program = (
        jax.jit(gradient, out_shardings=weights.sharding).lower(weights, x).compile().as_text()
    )
    assert program is not None and "megascale" in program  # what goes from slice to slice
