"""A step of stage 2: which groups are learnt from, what weight their traces get, what is reported.

The rollout is played from a script, and the update is looked at instead of computed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmr1_jax.config import GrpoConfig, OptimizerConfig
from rmr1_jax.config.grpo_config import (
    AdvantageConfig,
    ObjectiveConfig,
    PromptsConfig,
    RewardConfig,
    RolloutConfig,
)
from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.data.prompt_set import Prompt, PromptCounts, PromptSet
from rmr1_jax.data.token_cache import Lengths
from rmr1_jax.errors import UserError
from rmr1_jax.models.lora import Lora, combine, merge
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, random_params
from rmr1_jax.models.weight_map import flatten
from rmr1_jax.rl import trainer as grpo_run
from rmr1_jax.rl.batch import Group
from rmr1_jax.rl.loss import Sums, settings_of
from rmr1_jax.rl.reward import Sampled, published
from rmr1_jax.rl.trainer import Grpo, steps_of
from rmr1_jax.sampling.scheduler import Sample
from rmr1_jax.toy_task import toy_tokenizer
from rmr1_jax.training.run_checkpoints import RunCheckpoints
from rmr1_jax.training.sharding_plan import ShardingPlan, make_sharding_plan
from rmr1_jax.training.step import Metrics
from rmr1_jax.training.training_run import with_adapters

TOKENIZER = toy_tokenizer()
END = TOKENIZER.eos_token_id
MODEL = ModelConfig.from_hf(
    {
        "model_type": "qwen2",
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    source="a tiny judge",
)
CONFIG = GrpoConfig(
    workdir="unused",
    model="unused",
    data=PromptsConfig(train="unused", max_prompt=16),
    batch_size=4,
    mini_batch=2,
    rollout=RolloutConfig(samples=2, max_response=24, max_num_seqs=8),
    epochs=10.0,
    remat="none",
    dtype="float32",
)
PROMPTS = 12


@cache
def placed_model() -> tuple[ShardingPlan, Params]:
    sharding = make_sharding_plan(MODEL, "", sequence_parallel=False)
    placed = sharding.of(logical_axes(MODEL))
    return sharding, jax.jit(partial(random_params, MODEL), out_shardings=placed)()


def make_prompts(count: int = PROMPTS) -> PromptSet:
    """Prompt i has i + 2 tokens, and A is right in the even ones."""
    lengths = np.arange(2, count + 2)
    return PromptSet(
        tokens=np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        offsets=np.cumsum([0, *lengths]),
        labels=np.array([index % 2 for index in range(count)], np.int8),
        ids=tuple(f"p{index}" for index in range(count)),
        counts=PromptCounts(count, count, {}, Lengths.of(lengths)),
    )


def trace(text: str, *, whole: bool = True) -> Sample:
    tokens = TOKENIZER.encode(text, add_special_tokens=False) + [END] * whole
    logprobs = np.full(len(tokens), -1.0, np.float32)
    finish: Any = "stop" if whole else "length"
    return Sample(np.array(tokens, np.int32), logprobs, logprobs, np.zeros_like(logprobs), finish)


Script = Callable[[Prompt], list[Sample]]


class Played:
    """A rollout whose traces come from a script; notes what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.indices: list[int] = []
        self.holds_weights = False

    def reshard(self, params: Any) -> None:
        self.holds_weights = True

    def release(self) -> None:
        self.holds_weights = False

    def sample(
        self, prompts: Sequence[Prompt], *, indices: Sequence[int], **_: Any
    ) -> list[list[Sample]]:
        assert self.holds_weights
        self.indices += indices
        return [self.script(prompt) for prompt in prompts]


class Step:
    """A step of a run, and more by `again`; the groups of each update are kept, not computed."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        script: Script,
        function: Callable[[Sampled], float] = published,
        **changes: Any,
    ) -> None:
        self.mini_batches: list[list[Group]] = []
        self.batches: list[GroupBatch] = []
        pack = grpo_run.pack_groups

        def noted(groups: Sequence[Group], **layout: Any) -> GroupBatch:
            self.mini_batches.append(list(groups))
            return pack(groups, **layout)

        monkeypatch.setattr(grpo_run, "pack_groups", noted)
        self.config = replace(CONFIG, objective=ObjectiveConfig(kl=0.0), **changes)
        sharding, params = placed_model()
        self.run = Grpo(
            self.config, MODEL, make_prompts(), sharding, params, {}, None, dtype="float32",
            tokenizer=TOKENIZER, stop_ids=(END,), reward=function,
        )  # fmt: skip
        self.rollout = Played(script)
        patched: dict[str, Any] = {
            "_rollout": self.rollout,
            "_update": self.update,
            "_logprobs": lambda params, batch, base: batch.sampler_logprobs,
        }
        for name, value in patched.items():
            setattr(self.run, name, value)
        self.again(script)

    def again(self, script: Script) -> None:
        self.rollout.script = script
        self.mini_batches.clear()
        self.batches.clear()
        _, self.metrics = self.run.take_step(self.run.state)

    @property
    def pack_length(self) -> int:
        [length] = {batch.tokens.shape[2] for batch in self.batches}
        return int(length)

    def update(self, state: Any, batch: GroupBatch, base: Any) -> tuple[Any, Metrics]:
        assert not self.rollout.holds_weights  # an update needs the room
        self.batches.append(batch)
        none = jnp.int32(0)
        return state, Metrics(Sums.zero(), jnp.float32(1), jnp.bool_(True), none, none)

    @property
    def groups(self) -> list[Group]:
        return [group for mini_batch in self.mini_batches for group in mini_batch]

    @property
    def prompts(self) -> list[int]:
        """Which prompts are learnt from, in order."""
        return [len(group.prompt) - 2 for group in self.groups]

    @property
    def numbers(self) -> dict[str, Any]:
        return dict(self.run.report(1, self.metrics, 1.0))


def answers(*sides: str) -> Script:
    """The same verdicts to every prompt."""
    return lambda prompt: [trace(f"<answer>[[{side}]]</answer>") for side in sides]


class TestRewards:
    def test_the_labelled_verdict_is_worth_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        step = Step(monkeypatch, answers("A", "B"))
        assert [group.advantages.argmax() for group in step.groups] == [
            0 if prompt % 2 == 0 else 1 for prompt in step.prompts
        ]
        for group in step.groups:  # (1 - 0) / (unbiased deviation + 1e-6)
            np.testing.assert_allclose(np.abs(group.advantages), 1 / (2**0.5 + 1e-6), rtol=1e-6)

    def test_and_reported_with_accuracy_and_format(self, monkeypatch: pytest.MonkeyPatch) -> None:
        half = lambda prompt: [trace("I cannot say"), trace("<answer>[[A]]</answer>")]  # noqa: E731
        step = Step(monkeypatch, half)
        right = np.mean([prompt % 2 == 0 for prompt in step.prompts]) / 2
        assert step.numbers["accuracy"] == right
        assert step.numbers["reward"] == 2 * right - 1
        assert step.numbers["format"] == 0.5
        assert step.numbers["truncated"] == 0.0
        lengths = [len(sample.tokens) for sample in half(make_prompts()[0])]
        assert step.numbers["response_tokens"] == np.mean(lengths)
        assert step.numbers["response_tokens_max"] == max(lengths)

    def test_a_function_of_the_users_sees_the_whole_sample(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Sampled] = []

        def reward(sampled: Sampled) -> float:
            seen.append(sampled)
            return float(len(seen))

        script = lambda prompt: [trace("x", whole=False), trace("[[B]]")]  # noqa: E731
        step = Step(monkeypatch, script, reward)
        assert len(seen) == 8
        first, second = seen[:2]
        assert (first.id, first.sample, second.sample) == (f"p{step.prompts[0]}", 0, 1)
        assert (first.response, first.truncated, first.tokens) == ("x", True, 1)
        assert second.response == "[[B]]<|end|>" and not second.truncated
        assert first.label == "AB"[step.prompts[0] % 2]
        assert step.numbers["reward"] == np.mean(range(1, 9))


class TestTruncatedTraces:
    @staticmethod
    def cut_first(prompt: Prompt) -> list[Sample]:
        return [trace("and so on and so", whole=False), trace("<answer>[[A]]</answer>")]

    def test_stay_in_as_published(self, monkeypatch: pytest.MonkeyPatch) -> None:
        step = Step(monkeypatch, self.cut_first)
        assert step.numbers["truncated"] == 0.5
        assert all((group.weights > 0).all() for group in step.groups)

    def test_that_are_masked_count_in_the_group_but_not_in_the_loss(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Step(monkeypatch, self.cut_first, reward=RewardConfig(truncated="mask"))
        for group in step.groups:
            assert group.weights[0] == 0 < group.weights[1]
        for batch in step.batches:
            learnt = np.asarray(batch.loss_weights) > 0
            assert learnt.sum() == 2 * len(self.cut_first(make_prompts()[0])[1].tokens)

    def test_close_to_the_limit_lose_reward(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lengths = [len(sample.tokens) for sample in self.cut_first(make_prompts()[0])]
        shape = RewardConfig(truncated="shape", buffer=24)
        step = Step(monkeypatch, self.cut_first, lambda sampled: 0.0, reward=shape)
        assert step.numbers["reward"] == pytest.approx(-np.mean(lengths) / 24)


class TestGroups:
    def test_each_update_takes_its_prompts_in_the_order_of_the_stream(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Step(monkeypatch, answers("A", "B"))
        assert [len(groups) for groups in step.mini_batches] == [2, 2]
        assert step.rollout.indices == [0, 1, 2, 3]
        stream = grpo_run.PromptStream(make_prompts(), CONFIG.seed)
        assert step.prompts == [len(prompt.tokens) - 2 for _, prompt in stream.draw(4)]

    def test_that_teach_nothing_stay_in_as_published(self, monkeypatch: pytest.MonkeyPatch) -> None:
        step = Step(monkeypatch, answers("A", "A"))
        assert step.numbers["zero_signal"] == 1.0 and step.numbers["rounds"] == 1
        assert len(step.groups) == 4
        assert all((group.advantages == 0).all() for group in step.groups)

    def test_that_teach_nothing_can_be_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def even_ones_teach(prompt: Prompt) -> list[Sample]:
            return answers("A", "B" if prompt.label == "A" else "A")(prompt)

        dynamic = AdvantageConfig(dynamic_sampling=True, max_rounds=9)
        step = Step(monkeypatch, even_ones_teach, advantage=dynamic)
        rounds = step.numbers["rounds"]
        stream = grpo_run.PromptStream(make_prompts(), CONFIG.seed)
        drawn = [len(prompt.tokens) - 2 for _, prompt in stream.draw(4 * rounds)]
        assert rounds > 1
        assert step.rollout.indices == list(range(4 * rounds))
        assert step.prompts == [prompt for prompt in drawn if prompt % 2 == 0][:4]
        assert step.numbers["zero_signal"] == np.mean([prompt % 2 for prompt in drawn])
        # What was drawn and not used is not drawn again: the next step begins after it.
        assert step.run._stream.position == 4 * rounds

    def test_are_taken_as_they_are_when_the_rounds_are_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dynamic = AdvantageConfig(dynamic_sampling=True, max_rounds=3)
        step = Step(monkeypatch, answers("A", "A"), advantage=dynamic)
        assert step.numbers["rounds"] == 3
        assert len(step.groups) == 4

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (AdvantageConfig(normalize_std=False), 1.0),
            (AdvantageConfig(normalize_std=False, leave_one_out=True), 2.0),
        ],
    )
    def test_advantages_by_other_rules(
        self, options: AdvantageConfig, expected: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Step(monkeypatch, answers("A", "B"), advantage=options)
        for group in step.groups:
            np.testing.assert_allclose(np.abs(group.advantages), expected)


SHORT, LONG = answers("A", "B"), answers("A" * 300, "B")


class TestRows:
    def test_are_shared_out_evenly_and_alike_in_all_updates(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Step(monkeypatch, SHORT)
        [(_, rows, pack_length)] = {batch.tokens.shape for batch in step.batches}
        assert rows % jax.device_count() == 0 and pack_length % 128 == 0

    def test_do_not_get_shorter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shorter = Step(monkeypatch, SHORT).pack_length
        step = Step(monkeypatch, LONG)
        longer = step.pack_length
        step.again(SHORT)
        assert step.pack_length == longer > shorter

    @pytest.mark.parametrize(
        ("first", "other"), [(LONG, SHORT), (SHORT, LONG)], ids=["longer", "shorter"]
    )
    def test_are_those_of_the_run_that_goes_on_whatever_the_process_has_seen(
        self, first: Script, other: Script, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unbroken = Step(monkeypatch, first)
        state, kept = unbroken.run.state, json.loads(json.dumps(unbroken.run.get_state()))
        unbroken.again(SHORT)
        expected = unbroken.pack_length, unbroken.prompts
        step = Step(monkeypatch, other)
        checkpoints = SimpleNamespace(restore=lambda like: (state, kept))
        step.run.resume(cast(RunCheckpoints, checkpoints))
        step.again(SHORT)
        assert (step.pack_length, step.prompts) == expected


class TestSteps:
    def test_what_is_left_of_the_prompts_after_the_last_whole_step_is_not_used(self) -> None:
        assert steps_of(replace(CONFIG, epochs=1.0), 11) == 2
        assert steps_of(replace(CONFIG, epochs=2.5), 11) == 6
        assert steps_of(replace(CONFIG, epochs=2.5, max_steps=5), 11) == 5

    def test_fewer_prompts_than_a_step_takes_are_refused(self) -> None:
        with pytest.raises(UserError, match="--batch_size=4 prompts, and there are 3 x 1 epochs"):
            steps_of(replace(CONFIG, epochs=1.0), 3)

    def test_the_old_policy_is_the_present_one_where_a_step_has_one_update(self) -> None:
        assert not settings_of(CONFIG).on_policy
        assert settings_of(replace(CONFIG, mini_batch=4)).on_policy

    def test_the_learning_rate_and_the_step_count_go_by_updates(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warm_up = OptimizerConfig(learning_rate=30.0, warmup=0.5)  # by 1 an update
        step = Step(monkeypatch, answers("A", "B"), optimizer=warm_up)
        assert step.run.steps == 30  # 120 prompts, 4 a step
        assert step.config.updates == 2
        assert step.numbers["learning_rate"] == pytest.approx(1.0)  # of the second update


def test_the_reference_of_adapters_is_the_model_below_them() -> None:
    sharding, params = placed_model()
    lora = Lora(2, 4.0, ("query", "down"))
    adapters, rest = with_adapters(MODEL, params, sharding, lora, dtype="float32", seed=0)
    below = dict(flatten(merge(rest)))
    assert below.keys() == dict(flatten(params)).keys()
    for name, leaf in flatten(params):
        np.testing.assert_array_equal(below[name], leaf, err_msg=name)
    moved = jax.tree.map(lambda leaf: leaf + 1, adapters)
    merged = dict(flatten(merge(combine(moved, rest))))
    assert not jnp.array_equal(merged["layers/mlp/down/kernel"], below["layers/mlp/down/kernel"])
