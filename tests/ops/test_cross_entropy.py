"""Log-probabilities in chunks equal those from all logits, in a fraction of the memory."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.distributed.sharding_rules import TRAINING_RULES, partition_spec
from rmr1_jax.ops import cross_entropy
from rmr1_jax.ops.cross_entropy import (
    HeadLayout,
    even_chunk,
    target_logprobs,
)

LAYOUTS: tuple[HeadLayout, ...] = ("VD", "DV")


def random_inputs(
    seed: int, layout: HeadLayout, *, B: int = 3, W: int = 21, D: int = 16, V: int = 50
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Hidden states, a head, targets, and rows that are valid for a random length."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 1, (B, W, D)).astype(np.float32)
    head = rng.normal(0, 1, (V, D)).astype(np.float32)
    valid = np.arange(W) < rng.integers(0, W + 1, (B, 1))
    targets = rng.integers(0, V, (B, W))
    targets = np.where(rng.random((B, W)) < 0.5, (hidden @ head.T).argmax(-1), targets)
    head = head if layout == "VD" else head.T
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets), jnp.asarray(valid)


def plain_target_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    *,
    layout: HeadLayout,
    entropy: bool = False,
) -> tuple[jax.Array, ...]:
    """The reference: `target_logprobs` from all logits at once."""
    logits = jnp.matmul(
        hidden,
        (head.T if layout == "VD" else head).astype(hidden.dtype),
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    every = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    logprobs = jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0]
    results = jnp.where(valid, logprobs, 0.0), valid & (chosen >= logits.max(-1))
    if not entropy:
        return results
    return *results, jnp.where(valid, -(jnp.exp(every) * every).sum(-1), 0.0)


@functools.cache
def chunked(layout: HeadLayout, chunk: int) -> Any:
    return functools.partial(target_logprobs, layout=layout, chunk=chunk)


@functools.cache
def plain(layout: HeadLayout) -> Any:
    return functools.partial(plain_target_logprobs, layout=layout)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function: Any, hidden: Any, head: Any, targets: Any, valid: Any) -> Any:
    """Log-probabilities and correctness; gradients of a sum that weighs each token differently."""

    def loss(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
        logprobs, correct = function(hidden, head, targets, valid)
        weights = jnp.cos(jnp.arange(logprobs.size)).reshape(logprobs.shape)
        return jnp.sum(weights * logprobs), (logprobs, correct)

    gradients, results = jax.grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)
    return *results, *gradients


@functools.partial(jax.jit, static_argnums=0)
def with_entropy(function: Any, hidden: Any, head: Any, targets: Any, valid: Any) -> Any:
    """All three results; gradients of a sum in which both kinds of numbers weigh differently."""

    def loss(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
        results = function(hidden, head, targets, valid, entropy=True)
        angles = jnp.arange(targets.size).reshape(targets.shape)
        weighted = jnp.cos(angles) * results[0] + jnp.sin(angles) * results[2]
        return jnp.sum(weighted), results

    gradients, results = jax.grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)
    return *results, *gradients


def assert_same(ours: Any, expected: Any, tolerance: float) -> None:
    """Equal relative to the largest value of each array."""
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    ("layout", "B", "W", "chunk"),
    [
        ("VD", 1, 1, 4),
        ("DV", 3, 20, 4),
        ("VD", 2, 21, 8),
        ("DV", 3, 5, 32),
        pytest.param("DV", 1, 1, 4, marks=pytest.mark.nightly),
        pytest.param("VD", 3, 20, 4, marks=pytest.mark.nightly),
        pytest.param("DV", 2, 21, 8, marks=pytest.mark.nightly),
        pytest.param("VD", 3, 5, 32, marks=pytest.mark.nightly),
    ],
)
def test_any_chunks_give_the_plain_values_and_gradients(
    layout: HeadLayout, B: int, W: int, chunk: int
) -> None:
    for seed in range(5):
        inputs = random_inputs(seed, layout, B=B, W=W)
        ours = with_gradients(chunked(layout, chunk), *inputs)
        assert_same(ours, with_gradients(plain(layout), *inputs), 2e-6)


@pytest.mark.parametrize(
    ("layout", "B", "W", "chunk"),
    [
        ("VD", 3, 20, 4),
        ("DV", 2, 21, 8),
        pytest.param("DV", 3, 20, 4, marks=pytest.mark.nightly),
        pytest.param("VD", 2, 21, 8, marks=pytest.mark.nightly),
    ],
)
def test_entropies_and_their_gradients_are_the_plain_ones(
    layout: HeadLayout, B: int, W: int, chunk: int
) -> None:
    for seed in range(5):
        inputs = random_inputs(seed, layout, B=B, W=W)
        ours = with_entropy(chunked(layout, chunk), *inputs)
        assert_same(ours, with_entropy(plain(layout), *inputs), 2e-6)
        without = with_gradients(chunked(layout, chunk), *inputs)
        assert_same(ours[:2], without[:2], 0.0)
        assert not np.asarray(ours[2])[~np.asarray(inputs[3])].any()


def test_entropy_is_the_expected_surprise_and_its_gradient_the_slope() -> None:
    """In float64, from the definition; the gradient from finite differences."""
    hidden, head, targets, _ = random_inputs(0, "VD", B=1, W=6)
    valid = jnp.ones(targets.shape, bool)

    def entropies(hidden: np.ndarray) -> np.ndarray:
        logits = hidden @ np.asarray(head, np.float64).T
        softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return -(softmax * np.log(softmax)).sum(-1)

    def ours(hidden: jax.Array) -> jax.Array:
        return target_logprobs(hidden, head, targets, valid, layout="VD", chunk=4, entropy=True)[2]

    exact = np.asarray(hidden, np.float64)
    np.testing.assert_allclose(ours(hidden), entropies(exact), rtol=1e-5)
    direction = np.random.default_rng(1).normal(0, 1, exact.shape)
    step = 1e-5 * direction
    slope = (entropies(exact + step) - entropies(exact - step)).sum() / 2e-5
    gradient = np.asarray(jax.grad(lambda hidden: ours(hidden).sum())(hidden), np.float64)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-4)


def test_even_softmax_has_the_entropy_of_the_vocabulary_and_a_certain_one_none() -> None:
    targets, valid = jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)
    hidden = jnp.asarray([[[0.0], [1.0]]])
    head = jnp.asarray([[1e4], *([[0.0]] * 49)])
    *_, entropy = target_logprobs(hidden, head, targets, valid, layout="VD", entropy=True)
    np.testing.assert_allclose(entropy, [[np.log(50), 0.0]], rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_as_close_to_fp32_as_the_plain_one(layout: HeadLayout) -> None:
    hidden, head, *rest = random_inputs(0, layout, B=4, W=64, D=64, V=300)
    exact = with_gradients(plain(layout), hidden, head, *rest)
    narrow = hidden.astype(jnp.bfloat16)
    ours = with_gradients(chunked(layout, 8), narrow, head, *rest)
    reference = with_gradients(plain(layout), narrow, head, *rest)
    assert ours[2].dtype == jnp.bfloat16
    assert ours[3].dtype == jnp.float32  # summed over chunks in fp32, and never rounded
    for mine, theirs, true in zip(ours, reference, exact, strict=True):
        distance = lambda x: np.abs(np.asarray(x, np.float64) - np.asarray(true)).mean()  # noqa: B023, E731
        assert distance(mine) <= 1.1 * distance(theirs)


def test_huge_logits_overflow_nothing() -> None:
    hidden, head, targets, valid = random_inputs(3, "VD")
    for compute in (with_gradients, with_entropy):
        ours = compute(chunked("VD", 4), 1e4 * hidden, head, targets, valid)
        assert all(np.isfinite(x).all() for x in ours)


def test_chunks_without_a_valid_target_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[float] = []
    original = cross_entropy._chunk_logits

    def counted(plan: Any, hidden: jax.Array, table: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: computed.append(float(x)), hidden[0, 0, 0])
        return original(plan, hidden, table)

    monkeypatch.setattr(cross_entropy, "_chunk_logits", counted)
    hidden, head, targets, _ = random_inputs(1, "VD", B=2, W=20)
    hidden = hidden.at[0, ::4, 0].set(jnp.arange(5))  # names its chunk
    valid = jnp.zeros((2, 20), bool).at[0, 5].set(True).at[1, 18].set(True)
    ours = with_gradients(
        functools.partial(target_logprobs, layout="VD", chunk=4), hidden, head, targets, valid
    )
    jax.effects_barrier()
    assert sorted(computed) == [1.0, 1.0, 4.0, 4.0]  # forwards and backwards
    expected = with_gradients(plain("VD"), hidden, head, targets, valid)
    assert_same(ours, expected, 2e-6)


def test_nothing_valid_gives_zeros() -> None:
    hidden, head, targets, valid = random_inputs(1, "VD")
    results = with_gradients(chunked("VD", 4), hidden, head, targets, valid & False)
    assert not any(np.asarray(x).any() for x in results)


@pytest.mark.devices8
@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("VD", (2, 2, 2)),
        ("DV", (1, 4, 2)),
        pytest.param("VD", (1, 8, 1), marks=pytest.mark.nightly),
        pytest.param("DV", (2, 2, 2), marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_sharded_over_devices_it_is_the_same(
    layout: HeadLayout, shape: tuple[int, int, int]
) -> None:
    mesh = make_mesh(MeshShape(*shape))
    rows = shape[0] * shape[1]
    inputs = random_inputs(0, layout, B=8, W=21, V=48)
    place = lambda *axes: NamedSharding(mesh, partition_spec(axes, TRAINING_RULES))  # noqa: E731
    head = place("vocab", "embed") if layout == "VD" else place("embed", "vocab")
    batch = place("batch", None)
    shardings = (place("batch", None, None), head, batch, batch)

    def step(*given: jax.Array) -> Any:
        return with_entropy(
            lambda *x, entropy: target_logprobs(
                *x,
                layout=layout,
                chunk=4,
                batch_shards=rows,
                constrain=lambda y, axes: jax.lax.with_sharding_constraint(y, place(*axes)),
                entropy=entropy,
            ),
            *given,
        )

    program = jax.jit(
        step, in_shardings=shardings, out_shardings=(batch, batch, batch, *shardings[:2])
    ).lower(*inputs)
    compiled = program.compile()
    expected = with_entropy(plain(layout), *inputs)
    assert_same(compiled(*jax.device_put(inputs, shardings)), expected, 2e-6)
    # In the loops devices exchange a number a token, never logits nor the gradient of the head.
    for body in loop_bodies(compiled.as_text() or ""):
        for line in body:
            if re.search(r"= .*(all-gather|all-reduce|all-to-all|reduce-scatter)\(", line):
                assert "all-reduce" in line
                assert not re.search(r"\[[\d,]*(48|24)[\d,]*\]", line.split("all-reduce")[0]), line


def loop_bodies(program: str) -> list[list[str]]:
    """The lines of each computation that is the body of a loop."""
    names = set(re.findall(r"body=%?([\w.\-]+)", program))
    found = [
        block.splitlines()
        for block in program.split("\n\n")
        if (name := re.match(r"\s*%?([\w.\-]+)", block)) and name[1] in names
    ]
    assert len(found) >= 2
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_is_under_a_third_of_the_plain_one(layout: HeadLayout) -> None:
    """At RM-R1's row and vocabulary, as compiled; nothing is run."""
    W, V, D = 12_288, 152_064, 64
    head = (V, D) if layout == "VD" else (D, V)
    arguments = (
        jax.ShapeDtypeStruct((1, W, D), jnp.bfloat16),
        jax.ShapeDtypeStruct(head, jnp.float32),
        jax.ShapeDtypeStruct((1, W), jnp.int32),
        jax.ShapeDtypeStruct((1, W), jnp.bool_),
    )

    def compiled(function: Any) -> Any:
        step = jax.jit(lambda *x: with_gradients(lambda *y: function(*y, layout=layout), *x))
        return step.lower(*arguments).compile()

    ours, reference = compiled(target_logprobs), compiled(plain_target_logprobs)
    memory = [x.memory_analysis().temp_size_in_bytes for x in (ours, reference)]
    assert memory[0] < memory[1] / 3
    assert memory[0] < 2**30
    # The head is read as it is stored: no chunk multiplies with a transposed copy.
    text = ours.as_text() or ""
    sizes = rf"\[({V},{D}|{D},{V})\]"
    assert not re.search(rf"{sizes}\S* (transpose|copy)\(", text)


def test_chunks_are_equal_and_follow_the_vocabulary_and_the_rows() -> None:
    assert even_chunk(12_288, 152_064, rows=1) == 439  # 28 of them; 4 positions are padding
    assert even_chunk(12_288, 152_064, rows=4) == 110
    assert even_chunk(512, 49_152, rows=4) == 256
    assert even_chunk(300, 512, rows=8) == 300
    assert even_chunk(96, 152_064, rows=1000) == 32
