"""Stage 2 put together: groups of traces are sampled, rewarded and learnt from, step by step."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from rmr1_jax.config import GrpoConfig
from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.data.prompt_set import Prompt, PromptSet, PromptStream
from rmr1_jax.errors import UserError
from rmr1_jax.models.lora import combine
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.rl.advantage import advantages, zero_signal
from rmr1_jax.rl.batch import (
    groups_of,
    longest_row,
    pack_groups,
    pack_length_for,
    packed_work,
    packing_numbers,
)
from rmr1_jax.rl.loss import grpo_objective, logprob_pass, loss_numbers, over_updates
from rmr1_jax.rl.reward import RewardFunction, Sampled, length_penalty, score_shared
from rmr1_jax.rl.rollout import (
    ACCELERATOR_SLOTS,
    CPU_SLOTS,
    Experience,
    Rollout,
    rollout_numbers,
)
from rmr1_jax.rl.samples import SampleLog, TraceRecord
from rmr1_jax.sampling.scheduler import Sample
from rmr1_jax.training.flops import group_flops, peak_flops
from rmr1_jax.training.loop import MAY_CHANGE as BOTH_MAY_CHANGE
from rmr1_jax.training.loop import TrainingRun
from rmr1_jax.training.metrics import Numbers
from rmr1_jax.training.sharding_plan import ShardingPlan
from rmr1_jax.training.step import (
    Metrics,
    TrainState,
    learning_rate,
    make_learner,
    make_optimizer,
)
from rmr1_jax.training.validation import VerdictCheck

# Options that do not change what is learnt, besides those of both stages.
MAY_CHANGE = (*BOTH_MAY_CHANGE, "pack_length", "samples", "rollout.max_num_seqs")


@dataclass
class Clock:
    """Seconds by activity."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent


class Grpo(TrainingRun):
    """A run of stage 2, ready to start or to be resumed.

    Args:
      config: checked.
      model: the architecture.
      prompts: what is judged.
      sharding: where everything lies.
      params: what is trained, placed: all weights to start from, or new adapters.
      base: the weights that are not trained, where there are adapters.
      reference: the weights of the model to stay close to; None where the KL has no weight.
      tokenizer, stop_ids: of the model.
      reward: what a trace is worth.
      verdicts: judges pairs at each validation; None where there are none.
    """

    config: GrpoConfig
    rank_by = "validation/wrong"

    def __init__(
        self,
        config: GrpoConfig,
        model: ModelConfig,
        prompts: PromptSet,
        sharding: ShardingPlan,
        params: Params,
        base: Params,
        reference: Params | None,
        *,
        dtype: str,
        tokenizer: Any,
        stop_ids: Sequence[int],
        reward: RewardFunction,
        verdicts: VerdictCheck | None = None,
    ) -> None:
        self.config, self.model, self.sharding = config, model, sharding
        self._tokenizer, self._reward, self._verdicts = tokenizer, reward, verdicts
        self._base, self._reference = base, reference
        self._stream = PromptStream(prompts, config.seed)
        self.steps, self.updates = steps_of(config, len(prompts)), config.updates
        self.validates = verdicts is not None
        on_cpu = jax.default_backend() == "cpu"
        self._rollout = Rollout(
            model,
            sharding,
            dtype=dtype,
            group_size=config.rollout.samples,
            slots=config.rollout.max_num_seqs or (CPU_SLOTS if on_cpu else ACCELERATOR_SLOTS),
            max_new_tokens=config.rollout.max_response,
            stop_ids=stop_ids,
            prefix=prompts.shared.tolist(),
            sampling=config.rollout,
        )
        optimizer = make_optimizer(config.optimizer, self.steps * config.updates)
        self._schedule = learning_rate(config.optimizer, self.steps * config.updates)
        self._logprobs = logprob_pass(config, model, sharding, dtype)
        objective = grpo_objective(config, sharding)
        learner = make_learner(model, objective, optimizer, params, sharding, dtype)
        self.state, self.like, self._update = learner.start(params), learner.like, learner.update
        # Only ever greater, so that few programs are compiled. The length of rows decides in which
        # order numbers are added, so it is a part of what is saved.
        self._pack_length, self._micro_batches = 0, 1
        self._clock = Clock()
        self._numbers: Numbers = {}
        self._seen: list[str] = []
        self._sample_log: SampleLog | None = None

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights and the optimizer; plain JSON."""
        return {"prompts": self._stream.get_state(), "pack_length": self._pack_length}

    def set_state(self, position: Mapping[str, Any]) -> None:
        self._stream.set_state(position["prompts"])
        self._pack_length = int(position["pack_length"])

    def start(self, *, writes: bool) -> None:
        if writes and self.config.samples.every:
            done = int(self.state.step) // self.updates
            self._sample_log = SampleLog(Path(self.config.workdir), after=done)

    def validate(self, step: int, state: TrainState) -> Numbers:
        """The verdicts on held-out pairs."""
        assert self._verdicts is not None
        self.phase("validation")
        numbers = self._verdicts(
            step, combine(state.params, self._base), after_chunk=self.give_up_if_asked
        )
        accuracy = numbers["validation/verdict_accuracy"]
        assert accuracy is not None
        return numbers | {"validation/wrong": 1 - accuracy}

    def take_step(self, state: TrainState, batch: Any = None) -> tuple[TrainState, Metrics]:
        """Roll out, reward, and update on each mini-batch in turn. Donates the state."""
        config, self._clock = self.config, Clock()
        with self._clock.measure("reshard"):
            self._rollout.reshard(combine(state.params, self._base))
        experience = self._roll_out()
        self._rollout.release()
        self._seen = [prompt.id for _, prompt in experience.prompts]
        advantage = advantages(
            experience.rewards,
            normalise=config.advantage.normalize_std,
            leave_one_out=config.advantage.leave_one_out,
        )
        with self._clock.measure("packing"):
            batches = self._pack(experience, advantage)
        with self._clock.measure("logprobs"):
            batches = [
                self._with_logprobs(f"{number} of {len(batches)}", batch, state.params)
                for number, batch in enumerate(batches, start=1)
            ]
            jax.block_until_ready(batches)
        self.give_up_if_asked()
        step = int(state.step) // config.updates + 1
        with self._clock.measure("update"):
            all_metrics = []
            for number, batch in enumerate(batches, start=1):
                self.phase(f"update {number} of {len(batches)}")
                state, metrics = self._update(state, batch, self._base)
                all_metrics.append(metrics)
            all_metrics = jax.device_get(all_metrics)
        self._log_samples(step, experience, advantage)
        sampled = int(self._numbers["sampled_tokens"] or 0)
        self._numbers |= work_numbers(self.model, experience, sampled, self._clock, self._passes)
        return state, over_updates(all_metrics)

    @property
    def _passes(self) -> int:
        """Over all tokens: the rollout's, old and reference log-probabilities, and three for
        the update (forward and backward)."""
        return 4 + (self._reference is not None) + (self.config.updates > 1)

    def _roll_out(self) -> Experience:
        """The groups of a step; with dynamic sampling, those that teach something come first."""
        wanted, options = self.config.batch_size, self.config.advantage
        experience = self._sampled(wanted)
        teaches, rounds = self._teaches(experience), 1
        while options.dynamic_sampling and teaches.sum() < wanted and rounds < options.max_rounds:
            # As many as the first time, though fewer are missing: other numbers compile again.
            experience = experience.plus(self._sampled(wanted))
            teaches, rounds = self._teaches(experience), rounds + 1
        self._numbers = rollout_numbers(experience) | {
            "zero_signal": float(zero_signal(experience.rewards).mean()),
            "rounds": rounds,
        }
        if len(experience) == wanted:
            return experience
        order = np.argsort(~teaches, kind="stable")[:wanted]
        return experience.only(order)

    def _teaches(self, experience: Experience) -> Bool[np.ndarray, " N"]:
        """Groups with a signal; where pairs are asked in both orders, both or none of the two."""
        teaches = ~zero_signal(experience.rewards)
        orders = 2 if self.config.data.both_orders else 1
        return teaches.reshape(-1, orders).any(1).repeat(orders)

    def _sampled(self, number: int) -> Experience:
        """Traces for the next prompts, with their rewards."""
        drawn = self._stream.draw(number)
        with self._clock.measure("rollout"):
            samples = self._rollout.sample(
                [prompt for _, prompt in drawn],
                indices=[index for index, _ in drawn],
                seed=self.config.seed,
                on_progress=partial(self._rolling, number),
            )
        self.phase("reward")
        with self._clock.measure("reward"):
            texts = [[self._text(sample.tokens) for sample in group] for group in samples]
            rewards = self._rewards([prompt for _, prompt in drawn], samples, texts)
        return Experience(drawn, samples, texts, rewards)

    def _rewards(
        self, prompts: Sequence[Prompt], samples: list[list[Sample]], texts: list[list[str]]
    ) -> Float[np.ndarray, "N G"]:
        config = self.config
        asked = [self._text(prompt.tokens) for prompt in prompts]
        flat = [
            Sampled(
                id=prompt.id,
                sample=number,
                prompt=question,
                response=text,
                label=prompt.label,
                tokens=len(sample.tokens),
                truncated=sample.finish_reason == "length",
            )
            for prompt, question, group, written in zip(prompts, asked, samples, texts, strict=True)
            for number, (sample, text) in enumerate(zip(group, written, strict=True))
        ]
        rewards = score_shared(self._reward, flat)
        if config.reward.truncated == "shape":
            tokens = np.array([each.tokens for each in flat])
            longest = config.rollout.max_response
            rewards = rewards + length_penalty(tokens, longest=longest, buffer=config.reward.buffer)
        return rewards.reshape(len(prompts), -1)

    def _pack(
        self, experience: Experience, advantage: Float[np.ndarray, "N G"]
    ) -> list[GroupBatch]:
        """The mini-batches of a step, on the devices."""
        config = self.config
        mini_batches = [
            groups_of(experience.only(part), advantage[part], config)
            for part in np.arange(len(experience)).reshape(-1, config.mini_batch)
        ]
        rows = self.sharding.row_groups * config.micro_batch_size
        self._pack_length = pack_length_for(
            mini_batches,
            rows=rows,
            at_most=longest_row(config),
            least=self._pack_length,
        )
        packed = [
            pack_groups(groups, pack_length=self._pack_length, rows=rows, least=self._micro_batches)
            for groups in mini_batches
        ]
        self._micro_batches = max(len(batch.tokens) for batch in packed)
        self._numbers |= packing_numbers(map(packed_work, mini_batches, packed))
        return [self.sharding.put_whole(batch) for batch in packed]

    def _with_logprobs(self, which: str, batch: GroupBatch, params: Params) -> GroupBatch:
        """The batch with what the old policy and the reference make of it."""
        self.phase(f"log-probabilities {which}")
        self.give_up_if_asked()
        if self.config.updates > 1:
            batch = batch._replace(old_logprobs=self._logprobs(params, batch, self._base))
        if self._reference is not None:
            reference = self._logprobs(self._reference, batch, {})
            batch = batch._replace(reference_logprobs=reference)
        return batch

    def _text(self, tokens: np.ndarray) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def _rolling(self, groups: int, tokens: int, finished: int) -> None:
        self.phase(f"rollout {finished:,} of {groups:,} groups, {tokens:,} tokens")
        self.give_up_if_asked()

    def _log_samples(
        self, step: int, experience: Experience, advantage: Float[np.ndarray, "N G"]
    ) -> None:
        if self._sample_log is None or step % self.config.samples.every:
            return
        records = []
        for i in range(min(self.config.samples.groups, len(experience))):
            _, prompt = experience.prompts[i]
            shown = self._text(prompt.tokens)
            for number, sample in enumerate(experience.samples[i]):
                records.append(
                    TraceRecord(
                        id=prompt.id,
                        label=prompt.label,
                        sample=number,
                        prompt=shown,
                        trace=experience.texts[i][number],
                        reward=float(experience.rewards[i, number]),
                        advantage=float(advantage[i, number]),
                        tokens=len(sample.tokens),
                        truncated=sample.finish_reason == "length",
                    )
                )
        self._sample_log.write(step, records)

    def report(self, step: int, metrics: Metrics, seconds: float) -> Numbers:
        updates = step * self.config.updates - int(metrics.skipped)
        mfu = self._numbers.pop("flops", 0.0) or 0.0
        return {
            **self._numbers,
            **loss_numbers(metrics.sums),
            "gradient_norm": float(metrics.gradient_norm),
            "learning_rate": float(self._schedule(max(updates - 1, 0))),
            "mfu": mfu / seconds / (peak_flops() * jax.device_count()),
            **{f"seconds_{name}": spent for name, spent in self._clock.seconds.items()},
        }

    def batch_ids(self, step: int) -> list[str]:
        return self._seen


def steps_of(config: GrpoConfig, prompts: int) -> int:
    """The steps of a run; what is left of an epoch after the last whole step is not used, as
    published. Raises UserError where the prompts are fewer than a step takes."""
    steps = int(prompts * config.epochs) // config.batch_size
    if not steps:
        raise UserError(
            f"a step takes --batch_size={config.batch_size} prompts, and there are {prompts} "
            f"x {config.epochs:g} epochs; lower it (and --mini_batch), or raise --epochs"
        )
    return min(steps, config.max_steps or steps)


def work_numbers(
    model: ModelConfig, experience: Experience, sampled_tokens: int, clock: Clock, passes: int
) -> Numbers:
    """Speeds, and the arithmetic ("flops") that learning from this experience needs, its own
    rollout included; `sampled_tokens` were written in all."""
    prompts = np.array([len(prompt.tokens) for _, prompt in experience.prompts])
    responses = np.array([[len(s.tokens) for s in group] for group in experience.samples])
    tokens, seconds = int(prompts.sum() + responses.sum()), clock.seconds
    learning = seconds["update"] + seconds["logprobs"]
    return {
        "tokens": tokens,
        "tokens_per_second_rollout": sampled_tokens / max(seconds["rollout"], 1e-9),
        "tokens_per_second_update": tokens / max(learning, 1e-9),
        "flops": passes * group_flops(model, prompts, responses),
    }
