"""Programs that a compiler refuses."""

import jax
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.planning.compiled import compile_ahead
from rmr1_jax.planning.programs import Planned


def refused(message: str) -> Planned:
    def lower() -> None:
        raise jax.errors.JaxRuntimeError(message)

    return Planned("update", lower, runs=1)


def test_too_little_memory_is_a_result() -> None:
    found = compile_ahead(
        refused("RESOURCE_EXHAUSTED: needs (41.50G) exceeds available HBM (15.75G)")
    )
    assert found.memory is None and not found.fits(15.75 * 2**30)
    assert found.excess(15.75 * 2**30) == 25.75 * 2**30


@pytest.mark.parametrize(
    "message",
    [
        "UNAVAILABLE: No PTX compilation provider is available. Neither ptxas/nvlink nor nvjtlink",
        "INTERNAL: libdevice not found at ./libdevice.10.bc",
    ],
)
def test_a_compiler_that_lacks_a_part_says_what_to_install(message: str) -> None:
    with pytest.raises(UserError, match=r"pip install 'jax\[cuda13\]'"):
        compile_ahead(refused(message))


def test_other_failures_are_raised_as_they_are() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: something else"):
        compile_ahead(refused("INTERNAL: something else"))
