"""GRPO steps of TRL's GRPOTrainer on the CPU, with transformers' `generate`. Runs in the
environment that `--prepare` made for it, and imports nothing of ours but the conversation.

Everything is TRL's but for: prompts come as token ids, and the lengths of responses are forced by
the end token, which nothing can draw before and only it can be drawn at the end.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.grpo_peers.conversation import Benchmark, Job, Measured, reward

MANY = 1_000_000  # steps; the benchmark says when it has enough


def main() -> None:
    benchmark = Benchmark()
    job = benchmark.job
    torch.set_num_threads(job.threads)
    measured = Measured()
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(job, measured, directory)
        trainer.add_callback(OneStepAtATime(benchmark, measured))
        benchmark.ready("trl", "torch", "transformers")
        trainer.train()


def make_trainer(job: Job, measured: Measured, directory: str) -> Any:
    micro_batch_size = job.micro_prompts * job.group_size
    trainer = Trainer(
        job,
        measured,
        model=job.model,
        reward_funcs=rewards,
        processing_class=AutoTokenizer.from_pretrained(job.model, padding_side="left"),
        train_dataset=Dataset.from_dict({"prompt": list(map(str, range(len(job.prompts))))}),
        args=GRPOConfig(
            output_dir=directory,
            max_steps=MANY,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=job.rows // micro_batch_size,
            num_generations=job.group_size,
            num_iterations=1,
            max_completion_length=job.max_new_tokens,
            temperature=job.temperature,
            top_p=1.0,
            top_k=0,
            beta=job.kl,
            epsilon=job.clip,
            loss_type="grpo",  # sequence mean of token means
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=0.9,
            adam_beta2=0.999,
            weight_decay=job.weight_decay,
            max_grad_norm=job.clip_norm,
            shuffle_dataset=False,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # nobody computes activations twice
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    # Not generate's own time only: what is cut and decoded afterwards belongs to a rollout.
    trainer._generate = measured.timing("rollout", trainer._generate)
    trainer._calculate_rewards = measured.timing("reward", trainer._calculate_rewards)
    return trainer


class Trainer(GRPOTrainer):
    """TRL's, with prompts of token ids, forced lengths and a clock."""

    def __init__(self, job: Job, measured: Measured, **options: Any) -> None:
        super().__init__(**options)
        self._job, self._measured = job, measured
        self._own_generate, self.model.generate = self.model.generate, self._forced

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        expected = [str(i) for i in range(len(self._job.prompts)) for _ in self._job.lengths[i]]
        if prompts != expected:
            raise RuntimeError(f"the rows are of other prompts than was thought: {prompts}")
        return [self._job.prompts[int(prompt)] for prompt in prompts], None, {}

    def _forced(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        lengths = torch.tensor(self._job.lengths).flatten()
        force = ForcedLengths(input_ids.shape[1], lengths, self._job)
        return self._own_generate(
            input_ids=input_ids, logits_processor=LogitsProcessorList([force]), **options
        )

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        completions, logprobs = super()._generate_single_turn(*args, **options)
        self._measured.lengths = list(map(len, completions))
        return completions, logprobs

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **options: Any) -> Any:
        function = super()._get_per_token_logps_and_entropies
        if model is self.ref_model:
            function = self._measured.timing("reference", function)
        return function(model, *args, **options)


class ForcedLengths(LogitsProcessor):
    """The end token for rows that have come to their length, anything else for the others."""

    def __init__(self, width: int, lengths: torch.Tensor, job: Job) -> None:
        self.width, self.lengths, self.job = width, lengths, job

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        made = input_ids.shape[1] - self.width
        scores[:, self.job.banned_ids] = -torch.inf
        last = self.lengths == made + 1
        scores[last] = -torch.inf
        scores[last, self.job.stop_id] = 0.0
        return scores


class OneStepAtATime(TrainerCallback):
    """A step when the benchmark says so."""

    def __init__(self, benchmark: Benchmark, measured: Measured) -> None:
        self._benchmark, self._measured = benchmark, measured

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self._benchmark.wants_step():
            raise SystemExit
        self._measured.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._benchmark.answer(self._measured.end())


def rewards(completions: list[str], **_: Any) -> list[float]:
    return [reward(completion) for completion in completions]


if __name__ == "__main__":
    main()
