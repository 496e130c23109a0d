"""Stage 1 put together: packed batches of traces in, a model that writes such traces out."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmr1_jax.config import SftConfig
from rmr1_jax.data.batch_loader import Batches, batches
from rmr1_jax.data.packed_batch import Batch
from rmr1_jax.data.packing import Plan, Rows, choose_rows, plan, plan_in_order
from rmr1_jax.data.token_cache import TokenCache
from rmr1_jax.distributed.hosts import run_on_primary
from rmr1_jax.errors import UserError
from rmr1_jax.models.lora import combine
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.training.flops import peak_flops, training_flops
from rmr1_jax.training.loop import TrainingRun
from rmr1_jax.training.metrics import Numbers
from rmr1_jax.training.nll import sft_objective
from rmr1_jax.training.sharding_plan import ShardingPlan
from rmr1_jax.training.step import (
    Metrics,
    TrainState,
    evaluation_step,
    learning_rate,
    make_learner,
    make_optimizer,
)
from rmr1_jax.training.validation import VerdictCheck, loss_numbers, validation_loss

ROWS = "rows.json"


@dataclass(frozen=True)
class Material:
    """What is learnt from, and what is held out for the validation loss."""

    train: Plan
    held_out: Plan | None
    cache: TokenCache
    validation_cache: TokenCache | None


def make_material(
    config: SftConfig,
    cache: TokenCache,
    validation_cache: TokenCache | None,
    sharding: ShardingPlan,
) -> Material:
    """Plan all rows of a run, and of its validation.

    The shape of a step is chosen once and kept in the workdir, so that a run can be resumed on
    other devices: they must divide its rows. Raises UserError.
    """
    held_out = np.empty(0, np.int64)
    if validation_cache is None and config.data.held_out:
        held_out = _held_out(config, len(cache))
    learnt = np.setdiff1d(np.arange(len(cache)), held_out)
    shape = run_on_primary(
        lambda: _shape(config, cache.lengths[learnt], sharding), about=config.workdir
    )
    steps = plan(
        cache.lengths[learnt],
        cache.loss_lengths[learnt],
        shape,
        epochs=config.epochs,
        seed=config.seed,
    )
    validation = None
    source = validation_cache or cache
    among = np.arange(len(source)) if validation_cache is not None else held_out
    if len(among):
        longest = -(-int(source.lengths[among].max()) // 128) * 128
        one = Rows(max(shape.pack_length, longest), 1, shape.rows, 0.0)
        validation = plan_in_order(source.lengths[among], source.loss_lengths[among], one)
        validation = replace(validation, sequences=among[validation.sequences])
    return Material(
        replace(steps, sequences=learnt[steps.sequences]), validation, cache, validation_cache
    )


def _held_out(config: SftConfig, count: int) -> np.ndarray:
    share = config.data.held_out
    number = round(share * count) if share < 1 else int(share)
    if number >= count:
        raise UserError(
            f"--data.held_out={share:g} holds out {number} of {count} traces, and nothing is left "
            "to learn; lower it, or name other traces with --data.validation"
        )
    return np.sort(np.random.default_rng(config.seed).permutation(count)[:number])


def _shape(config: SftConfig, lengths: np.ndarray, sharding: ShardingPlan) -> Rows:
    file = Path(config.workdir) / ROWS
    rows = sharding.row_groups * config.micro_batch_size
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        per_step = int(kept["rows_per_step"])
        if per_step % rows:
            raise UserError(
                f"a step of the run in {config.workdir} has {per_step} rows, which {rows} "
                f"({sharding.row_groups} parts of the mesh x "
                f"--micro_batch_size={config.micro_batch_size}) do not divide; choose a mesh and "
                "--micro_batch_size that do"
            )
        return Rows(int(kept["pack_length"]), per_step // rows, rows, kept["mean_sequences"])
    shape = choose_rows(
        lengths,
        config.batch_size,
        sharding.row_groups,
        config.micro_batch_size,
        config.data.max_length,
        config.data.pack_length,
    )
    kept = {
        "pack_length": shape.pack_length,
        "rows_per_step": shape.per_step,
        "mean_sequences": shape.mean_sequences,
    }
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return shape


class Sft(TrainingRun):
    """A run of stage 1, ready to start or to be resumed.

    Args:
      config: checked.
      model: the architecture.
      material: from `make_material`.
      sharding: where everything lies.
      params: what is trained, placed: all weights to start from, or new adapters.
      base: the weights that are not trained, where there are adapters.
      verdicts: judges pairs at each validation; None where there are none.
    """

    config: SftConfig
    fetches = True

    def __init__(
        self,
        config: SftConfig,
        model: ModelConfig,
        material: Material,
        sharding: ShardingPlan,
        params: Params,
        base: Params,
        *,
        dtype: str,
        verdicts: VerdictCheck | None = None,
    ) -> None:
        self.config, self.model, self.material = config, model, material
        self.sharding, self.verdicts = sharding, verdicts
        self.steps = min(material.train.steps, config.max_steps or material.train.steps)
        self._schedule = learning_rate(config.optimizer, self.steps)
        objective = sft_objective(config, sharding)
        self._base = base
        learner = make_learner(
            model, objective, make_optimizer(config.optimizer, self.steps), params, sharding, dtype
        )
        self.state, self.like, self._update = learner.start(params), learner.like, learner.update
        self._evaluate = jax.jit(
            partial(evaluation_step, config=model, objective=objective, dtype=dtype),
            out_shardings=sharding.replicated,
        )
        self._batches = self._make_batches(material.train, material.cache)
        self._validation = (
            self._make_batches(material.held_out, material.validation_cache or material.cache).steps
            if material.held_out
            else None
        )
        self.validates = bool(self._validation or verdicts)

    def _make_batches(self, planned: Plan, cache: TokenCache) -> Batches:
        part, parts = self.sharding.rows_here
        return batches(
            cache,
            planned,
            loss=self.config.loss,
            process_index=part,
            process_count=parts,
        )

    def fetch(self) -> Batch:
        batch: Batch = self.sharding.put_batch(next(self._batches))
        return batch

    def get_state(self) -> Mapping[str, Any]:
        return self._batches.get_state()

    def set_state(self, position: Mapping[str, Any]) -> None:
        self._batches.set_state(dict(position))

    def close(self) -> None:
        self._batches.close()

    def take_step(self, state: TrainState, batch: Any = None) -> tuple[TrainState, Metrics]:
        new: tuple[TrainState, Metrics] = self._update(state, batch, self._base)
        return new

    def validate(self, step: int, state: TrainState) -> Numbers:
        """The loss on held-out traces, and the verdicts on held-out pairs."""
        numbers: Numbers = {}
        if self._validation is not None:
            evaluate = lambda params, batch: self._evaluate(params, batch, self._base)  # noqa: E731
            numbers |= validation_loss(evaluate, state.params, self._validation_batches())
        if self.verdicts is not None:
            weights = combine(state.params, self._base)
            numbers |= self.verdicts(step, weights, after_chunk=self.give_up_if_asked)
        return numbers

    def _validation_batches(self) -> Iterator[Batch]:
        """On the devices: each weighs what the rows of all processes hold."""
        assert self._validation is not None
        for i in range(len(self._validation)):
            self.give_up_if_asked()
            yield self.sharding.put_batch(self._validation[i])

    def report(self, step: int, metrics: Metrics, seconds: float) -> Numbers:
        cache, sequences = self.material.cache, self.material.train.sequences_of(step - 1)
        lengths, learnt = cache.lengths[sequences], int(cache.loss_lengths[sequences].sum())
        flops = training_flops(self.model, lengths, learnt, adapters_only=bool(self._base))
        tokens = int(lengths.sum())
        return {
            **loss_numbers(metrics.sums),
            "gradient_norm": float(metrics.gradient_norm),
            # Skipped steps do not advance the schedule.
            "learning_rate": float(
                self._schedule(step - int(metrics.skipped) - int(metrics.finite))
            ),
            "sequences": len(sequences),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "mfu": flops / seconds / (peak_flops() * jax.device_count()),
        }

    def batch_ids(self, step: int) -> list[str]:
        return self._batches.steps.ids_of(step - 1)
