"""The decoder computes what transformers computes: logits and gradients, every family and switch.

The reference is torch in fp32 on random small models, whose weights, norms and biases are large
enough that every switch shows in the logits, and on the real MiniMind2-Small.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rmr1_jax.distributed.sharding_rules import axis_sizes
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.model_config import ModelConfig, RopeConfig
from rmr1_jax.models.transformer import forward, logical_axes, parameter_shapes

B, T = 2, 48

# Largest difference over largest value. 1e-4 is promised; up to 9e-6 was seen.
FP32 = 5e-5

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

# `test_rope.py` compares the frequencies of every kind; these show that the decoder uses them.
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn, not truncated, mscale": {
        **YARN,
        "truncate": False,
        "mscale": 0.9,
        "mscale_all_dim": 0.4,
    },
    "yarn, attention factor, betas": {
        **YARN,
        "attention_factor": 0.7,
        "beta_fast": 1.5,
        "beta_slow": 0.5,
    },
}

QUESTION = """Question: Why is the sky blue at noon and red in the evening?

Answer A: Air scatters short waves of light more than long ones. At noon we see that scattered blue;
in the evening the light crosses more air, the blue is gone from it, and red is left.

Answer B: The sky mirrors the sea, which is blue. In the evening the sun is colder and so is red.

Which answer is better? Write what you look for, compare both answers, and end with your choice.
"""

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, biases, every head its own keys": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": 4,
    },
    "llama, head_dim 12, one key head, eps 0.3, theta 500": {
        "model_type": "llama",
        "head_dim": 12,
        "num_key_value_heads": 1,
        "rms_norm_eps": 0.3,
        "rope_parameters": {"rope_theta": 500.0},
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied, head_dim 12, one key head, yarn": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "head_dim": 12,
        "num_key_value_heads": 1,
        "rope_parameters": YARN,
    },
    "qwen3": {"model_type": "qwen3"},
    "qwen3, attention bias": {"model_type": "qwen3", "attention_bias": True},
    "qwen3, tied, head_dim 12, 6 heads over 3, yarn": {
        "model_type": "qwen3",
        "tie_word_embeddings": True,
        "head_dim": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "rope_parameters": YARN,
    },
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights as a torch model and as ours."""

    model: PreTrainedModel
    config: ModelConfig
    params: dict[str, Any]

    def reference(self, tokens: np.ndarray, **given: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return self.model(torch.from_numpy(tokens), **given).logits.float().numpy()

    def logits(self, tokens: np.ndarray, **given: Any) -> np.ndarray:
        given = {"dtype": jnp.float32, **given}
        return np.asarray(jitted_forward(self.config, self.params, tokens, **given))


jitted_forward = jax.jit(forward, static_argnums=0, static_argnames="dtype")


@pytest.fixture
def pair_of(tmp_path: Path) -> Callable[..., Pair]:
    """Builds a small random model from changes to `SIZES`, in torch and, through files, ours."""

    def build(**changes: Any) -> Pair:
        settings = {**SIZES, **changes}
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
        randomise(model)
        return Pair(model.eval(), *through_files(model, tmp_path))

    return build


def randomise(model: PreTrainedModel) -> None:
    """Weights that keep activations near 1, norms well away from 1 and biases well away from 0."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            weight.data = 0.3 * noise
        elif weight.ndim == 1:
            weight.data = 1 + 0.3 * noise
        else:
            weight.data = 1.5 * noise / weight.shape[-1] ** 0.5


def through_files(model: PreTrainedModel, directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    model.save_pretrained(directory)
    return load_model(directory)


def random_tokens(vocab_size: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, shape)


def assert_close(ours: np.ndarray, reference: np.ndarray, relative: float) -> None:
    """Largest difference, relative to the largest reference value."""
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= relative * np.abs(reference).max()


# Other tests also compute the plain ones: of rope scalings, positions and padding.
@pytest.mark.parametrize(
    "name",
    [name if "," in name else pytest.param(name, marks=pytest.mark.nightly) for name in MODELS],
)
def test_logits_of_every_switch_agree(name: str, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(**MODELS[name])
    tokens = random_tokens(96, B, T)
    assert_close(pair.logits(tokens), pair.reference(tokens), FP32)


@pytest.mark.parametrize("kind", ROPES)
def test_logits_of_every_rope_scaling_agree(kind: str, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(
        model_type="llama", head_dim=16, rope_parameters={"rope_theta": 1000.0, **ROPES[kind]}
    )
    tokens = random_tokens(96, B, 64)
    reference = pair.reference(tokens)
    assert_close(pair.logits(tokens), reference, FP32)
    unscaled = dataclasses.replace(pair.config, rope=RopeConfig(theta=1000.0))
    without = dataclasses.replace(pair, config=unscaled).logits(tokens)
    assert np.abs(without - reference).max() > 0.01 * np.abs(reference).max()


def test_positions_with_gaps_are_those_of_transformers(pair_of: Callable[..., Pair]) -> None:
    # Rotary attention sees only distances, so the restarts in a packed row could not tell.
    pair = pair_of(model_type="qwen3")
    tokens = random_tokens(96, 1, T)
    positions = np.arange(T)[None] + 7 * (np.arange(T) > 20) + (np.arange(T) > 33)
    reference = pair.reference(
        tokens,
        position_ids=torch.from_numpy(positions),
        attention_mask=torch.ones(1, T, dtype=torch.long),
    )
    assert_close(pair.logits(tokens, positions=positions), reference, FP32)


def test_packed_rows_give_the_logits_of_separate_rows(pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(**MODELS["qwen3, attention bias"])
    lengths = (11, 1, 20)
    segments = np.repeat(np.arange(3), lengths)[None]
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    tokens = random_tokens(96, 1, sum(lengths))
    packed = pair.logits(tokens, positions=positions, segment_ids=segments)
    for segment in range(3):
        alone = tokens[:, segments[0] == segment]
        assert_close(packed[:, segments[0] == segment], pair.reference(alone), FP32)


def test_padding_after_a_row_changes_nothing_before_it(pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(model_type="qwen2")
    tokens = random_tokens(96, B, T)
    padded = np.pad(tokens, ((0, 0), (0, 9)))
    assert_close(pair.logits(padded)[:, :T], pair.reference(tokens), FP32)


@pytest.mark.parametrize(
    "name",
    [
        "llama, biases, every head its own keys",
        "qwen2",
        "qwen3, tied, head_dim 12, 6 heads over 3, yarn",
    ],
)
def test_gradients_agree(name: str, tmp_path: Path, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(**MODELS[name])
    tokens = random_tokens(96, B, T)

    def loss(params: dict[str, Any]) -> jax.Array:
        logits = forward(pair.config, params, jnp.asarray(tokens), dtype=jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1)
        return -chosen.mean()

    ours, gradients = jax.jit(jax.value_and_grad(loss))(pair.params)
    theirs = pair.model(torch.from_numpy(tokens), labels=torch.from_numpy(tokens)).loss
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=FP32)
    for weight in pair.model.parameters():
        assert weight.grad is not None
        weight.data = weight.grad  # so that gradients find their place as weights do
    _, expected = through_files(pair.model, tmp_path / "gradients")
    jax.tree.map(lambda a, b: assert_close(np.asarray(a), np.asarray(b), FP32), gradients, expected)


def test_bfloat16_is_as_close_to_fp32_as_that_of_transformers(pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(**MODELS["qwen3, attention bias"])
    tokens = random_tokens(96, 8, T)
    exact = pair.reference(tokens)
    theirs = np.abs(
        dataclasses.replace(pair, model=pair.model.bfloat16()).reference(tokens) - exact
    )
    ours = np.abs(pair.logits(tokens, dtype=jnp.bfloat16) - exact)
    assert 0 < ours.mean() < 1.2 * theirs.mean()
    assert ours.mean() < 0.05 * np.abs(exact).mean()


def test_every_axis_of_every_parameter_is_named() -> None:
    config = ModelConfig.from_hf(
        {**SIZES, "model_type": "llama", "attention_bias": True, "mlp_bias": True}, source="test"
    )
    assert axis_sizes(logical_axes(config), parameter_shapes(config)) == {
        "layers": 2,
        "vocab": 96,
        "embed": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "mlp": 48,
    }


def test_logits_of_a_real_model_agree(minimind_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(minimind_dir, dtype=torch.float32).eval()
    pair = Pair(model, *load_model(minimind_dir))
    tokenizer = AutoTokenizer.from_pretrained(minimind_dir)
    messages = [
        {"role": "system", "content": "Compare the two answers and say which one is better."},
        {"role": "user", "content": QUESTION},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = np.asarray([tokenizer(text)["input_ids"]])
    assert tokens.shape[1] > 100
    assert_close(pair.logits(tokens), pair.reference(tokens), FP32)
