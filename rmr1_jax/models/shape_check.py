"""What a checkpoint holds against what its config asks for: every difference in one message."""

from collections.abc import Mapping, Sequence

from rmr1_jax.errors import UserError

# Names listed in one message, per kind of problem.
LISTED = 10

Shapes = Mapping[str, tuple[int, ...]]


def check_shapes(
    what: str, expected: Shapes, found: Shapes, *, unsupported: Sequence[str] = ()
) -> None:
    """Raises one `UserError` with all that is missing, extra, misshapen or of an unsupported kind.

    `what` opens the message; `unsupported` are tensors the caller cannot read, with the reason.
    Long lists are cut and counted.
    """
    problems = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "misshapen": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
        "of an unsupported dtype": list(unsupported),
    }
    parts = []
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            parts.append(f"{len(names)} {kind}: {', '.join(names[:LISTED])}{more}")
    if parts:
        raise UserError(
            f"{what}: {'; '.join(parts)}. Download the checkpoint again, or mend its config."
        )
