"""What a step of GRPO costs where a group shares its prompt, by the compiler's own count."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config import OptimizerConfig
from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import parameter_shapes
from rmr1_jax.ops import cross_entropy, packed_attention
from rmr1_jax.rl.batch import Group, pack_groups, pack_length_for, packed_work
from rmr1_jax.rl.loss import Settings, grpo
from rmr1_jax.training.step import initial_state, make_optimizer, train_step

# The dimensions of Qwen2.5-7B, but for one layer: the layers all cost the same.
MODEL = ModelConfig.from_hf(
    {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 1,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
    source="test",
)


def paper_groups(count: int, seed: int = 0) -> list[Group]:
    """Groups of 7 as RM-R1 has them: prompts of about 1,500 tokens, responses of about 700."""
    rng = np.random.default_rng(seed)
    draw = lambda mean, size: np.maximum(  # noqa: E731
        rng.lognormal(np.log(mean) - 0.125, 0.5, size).astype(int), 8
    )
    groups = []
    for prompt in draw(1500, count):
        responses = [np.zeros(length, np.int32) for length in draw(700, 7)]
        groups.append(
            Group(
                prompt=np.zeros(prompt, np.int32),
                responses=tuple(responses),
                sampler_logprobs=tuple(np.zeros(len(r), np.float32) for r in responses),
                advantages=np.ones(7, np.float32),
                weights=np.ones(7, np.float32),
            )
        )
    return groups


def in_one_micro_batch(batch: GroupBatch) -> GroupBatch:
    """The rows that hold something as one micro-batch, with no more losses than there are."""
    rows = jax.tree.map(lambda leaf: leaf.reshape(1, -1, leaf.shape[-1]), batch)
    held = (rows.loss_weights[0] > 0).any(-1)
    width = int((rows.loss_weights > 0).sum(-1).max())
    tokens = [leaf[:, held] for leaf in rows[:4]]
    losses = [leaf[:, held, :width] for leaf in rows[4:]]
    return GroupBatch(*tokens, *losses)


def naive(groups: list[Group]) -> GroupBatch:
    """The shape of the usual layout: a row a response, all of them padded to the longest."""
    rows = sum(len(group.responses) for group in groups)
    prompt = max(len(group.prompt) for group in groups)
    response = max(len(r) for group in groups for r in group.responses)
    whole, learnt = (1, rows, prompt + response), (1, rows, response)
    no_float = np.zeros(learnt, np.float32)
    return GroupBatch(
        tokens=np.zeros(whole, np.int32),
        positions=np.zeros(whole, np.int32),
        segment_ids=np.ones(whole, np.int32),
        response_ids=np.zeros(whole, np.int32),
        loss_positions=np.zeros(learnt, np.int32),
        loss_targets=np.zeros(learnt, np.int32),
        loss_weights=np.ones(learnt, np.float32),
        loss_response_ids=np.zeros(learnt, np.int32),
        advantages=no_float,
        sampler_logprobs=no_float,
        old_logprobs=no_float,
        reference_logprobs=no_float,
    )


def compiled_flops(batch: GroupBatch) -> float:
    """Of one update, every loop in it having one round."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = jax.eval_shape(lambda params: initial_state(params, optimizer), parameter_shapes(MODEL))
    step = partial(
        train_step,
        config=MODEL,
        objective=partial(grpo, settings=Settings()),
        optimizer=optimizer,
        dtype=jnp.bfloat16,
    )
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    cost = jax.jit(step).lower(state, shapes, {}).compile().cost_analysis()
    assert cost is not None
    return float(cost["flops"])


@pytest.mark.slow
def test_sharing_prompts_takes_less_than_half_of_the_naive_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The compiler counts a loop's body once, so all blocks and chunks become one. That counts
    # blocks of attention that are skipped when the program runs: it is against us.
    monkeypatch.setattr(packed_attention, "CPU_BLOCK", 1 << 20)
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 1 << 50)
    groups = paper_groups(16)
    packed = pack_groups(
        groups, pack_length=pack_length_for([groups], rows=1, at_most=12288), rows=1
    )
    ours, theirs = compiled_flops(in_one_micro_batch(packed)), compiled_flops(naive(groups))
    print(f"{ours:.3g} of {theirs:.3g} FLOPs: {ours / theirs:.2f}")
    assert ours <= 0.5 * theirs


def test_positions_computed_are_less_than_half_of_the_naive_ones() -> None:
    groups = paper_groups(128)
    packed = pack_groups(
        groups, pack_length=pack_length_for([groups], rows=1, at_most=12288), rows=1
    )
    work = packed_work(groups, packed)
    assert work.computed <= 0.5 * work.naive
    assert work.padding < 0.1
