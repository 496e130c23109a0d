"""The two that are compared, behind one call: `run(workload)` gives all sampled tokens."""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from benchmarks.workloads import Workload
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.sampling.decode_loop import unstack_layers
from rmr1_jax.sampling.scheduler import Scheduler, Work

Samples = list[list[list[int]]]  # [prompt][sample][token]
COMPILED = "/jax/core/compile/backend_compile_duration"


def timed[T](function: Callable[[], T]) -> tuple[float, T]:
    """(seconds, result), after a pause in which the other's threads fall asleep."""
    gc.collect()
    time.sleep(0.2)
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def check_lengths(workload: Workload, samples: Samples, who: str) -> None:
    """Refuse to go on if a sample is not as long as it was forced to be."""
    found = [[len(sample) for sample in group] for group in samples]
    if found != list(workload.lengths):
        raise RuntimeError(f"({workload.name}) {who} made other lengths than were forced: {found}")


class Compilations:
    """Counts the programs that jax compiles in this process."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def reset(self) -> None:
        self.count, self.seconds = 0, 0.0

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self.count += 1
            self.seconds += duration_secs


def load_ours(directory: Path) -> tuple[ModelConfig, Params]:
    """Config, and fp32 weights as decoding wants them."""
    config, params = load_model(directory, dtype="float32")
    return config, jax.jit(partial(unstack_layers, config, dtype=jnp.float32))(params)


class Ours:
    """Our engine, made for one workload."""

    def __init__(
        self, config: ModelConfig, weights: Params, workload: Workload, slots: int | None = None
    ):
        self.engine = Scheduler(
            config, weights, slots=slots or workload.slots, group_size=workload.group_size
        )

    @property
    def work(self) -> Work:
        """Of the last run."""
        return self.engine.work

    def run(self, workload: Workload) -> Samples:
        samples: Samples = [[] for _ in workload.prompts]
        for position, group in self.engine.generate(
            workload.requests(), max_new_tokens=workload.limit
        ):
            samples[position] = [sample.tokens.tolist() for sample in group]
        return samples


class Transformers:
    """`generate` of Hugging Face transformers on torch, in batches of the queue's order."""

    def __init__(self, directory: Path, batch: int):
        self.batch = batch
        self.model = AutoModelForCausalLM.from_pretrained(
            str(directory), dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        ).eval()
        # Its eos ids would end rows early.
        self.model.generation_config = GenerationConfig()

    def run(self, workload: Workload) -> Samples:
        return [
            group
            for prompts, lengths in self._batches(workload)
            for group in self._generate(workload, prompts, lengths)
        ]

    def row_steps(self, workload: Workload) -> int:
        """Rows times steps, those of rows that wait for the slowest of their batch included."""
        return sum(
            sum(map(len, lengths)) * max(map(max, lengths))
            for _, lengths in self._batches(workload)
        )

    def prefill_tokens(self, workload: Workload) -> int:
        """Prompt positions computed: each copy of a prompt, padding included."""
        return sum(
            sum(map(len, lengths)) * max(map(len, prompts))
            for prompts, lengths in self._batches(workload)
        )

    def _batches(self, workload: Workload) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
        """(prompts, lengths) of at most `batch` rows, in queue order."""
        size = max(self.batch // workload.group_size, 1)
        for start in range(0, len(workload.prompts), size):
            part = slice(start, start + size)
            yield list(workload.prompts[part]), list(workload.lengths[part])

    def _generate(
        self, workload: Workload, prompts: list[list[int]], lengths: list[list[int]]
    ) -> Samples:
        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        rows = [length for group in lengths for length in group]
        sampling: dict[str, Any] = {"do_sample": False}
        if workload.temperature:
            sampling = {"do_sample": True, "temperature": workload.temperature, "top_k": 0}
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=workload.limit,
                num_return_sequences=workload.group_size,
                use_cache=True,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([StopAtLengths(width, rows)]),
                **sampling,
            )
        # What a finished row wrote while it waited is not counted.
        new = [row[width:][:length] for row, length in zip(output.tolist(), rows, strict=True)]
        G = workload.group_size
        return [new[start : start + G] for start in range(0, len(new), G)]


class StopAtLengths(StoppingCriteria):
    """Ends each row at its own number of new tokens."""

    def __init__(self, prompt_width: int, lengths: list[int]):
        self.ends = prompt_width + torch.tensor(lengths)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends
