"""The device mesh, checked before anything compiles."""

import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from rmr1_jax.config.mesh_config import AXES, MeshShape
from rmr1_jax.distributed.sharding_rules import MAY_BE_UNEVEN, Rules, ways
from rmr1_jax.errors import UserError


def check_mesh(
    shape: MeshShape,
    *,
    num_devices: int,
    sizes: Mapping[str, int],
    rules: Rules,
    batch: int | None = None,
) -> MeshShape:
    """`shape` with its -1 filled in, if it fits the devices, the model and the batch.

    Args:
      shape: the mesh that was asked for.
      num_devices: devices to use; the mesh must use each of them exactly once.
      sizes: logical axis -> size, of the model (`sharding_rules.axis_sizes`).
      rules: what splits which axis; decoding rules, which do not split embed, allow more meshes.
      batch: rows of one batch, if known.

    Raises:
      UserError: everything that does not divide, with the numbers, and the nearest mesh that would
        do. A vocabulary that does not divide is no error: `sharding_rules.even_rules` keeps it
        whole.
    """
    sizes = dict(sizes) if batch is None else {**sizes, "batch": batch}
    filled, problems = shape, _device_problems(shape, num_devices)
    if not problems:
        filled = _filled(shape, num_devices)
        problems = _uneven(filled, sizes, rules)
    if problems:
        advice = _advice(shape, num_devices, sizes, rules)
        raise UserError(f"mesh {filled} does not fit: {'; '.join(problems)}. {advice}")
    return filled


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all there are), axes `data`, `fsdp`, `tensor`.

    Where JAX knows the topology, neighbours in the mesh are neighbours on the wire; elsewhere the
    devices keep their order. Several TPU slices follow one another along `data`: the network that
    joins them is slow, and that axis needs it least. Raises `UserError` if the mesh does not use
    each device exactly once, or if `data` is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = check_mesh(shape, num_devices=len(devices), sizes={}, rules={})
    slices = _slices(devices)
    if shape.data % len(slices):
        raise UserError(
            f"mesh {shape} does not fit: data {shape.data} is not a multiple of the {len(slices)} "
            f"slices of the {len(devices)} devices. {_over_slices(shape, slices)} would do."
        )
    inside = (shape.data // len(slices), shape.fsdp, shape.tensor)
    placed = np.concatenate([_arranged(inside, some) for some in slices])
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices by TPU slice; all in one where there are none. GPUs have slices as well, one a
    host, but what joins those may well carry the other axes."""
    by_slice: dict[int, list[jax.Device]] = {}
    for device in devices:
        number = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        by_slice.setdefault(number, []).append(device)
    found = [by_slice[number] for number in sorted(by_slice)]
    if len({len(some) for some in found}) > 1:
        sizes = ", ".join(str(len(some)) for some in found)
        raise UserError(f"the slices have {sizes} devices; a mesh needs slices of one size")
    return found


def _arranged(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of one slice, in the order of the wires where it can be cut into that shape."""
    for split in (False, True):  # whether an axis of the torus may be divided among two of ours
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
        except (NotImplementedError, ValueError):
            continue
    return np.array(devices).reshape(shape)


def _over_slices(shape: MeshShape, slices: Sequence[Sequence[jax.Device]]) -> MeshShape:
    """The nearest mesh that has a whole number of data groups in each slice."""
    fitting = [m for m in _meshes(len(slices) * len(slices[0])) if not m.data % len(slices)]
    # Of equally near ones that with the same tensor, which the model's heads have to divide.
    return min(fitting, key=lambda m: (_distance(m, shape), m.tensor != shape.tensor))


def _device_problems(shape: MeshShape, num_devices: int) -> list[str]:
    named = [size for size in shape.sizes.values() if size != -1]
    product = math.prod(named)
    calculation = " x ".join(str(size) for size in named)
    if len(named) == len(AXES) and product != num_devices:
        return [f"{calculation} = {product} devices, and there are {num_devices}"]
    if num_devices % product:
        return [f"{calculation} = {product} does not divide the {num_devices} devices"]
    return []


def _filled(shape: MeshShape, num_devices: int) -> MeshShape:
    rest = num_devices // math.prod(size for size in shape.sizes.values() if size != -1)
    return MeshShape(**{a: rest if size == -1 else size for a, size in shape.sizes.items()})


def _uneven(shape: MeshShape, sizes: Mapping[str, int], rules: Rules) -> list[str]:
    """One phrase for each axis that the mesh does not divide."""
    return [
        f"{axis} {size} is not a multiple of "
        + " x ".join(f"{name} {shape.sizes[name]}" for name in rules[axis])
        for axis, size in sizes.items()
        if axis not in MAY_BE_UNEVEN and size % ways(axis, rules, shape.sizes)
    ]


def _advice(shape: MeshShape, num_devices: int, sizes: Mapping[str, int], rules: Rules) -> str:
    """The mesh nearest to `shape` that fits; where no mesh divides the batch, a batch as well."""

    def nearest(wanted: Mapping[str, int]) -> MeshShape | None:
        fitting = [mesh for mesh in _meshes(num_devices) if not _uneven(mesh, wanted, rules)]
        return min(fitting, key=lambda mesh: _distance(mesh, shape), default=None)

    if mesh := nearest(sizes):
        return f"{mesh} would do."
    # The axis data splits nothing but the batch, so for the model alone there is a mesh.
    mesh = nearest({axis: size for axis, size in sizes.items() if axis != "batch"}) or shape
    rows = ways("batch", rules, mesh.sizes)
    return f"{mesh} would do with a batch that is a multiple of {rows}."


def _meshes(num_devices: int) -> Iterator[MeshShape]:
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    for tensor in divisors:
        for fsdp in reversed(divisors):  # of equally near meshes, the one that copies least
            if num_devices // tensor % fsdp == 0:
                yield MeshShape(num_devices // tensor // fsdp, fsdp, tensor)


def _distance(mesh: MeshShape, wanted: MeshShape) -> float:
    """By how many doublings the axes differ; an axis that was left open (-1) may be anything."""
    pairs = zip(mesh.sizes.values(), wanted.sizes.values(), strict=True)
    return sum(abs(math.log2(have / want)) for have, want in pairs if want != -1)
