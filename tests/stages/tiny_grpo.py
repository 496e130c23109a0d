"""A GRPO run that takes seconds: a random model of the toy task, few prompts, few tokens."""

import json
from pathlib import Path
from typing import Any

from rmr1_jax.main import main
from rmr1_jax.models.huggingface import PROMPT_FILE, save_huggingface
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import random_params
from rmr1_jax.rl.reward import Sampled
from rmr1_jax.toy_task import (
    TOY_PROMPT,
    tiny_model_config,
    toy_preferences,
    toy_tokenizer,
    write_tokenizer,
)
from rmr1_jax.training.metrics import read_metrics

LONGEST = 24  # tokens of a trace
SAMPLES, BATCH = 4, 4
# A random model writes no verdict, so the published reward would teach it nothing.
EVEN_TEXT = "tests.stages.tiny_grpo:even_text"
OPTIONS = (
    "--stage=grpo",
    "--data.max_prompt=64",
    f"--rollout.samples={SAMPLES}",
    f"--rollout.max_response={LONGEST}",
    "--rollout.max_num_seqs=8",
    f"--batch_size={BATCH}",
    "--mini_batch=2",
    "--pack_length=128",
    "--epochs=10",
    "--max_steps=2",
    "--optimizer.learning_rate=1e-3",
    "--objective.kl=0.1",
    "--remat=none",
    "--checkpoint.every=1",
    "--validation.every=0",
    "--samples.every=1",
    "--samples.groups=2",
)
LEARNT = ("reward", "loss", "gradient_norm", "kl", "entropy", "response_tokens", "rounds")


def even_text(sampled: Sampled) -> float:
    """A reward that differs within most groups, though not in all."""
    return -1.0 if len(sampled.response) % 2 else 1.0


def even_text_for_some(sampled: Sampled) -> float:
    """The same, and nothing to learn from every other prompt."""
    return 1.0 if sum(map(ord, sampled.id)) % 2 else even_text(sampled)


def even_text_but_for_one(sampled: Sampled) -> float:
    """The same, and nothing to learn from one of the prompts that `write_pairs` writes."""
    return 1.0 if sampled.id.endswith("-0") else even_text(sampled)


def write_model(directory: Path, **changes: Any) -> Path:
    """A Hugging Face checkpoint; several tokens end a trace, so that lengths differ."""
    described = tiny_model_config(len(toy_tokenizer()))
    described |= {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48}
    described |= {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    end = described["eos_token_id"]
    described["eos_token_id"] = [end, *range(0, 70, 10)]
    config = ModelConfig.from_hf(described | changes, source="a tiny judge")
    save_huggingface(random_params(config, seed=1), config, directory)
    write_tokenizer(directory)
    (directory / PROMPT_FILE).write_text(TOY_PROMPT.system or "")
    return directory


def write_pairs(file: Path, count: int = 12, *, seed: int = 3, label: bool = True) -> Path:
    with file.open("w") as out:
        for pair in toy_preferences(count, seed):
            record = {"id": pair.id, "question": pair.context[0].content}
            record |= {"response_a": pair.response_a, "response_b": pair.response_b}
            out.write(json.dumps(record | ({"label": pair.label} if label else {})) + "\n")
    return file


def write_released(file: Path, count: int = 12) -> Path:
    """Rendered prompts, as the published RLVR sets have them."""
    with file.open("w") as out:
        for pair in toy_preferences(count, 3):
            winner = f"model_{str(pair.label).lower()}"
            messages = TOY_PROMPT.messages(pair)
            out.write(json.dumps({"context_messages": messages, "winner": winner}) + "\n")
    return file


def arguments(workdir: Path, model: Path, pairs: Path, *more: str) -> list[str]:
    given = [f"--workdir={workdir}", f"--model={model}", f"--data.train={pairs}"]
    if not any(option.startswith("--reward.function") for option in more):
        given.append(f"--reward.function={EVEN_TEXT}")
    return [*OPTIONS, *given, *more]


def grpo(workdir: Path, model: Path, pairs: Path, *more: str) -> int:
    """A run through the command line, in this process. Returns its exit status."""
    return main(arguments(workdir, model, pairs, *more))


def learnt(workdir: Path) -> list[tuple[Any, ...]]:
    """Of each step, what an unbroken run and one that went on have in common, bit for bit."""
    names = ("step", *LEARNT)
    return [tuple(record[name] for name in names) for record in read_metrics(workdir)]
