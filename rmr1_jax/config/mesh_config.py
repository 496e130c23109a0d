"""What a `--mesh` option says: the devices along each axis of the mesh.

- `data`: groups of devices that each hold a copy of what the other two axes split;
- `fsdp`: splits the batch like `data`, and in training also the parameters and optimizer state;
- `tensor`: splits heads, MLP and vocabulary, so that one device computes a part of each layer.
"""

import re
from dataclasses import asdict, dataclass, fields

from rmr1_jax.errors import UserError

EXAMPLE = "data=1,fsdp=-1,tensor=2"


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; one of them may be -1, which means all that the others leave."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in asdict(self).items())

    @property
    def sizes(self) -> dict[str, int]:
        """Mesh axis -> devices along it, in the order of the mesh."""
        return asdict(self)


AXES = tuple(field.name for field in fields(MeshShape))


def parse_mesh(text: str) -> MeshShape:
    """The mesh that a line such as `data=1,fsdp=-1,tensor=2` asks for.

    Axes left out are 1, and at most one may be -1: the devices that the others leave. An empty line
    is `fsdp=-1`: training splits both batch and parameters over all devices; decoding, whose rules
    do not split weights over fsdp, splits the batch.

    Raises `UserError` naming the part that cannot be read.
    """
    if not text.strip():
        return MeshShape(fsdp=-1)
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = (piece.strip() for piece in part.partition("="))
        if axis not in AXES:
            raise _unreadable(text, part, f"names no axis; the axes are {', '.join(AXES)}")
        if axis in sizes:
            raise _unreadable(text, part, f"names {axis} for the second time")
        if not re.fullmatch(r"-1|[1-9][0-9]{0,8}", number):
            raise _unreadable(text, part, "needs a whole number of devices from 1 up, or -1")
        if number == "-1" and -1 in sizes.values():
            raise _unreadable(text, part, "is the second -1; only one axis can be all that is left")
        sizes[axis] = int(number)
    return MeshShape(**sizes)


def _unreadable(text: str, part: str, problem: str) -> UserError:
    return UserError(f"mesh {text!r}: {part.strip()!r} {problem}. Write for example {EXAMPLE}.")
