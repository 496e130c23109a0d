"""A prompt computed once for all its responses: the numbers of each sequence computed alone."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.distributed.sharding_rules import TRAINING_RULES, partition_spec, shardings
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Remat, logical_axes, random_params, with_params
from rmr1_jax.ops.constrain import Constrain, unconstrained
from rmr1_jax.ops.cross_entropy import target_logprobs

CONFIG = ModelConfig(
    model_type="qwen3",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=256,
    qk_norm=True,
    tie_embeddings=True,
)
# Rows of groups, each a prompt's length and its responses'. A response of one token is never an
# input. The first row is longer than two blocks of attention on CPU, and ends in padding.
ROWS: tuple[list[tuple[int, list[int]]], ...] = (
    [(90, [40, 1, 60, 33]), (20, [12, 50])],
    [(5, [7, 3, 9, 2, 1, 11, 6]), (70, [100]), (31, [17, 1])],
)


Group = tuple[list[int], list[list[int]]]  # the tokens of a prompt and of its responses


class Row(NamedTuple):
    """Inputs, and which position predicts what."""

    tokens: list[int]
    positions: list[int]
    segment_ids: list[int]
    response_ids: list[int]
    loss_positions: list[int]
    targets: list[int]


def draw(seed: int) -> list[list[Group]]:
    """The groups of each row, as random tokens."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        return [int(token) for token in rng.integers(0, 96, length)]

    return [
        [(tokens(prompt), [tokens(length) for length in lengths]) for prompt, lengths in row]
        for row in ROWS
    ]


def shared(groups: list[Group]) -> Row:
    """One row: each prompt once, then its responses one after another."""
    row, response_number = Row([], [], [], [], [], []), 0
    for segment, (prompt, responses) in enumerate(groups, start=1):
        row.tokens.extend(prompt)
        row.positions.extend(range(len(prompt)))
        row.response_ids.extend([0] * len(prompt))
        last = len(row.tokens) - 1
        for response in responses:
            response_number += 1
            start = len(row.tokens)
            row.tokens.extend(response[:-1])
            row.positions.extend(range(len(prompt), len(prompt) + len(response) - 1))
            row.response_ids.extend([response_number] * (len(response) - 1))
            row.loss_positions.extend([last, *range(start, len(row.tokens))])
            row.targets.extend(response)
        row.segment_ids.extend([segment] * (len(row.tokens) - len(row.segment_ids)))
    return row


def alone(prompt: list[int], response: list[int]) -> Row:
    """One row: a prompt and one of its responses."""
    tokens = prompt + response[:-1]
    first = len(prompt) - 1
    return Row(
        tokens=tokens,
        positions=list(range(len(tokens))),
        segment_ids=[1] * len(tokens),
        response_ids=[0] * len(tokens),
        loss_positions=list(range(first, first + len(response))),
        targets=response,
    )


def batch_of(rows: list[Row]) -> dict[str, jax.Array]:
    """[R, T] arrays, padded with zeros; `valid` says where there is a target."""

    def padded(field: str) -> np.ndarray:
        lists = [getattr(row, field) for row in rows]
        width = max(len(row) for row in lists) + 10
        return np.array([row + [0] * (width - len(row)) for row in lists])

    batch = {field: padded(field) for field in Row._fields}
    counts = np.array([len(row.targets) for row in rows])
    batch["valid"] = np.arange(batch["targets"].shape[1]) < counts[:, None]
    return {field: jnp.asarray(leaf) for field, leaf in batch.items()}


def scores(
    params: Any,
    batch: dict[str, jax.Array],
    with_responses: bool,
    *,
    remat: Remat = "none",
    constrain: Constrain = unconstrained,
    batch_shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies where there is a target."""
    model = with_params(CONFIG, params, dtype=jnp.float32)
    hidden = model(
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        batch["response_ids"] if with_responses else None,
        remat=remat,
        constrain=constrain,
    )
    hidden = jnp.take_along_axis(hidden, batch["loss_positions"][..., None], axis=1)
    head, layout = model.head()
    logprobs, _, entropy = target_logprobs(
        hidden,
        head,
        batch["targets"],
        batch["valid"],
        layout=layout,
        batch_shards=batch_shards,
        constrain=constrain,
        entropy=True,
    )
    return logprobs, entropy


def learn(params: Any, batch: dict[str, jax.Array], with_responses: bool, **settings: Any) -> Any:
    """Gradients of a loss to which each target adds by what it is; and all numbers in it."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logprobs, entropy = scores(params, batch, with_responses, **settings)
        weights = jnp.cos(batch["targets"]) * batch["valid"]
        return jnp.sum(weights * (logprobs + 0.3 * entropy)), (logprobs, entropy)

    return jax.grad(loss, has_aux=True)(params)


@functools.cache
def naive() -> tuple[Any, Any, Any]:
    """Parameters; gradients and numbers of every sequence in a row of its own."""
    params = random_params(CONFIG)
    rows = [
        alone(prompt, response)
        for groups in draw(0)
        for prompt, responses in groups
        for response in responses
    ]
    batch = batch_of(rows)
    gradients, numbers = jax.jit(learn, static_argnums=2)(params, batch, False)
    valid = np.asarray(batch["valid"])
    return params, gradients, [np.asarray(x)[valid] for x in numbers]


def assert_same_gradients(ours: Any, expected: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max())),
        jax.tree.map(np.asarray, ours),
        jax.tree.map(np.asarray, expected),
    )


# "full" is what eight devices compute with below.
@pytest.mark.parametrize("remat", ["none", pytest.param("dots", marks=pytest.mark.nightly)])
def test_a_shared_prompt_gives_the_numbers_of_separate_sequences(remat: Remat) -> None:
    params, expected, expected_numbers = naive()
    batch = batch_of([shared(groups) for groups in draw(0)])
    step = jax.jit(functools.partial(learn, remat=remat), static_argnums=2)
    gradients, numbers = step(params, batch, True)
    valid = np.asarray(batch["valid"])
    for a, b in zip(numbers, expected_numbers, strict=True):
        np.testing.assert_allclose(np.asarray(a)[valid], b, rtol=0, atol=1e-5)
        assert not np.asarray(a)[~valid].any()
    assert_same_gradients(gradients, expected)


def test_without_response_ids_responses_would_see_each_other() -> None:
    """The test above would find it if response_ids were ignored."""
    params, _, (expected, _) = naive()
    batch = batch_of([shared(groups) for groups in draw(0)])
    logprobs, _ = scores(params, batch, False)
    assert np.abs(np.asarray(logprobs)[np.asarray(batch["valid"])] - expected).max() > 0.1


@pytest.mark.devices8
@pytest.mark.parametrize(
    "shape", [pytest.param((1, 8, 1), marks=pytest.mark.nightly), (2, 2, 2)], ids=str
)
def test_on_eight_devices_too(shape: tuple[int, int, int]) -> None:
    params, expected, expected_numbers = naive()
    mesh = make_mesh(MeshShape(*shape))
    shards = shape[0] * shape[1]
    empty = [Row([], [], [], [], [], [])] * (8 - len(ROWS))
    batch = batch_of([*(shared(groups) for groups in draw(0)), *empty])
    placed = shardings(logical_axes(CONFIG), mesh, TRAINING_RULES)
    rows = shardings(dict.fromkeys(batch, ("batch", None)), mesh, TRAINING_RULES)

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        place = jax.sharding.NamedSharding(mesh, partition_spec(axes, TRAINING_RULES))
        return jax.lax.with_sharding_constraint(x, place)

    step = jax.jit(
        lambda params, batch: learn(
            params, batch, True, remat="full", constrain=constrain, batch_shards=shards
        ),
        in_shardings=(placed, rows),
        out_shardings=(placed, None),
    )
    gradients, numbers = step(jax.device_put(params, placed), jax.device_put(batch, rows))
    valid = np.asarray(batch["valid"])
    for a, b in zip(numbers, expected_numbers, strict=True):
        np.testing.assert_allclose(np.asarray(a)[valid], b, rtol=0, atol=1e-5)
    assert_same_gradients(gradients, expected)
