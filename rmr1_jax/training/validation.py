"""What a run is measured on but does not learn from: the loss on traces, and verdicts it writes."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from rmr1_jax.config import GrpoConfig, SftConfig
from rmr1_jax.data import read_preferences
from rmr1_jax.data.preference_store import ExampleStore
from rmr1_jax.errors import UserError
from rmr1_jax.judging import JudgePrompt, Preference
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.judge import Judge, Judgement, SamplingOptions
from rmr1_jax.training.metrics import Numbers
from rmr1_jax.training.nll import Sums
from rmr1_jax.training.sharding_plan import ShardingPlan, decoding_mesh, make_reshard


def loss_numbers(sums: Sums, prefix: str = "") -> Numbers:
    """What a step, or a validation, reports of its sums (on the host)."""
    nll = float(sums.nll) / max(float(sums.tokens), 1.0)
    verdicts = float(sums.verdicts)
    return {
        f"{prefix}loss": float(sums.loss),
        f"{prefix}perplexity": math.exp(min(nll, 50.0)) if math.isfinite(nll) else None,
        f"{prefix}verdict_token_accuracy": float(sums.verdicts_right) / verdicts
        if verdicts
        else None,
    }


def validation_loss(
    evaluate: Callable[[Params, Any], Sums], params: Params, batches: Iterable[Any]
) -> Numbers:
    """The objective over all validation batches, each weighing what its traces (or tokens) do.

    `evaluate` gives the sums over a batch of which `batches` must hold all rows: with several
    processes, those that lie on the devices.
    """
    total, weight = Sums.zero(), 0.0
    for batch in batches:
        share = float(batch.loss_weights.sum())
        sums = jax.device_get(evaluate(params, batch))
        total = total.plus(sums._replace(loss=sums.loss * share))
        weight += share
    return loss_numbers(total._replace(loss=total.loss / max(weight, 1.0)), "validation/")


@dataclass
class VerdictCheck:
    """Judges labelled pairs through the engine, each in both orders, with the current weights.

    Args:
      model, tokenizer, prompt, stop_ids: of the judge.
      pairs: labelled.
      sharding: of the run; the weights are resharded for decoding in one compiled program.
      sampling: how traces are sampled.
      samples_dir: where the traces of each validation are written.
    """

    model: ModelConfig
    tokenizer: Any
    prompt: JudgePrompt
    stop_ids: Sequence[int]
    pairs: Sequence[Preference]
    sharding: ShardingPlan
    dtype: DTypeLike
    sampling: SamplingOptions
    samples_dir: Path

    def __post_init__(self) -> None:
        self._judge: Judge | None = None
        self._reshard = make_reshard(self.model, self.sharding, self.dtype)

    def __call__(self, step: int, params: Params, after_chunk: Callable[[], None]) -> Numbers:
        """The share of right verdicts over all, in each order, and of pairs judged consistently.

        `after_chunk` is called every few dozen steps of decoding, and may raise.
        """
        weights = self._reshard(params)
        if self._judge is None:
            self._judge = Judge(
                self.model,
                weights,
                self.tokenizer,
                self.prompt,
                stop_ids=self.stop_ids,
                mesh=decoding_mesh(self.sharding),
                slots=64,
            )
        else:
            self._judge.replace_weights(weights)
        both = [order for pair in self.pairs for order in (pair, pair.swapped())]
        judged: list[Judgement | None] = [None] * len(both)
        judge = self._judge.judge(both, self.sampling, on_progress=lambda _: after_chunk())
        for position, [judgement] in judge:
            judged[position] = judgement
        self._judge.replace_weights({})  # held until the next check, they would only take memory
        records = [
            verdict_record(pair, judgement)
            for pair, judgement in zip(both, judged, strict=True)
            if judgement is not None
        ]
        if jax.process_index() == 0:
            self.samples_dir.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            file = self.samples_dir / f"step_{step:06d}.jsonl"
            file.write_text("".join(lines), encoding="utf-8")
        return verdict_numbers(records)


def verdict_record(pair: Preference, judgement: Judgement) -> dict[str, Any]:
    return {
        "id": pair.id,
        "label": pair.label,
        "verdict": judgement.verdict,
        "problem": judgement.problem,
        "trace": judgement.trace,
        "trace_tokens": judgement.trace_tokens,
    }


def verdict_numbers(records: Sequence[Mapping[str, Any]]) -> Numbers:
    """From records of pairs, each as given and swapped, one after the other."""
    right = [record["verdict"] == record["label"] for record in records]
    given, swapped = right[0::2], right[1::2]
    verdicts = [record["verdict"] for record in records]
    orders = zip(verdicts[0::2], verdicts[1::2], strict=True)
    mean = lambda values: sum(values) / max(len(values), 1)  # noqa: E731
    return {
        "validation/verdict_accuracy": mean(right),
        "validation/verdict_accuracy_given": mean(given),
        "validation/verdict_accuracy_swapped": mean(swapped),
        "validation/consistent": mean([{a, b} == {"A", "B"} for a, b in orders]),
        "validation/said_a": mean([verdict == "A" for verdict in verdicts]),
        "validation/no_verdict": mean([verdict is None for verdict in verdicts]),
        "validation/trace_tokens": mean([record["trace_tokens"] for record in records]),
    }


def verdict_check(
    config: SftConfig | GrpoConfig,
    model: ModelConfig,
    tokenizer: Any,
    prompt: JudgePrompt,
    stop_ids: Sequence[int],
    sharding: ShardingPlan,
    dtype: DTypeLike,
    folder: str,
) -> VerdictCheck | None:
    """What judges the validation pairs, if there are any; its traces go to `folder` of the run.

    Raises UserError.
    """
    pairs = validation_pairs(config)
    if not pairs:
        return None
    sampling = SamplingOptions(max_new_tokens=config.validation.max_new_tokens)
    samples_dir = Path(config.workdir) / folder
    return VerdictCheck(
        model, tokenizer, prompt, stop_ids, pairs, sharding, dtype, sampling, samples_dir
    )


def validation_pairs(config: SftConfig | GrpoConfig) -> list[Preference]:
    """Labelled pairs that the model is asked to judge. Raises UserError."""
    path, number = config.validation.judge, config.validation.pairs
    if not path or not number or not config.validation.every:
        return []
    if Path(path).is_dir():
        split = ExampleStore(path).split("validation")
        some = (split[index].preference for index in range(min(len(split), number)))
        pairs = [pair for pair in some if pair is not None]
    else:
        pairs = []
        for pair in read_preferences(path, rejects=lambda *about: None):
            if pair.label is not None:
                pairs.append(pair)
            if len(pairs) == number:
                break
    if not pairs:
        raise UserError(
            f"--validation.judge={path} holds no labelled pair (rendered prompts cannot be shown "
            "in both orders); name a prepared directory or a file of labelled pairs"
        )
    return pairs
