"""Programs that a compiler refuses, and where those that it makes are not kept."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from rmr1_jax.errors import UserError
from rmr1_jax.planning.compiled import Planned, compile_ahead


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


def test_what_is_planned_is_neither_kept_nor_read(tmp_path: Path) -> None:
    """Programs for absent devices cannot be read again; others before and after them are kept."""
    always: dict[str, Any] = {"jax_compilation_cache_dir": str(tmp_path)}
    always |= {"jax_persistent_cache_min_compile_time_secs": 0}
    always |= {"jax_persistent_cache_min_entry_size_bytes": -1}
    kept = {name: getattr(jax.config, name) for name in always}

    def lower(times: float) -> Any:
        return jax.jit(lambda x: x * times).lower(jnp.ones(3))

    def entries() -> int:
        return len([*tmp_path.glob("*-cache")])

    try:
        for name, value in always.items():
            jax.config.update(name, value)
        reset_cache()
        lower(2.0).compile()
        before = entries()
        assert before
        compile_ahead(Planned("update", lambda: lower(3.0), runs=1))
        assert entries() == before
        lower(4.0).compile()
        assert entries() == before + 1
    finally:
        for name, value in kept.items():
            jax.config.update(name, value)
        reset_cache()
