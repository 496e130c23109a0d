"""What `--stage=grpo` is asked for."""

from dataclasses import dataclass, field
from typing import Literal

from rmr1_jax.config.checks import at_least, checkpoint_exists
from rmr1_jax.config.sampling_config import Sampling
from rmr1_jax.config.training_config import OptimizerConfig, TrainingOptions
from rmr1_jax.errors import UserError


@dataclass(frozen=True)
class PromptsConfig:
    """Which labelled pairs are judged."""

    train: str = ""
    """Labelled pairs: a prepared directory (its train split), a file, or a released RLVR set.
    Empty: those of the toy task, made first if they are absent."""
    prompt: str = ""
    """chain_of_rubrics, reasoning, or a file that holds the prompt, for pairs whose prompts are
    not rendered yet. Empty: the model's own."""
    both_orders: bool = False
    """Ask about each pair in both orders within a step, so that no step teaches a position bias.
    Not published."""
    max_prompt: int = 4096
    """Longest prompt, in tokens; longer ones are dropped, as published."""


@dataclass(frozen=True)
class RolloutConfig(Sampling):
    """How groups of traces are sampled."""

    samples: int = 7
    """Traces per prompt (the size of a group)."""
    max_response: int = 8192
    """The longest trace, in tokens; longer ones are cut."""
    temperature: float = 1.0
    """Sampling temperature. Log-probabilities of the objective are at temperature 1, as
    published."""
    max_num_seqs: int | None = None
    """Traces written at the same time. None: chosen for the machine."""


@dataclass(frozen=True)
class RewardConfig:
    """What a trace is worth."""

    function: str = ""
    """A function of your own, package.module:function; it takes a rewards.Sampled and returns a
    number. Empty: +1 for the labelled verdict at the end and -1 for anything else, as published."""
    truncated: Literal["keep", "mask", "shape"] = "keep"
    """What to do with a trace that was cut: keep it (as published: it has no verdict, so it gets
    -1), mask it in the loss, or shape rewards (traces close to the limit lose up to 1)."""
    buffer: int = 512
    """With shape: the tokens before the limit over which the loss of reward grows from 0 to 1."""


@dataclass(frozen=True)
class AdvantageConfig:
    """What a trace is worth compared with the others of its group."""

    normalize_std: bool = True
    """Divide by the standard deviation of the group (unbiased, + 1e-6), as published. False
    gives Dr. GRPO."""
    leave_one_out: bool = False
    """Subtract the mean of the other traces of the group instead of the mean of all (RLOO)."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal, which teach nothing, with other prompts."""
    max_rounds: int = 4
    """With dynamic_sampling: sample at most this many times per step."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The clipped policy gradient with a KL term."""

    clip_low: float = 0.2
    """Lower clip bound: ratio >= 1 - clip_low."""
    clip_high: float = 0.2
    """Upper clip bound: ratio <= 1 + clip_high. Above clip_low, this is known as clip-higher."""
    kl: float = 0.001
    """Weight of the low-variance KL to the reference model. 0: no reference model is kept."""
    entropy: float = 0.0
    """Weight of an entropy bonus."""
    ratio: Literal["token", "sequence"] = "token"
    """token: one ratio per token; sequence: one per trace, the geometric mean over its tokens
    (GSPO)."""
    tis_cap: float = 0.0
    """Truncated importance sampling: weight tokens by old policy / sampler, at most this much. 0:
    off. The sampler's probability is that of the distribution it drew from, so this also corrects
    for a temperature other than 1, top_p and top_k, and the `mismatch` metrics include them."""
    reduction: Literal["sequence_mean", "pooled_mean", "token_mean"] = "sequence_mean"
    """sequence_mean: every trace has the same weight (published with micro-batches of one);
    pooled_mean: every `pool` traces have, and within them every token (published for 7B);
    token_mean: every token of an update has."""
    pool: int = 4
    """Traces that pooled_mean pools."""


@dataclass(frozen=True)
class ReferenceConfig:
    """The model that the policy should stay close to."""

    model: str = ""
    """Its checkpoint. Empty: the model that training starts from (with LoRA: without adapters)."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """Type of its weights. Empty: the type to compute in."""


@dataclass(frozen=True)
class SamplesConfig:
    """Traces that are written down to be read: samples.jsonl and samples.html."""

    every: int = 10
    """Steps between samples. 0: never."""
    groups: int = 4
    """Prompts to write each time, with all their traces."""


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=1e-6, beta2=0.999, weight_decay=0.01, warmup=0.0, final_lr_ratio=1.0
    )


@dataclass(frozen=True)
class GrpoConfig(TrainingOptions):
    """Reinforcement learning (GRPO) with the verdict as reward: groups of traces are sampled,
    rewarded and learnt from. With no option: the judge of the toy task, on a CPU, from its
    SFT run, which is trained first if it is absent."""

    workdir: str = "runs/grpo_toy_task"
    """The run directory. Rerun the command to resume it."""
    model: str = ""
    """The checkpoint or SFT run to start from. Empty: that of the toy task."""
    data: PromptsConfig = field(default_factory=PromptsConfig)
    batch_size: int = 1024
    """Prompts per step."""
    mini_batch: int = 128
    """Prompts per update; batch_size / mini_batch updates follow each rollout."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    pack_length: int | None = None
    """Tokens of a packed row at most; it holds a prompt once and several traces after it. None:
    enough for the longest prompt and trace, and at least 4,096."""
    seed: int = 1
    """Seed of the order of the prompts and of sampling."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)

    @property
    def updates(self) -> int:
        """Updates per step."""
        return self.batch_size // self.mini_batch

    def check(self) -> None:
        """Refuse what cannot work, before a file is read. Raises UserError."""
        self.check_training("grpo")
        if self.reference.model:
            checkpoint_exists("reference.model", self.reference.model)
        if not self.model or not self.data.train:
            missing = "--model=CHECKPOINT" if not self.model else "--data.train=PAIRS"
            raise UserError(
                f"also name {missing}; with neither --model nor --data.train the toy task is learnt"
            )
        at_least("mini_batch", self.mini_batch, 1)
        if self.batch_size % self.mini_batch:
            raise UserError(
                f"--mini_batch={self.mini_batch} does not divide --batch_size={self.batch_size}; "
                "a step makes batch_size / mini_batch updates"
            )
        if self.data.both_orders and self.mini_batch % 2:
            raise UserError(
                f"--mini_batch={self.mini_batch} must be even: with --data.both_orders the two "
                "orders of a pair belong to one update"
            )
        if self.pack_length is not None:
            at_least("pack_length", self.pack_length, 8)
        at_least("data.max_prompt", self.data.max_prompt, 1)
        self._check_rollout()
        self._check_objective()
        at_least("samples.every", self.samples.every, 0)
        at_least("samples.groups", self.samples.groups, 1)

    def _check_rollout(self) -> None:
        rollout = self.rollout
        if rollout.samples < 2:
            raise UserError(
                f"--rollout.samples={rollout.samples}: a trace is compared with the others of its "
                "prompt, so there must be at least 2"
            )
        at_least("rollout.max_response", rollout.max_response, 1)
        if not rollout.temperature > 0:
            raise UserError(
                f"--rollout.temperature={rollout.temperature} must be above 0: all traces of a "
                "prompt would be the same, and nothing could be learnt from them"
            )
        rollout.check_sampling("rollout.")
        if rollout.max_num_seqs is not None:
            at_least("rollout.max_num_seqs", rollout.max_num_seqs, 1)
        if self.reward.truncated == "shape":
            at_least("reward.buffer", self.reward.buffer, 1)
            if self.reward.buffer > rollout.max_response:
                raise UserError(
                    f"--reward.buffer={self.reward.buffer} is longer than "
                    f"--rollout.max_response={rollout.max_response}"
                )

    def _check_objective(self) -> None:
        objective = self.objective
        for name in ("clip_low", "clip_high", "kl", "entropy", "tis_cap"):
            at_least(f"objective.{name}", getattr(objective, name), 0)
        if objective.clip_low >= 1:
            raise UserError(f"--objective.clip_low={objective.clip_low} must be below 1")
        at_least("objective.pool", objective.pool, 1)
        at_least("advantage.max_rounds", self.advantage.max_rounds, 1)
        if self.reference.model and not objective.kl:
            raise UserError(
                f"--reference.model={self.reference.model} is given, but --objective.kl=0 needs "
                "none"
            )
