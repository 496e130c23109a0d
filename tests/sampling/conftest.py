"""A tiny random model, and schedulers that tests share, since each program compiles for seconds."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config import Sampling
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, forward, random_params
from rmr1_jax.sampling.decode_loop import unstack_layers
from rmr1_jax.sampling.scheduler import Request, Scheduler

VOCAB = 97
CONFIG = ModelConfig(
    model_type="qwen3",
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=1024,
    qkv_bias=True,
    qk_norm=True,
)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return CONFIG


@pytest.fixture(scope="session")
def params() -> Params:
    return random_params(CONFIG, seed=1)


@pytest.fixture(scope="session")
def weights(params: Params) -> Params:
    return unstack_layers(CONFIG, params, jnp.float32)


@pytest.fixture(scope="session")
def scheduler_of(weights: Params) -> Callable[..., Scheduler]:
    """Schedulers by slots and samples.

    Calls compile the same program if they have as many requests as slots (five for a group of
    three), and prompts and responses of at most 128 tokens.
    """

    @functools.cache
    def make(slots: int, samples: int) -> Scheduler:
        return Scheduler(CONFIG, weights, slots=slots, group_size=samples)

    def scheduler(slots: int, samples: int = 1, *, chunk_steps: int = 64) -> Scheduler:
        found = make(slots, samples)
        found.chunk_steps = chunk_steps
        return found

    return scheduler


@pytest.fixture(scope="module")
def never_compact() -> Iterator[None]:
    """The last live slots stay in their batch, instead of a smaller one to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmr1_jax.sampling.scheduler.compact_size", lambda slots: 0)
        yield


@pytest.fixture(scope="session")
def logits_of(params: Params) -> Callable[[list[int]], np.ndarray]:
    """fp32 logits [T, V] of a whole sequence, without any cache."""
    run = jax.jit(lambda tokens: forward(CONFIG, params, tokens, dtype=jnp.float32))

    def logits(tokens: list[int]) -> np.ndarray:
        padded = np.zeros((1, -(-len(tokens) // 256) * 256), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(run(padded))[0, : len(tokens)]

    return logits


def random_requests(
    count: int, *, longest_prompt: int = 120, longest_response: int = 60, seed: int = 0, **options
) -> list[Request]:
    """Random prompts and lengths. Every request has a length of its own, and none a stop id."""
    rng = np.random.default_rng(seed)
    return [
        Request(
            tokens=rng.integers(0, VOCAB, rng.integers(1, longest_prompt + 1)).tolist(),
            max_new_tokens=int(rng.integers(1, longest_response + 1)),
            index=index,
            sampling=Sampling(**options),
        )
        for index in range(count)
    ]
