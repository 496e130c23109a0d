"""The whole update of GRPO against torch, which takes every response by itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmr1_jax.config import OptimizerConfig
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.huggingface import save_huggingface
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params
from rmr1_jax.rl.advantage import Reduction
from rmr1_jax.rl.batch import Group
from rmr1_jax.rl.loss import Settings, grpo, token_logprobs
from rmr1_jax.training.step import batch_logprobs, initial_state, make_optimizer, train_step
from tests.rl.grpo_jobs import POOL, Job, PerToken, keeping_gradients, random_groups

# With the usual epsilon, AdamW turns a gradient that is nothing but rounding into a whole step.
ADAMW = OptimizerConfig(
    learning_rate=2e-2, beta2=0.999, weight_decay=0.01, epsilon=1e-3, warmup=0.0, final_lr_ratio=1.0
)
MINI_BATCHES = 3


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small products."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TorchReference:
    """The update by transformers and torch, one response at a time, from the specification."""

    def __init__(self, directory: Path) -> None:
        torch = pytest.importorskip("torch")
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=2e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.01
        )

    def every(self, prompt: np.ndarray, response: np.ndarray) -> Any:
        """log-softmax [R, V] at the tokens of a response."""
        tokens = self.torch.tensor(np.concatenate([prompt, response]))[None]
        return self.model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    def logprobs(self, groups: Sequence[Group]) -> list[PerToken]:
        with self.torch.no_grad():
            return [
                tuple(
                    self.every(group.prompt, response).numpy()[np.arange(len(response)), response]
                    for response in group.responses
                )
                for group in groups
            ]

    def losses(self, job: Job, settings: Settings) -> list[Any]:
        """The loss of each token of each response."""
        torch, losses = self.torch, []
        self.clipped = 0
        for group, olds, references in zip(job.groups, job.old, job.reference, strict=True):
            for i, response in enumerate(group.responses):
                every = self.every(group.prompt, response)
                logp = every.gather(1, torch.tensor(response)[:, None])[:, 0]
                old, reference = torch.tensor(olds[i]), torch.tensor(references[i])
                sampler = torch.tensor(group.sampler_logprobs[i], dtype=torch.float32)
                advantage = float(group.advantages[i])

                ratio = torch.exp(logp - old)
                if settings.ratio == "sequence":  # GSPO's own form, not its token form
                    ratio = torch.exp((logp - old).mean()).expand(len(response))
                bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
                policy = torch.max(-advantage * ratio, -advantage * bounded)
                self.clipped += int((-advantage * bounded > -advantage * ratio).sum())
                if settings.tis_cap:
                    policy = policy * torch.exp(old - sampler).clamp(max=settings.tis_cap)
                d = reference - logp
                kl = torch.clamp(torch.exp(d) - d - 1, -10, 10)
                entropy = -(every.exp() * every).sum(-1)
                losses.append(policy + settings.kl * kl - settings.entropy * entropy)
        return losses

    def step(self, job: Job, settings: Settings, reduction: Reduction) -> tuple[float, float]:
        """(loss, gradient norm); the gradients stay in `gradients`, before they are clipped."""
        torch = self.torch
        self.optimizer.zero_grad()
        size = {"sequence_mean": 1, "pooled_mean": POOL, "token_mean": 10**6}[reduction]
        pools = [torch.cat(pool).mean() for pool in batched(self.losses(job, settings), size)]
        loss = torch.stack(pools).mean()
        loss.backward()
        named: Any = self.model.named_parameters()
        self.gradients = {name: parameter.grad.numpy().copy() for name, parameter in named}
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item(), norm.item()


def as_in_torch(tree: Params, config: ModelConfig, directory: Path) -> dict[str, np.ndarray]:
    """A tree of parameters (or gradients) by the names that transformers gives them."""
    from safetensors.numpy import load_file

    save_huggingface(tree, config, directory)
    named: dict[str, np.ndarray] = {}
    for file in directory.glob("*.safetensors"):
        named |= load_file(file)
    return named


@pytest.mark.slow
@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(
    ("family", "reduction", "settings"),
    [
        ("qwen2", "sequence_mean", Settings(kl=0.05)),
        ("qwen3", "pooled_mean", Settings(kl=0.05)),
        ("llama", "token_mean", Settings()),
        ("qwen2", "token_mean", Settings(clip_high=0.28, tis_cap=1.1, entropy=0.02)),
        ("llama, tied", "sequence_mean", Settings(0.02, 0.03, kl=0.0, ratio="sequence")),
    ],
    ids=["sequence mean", "pooled mean, tied", "token mean", "options", "gspo, tied"],
)
def test_losses_gradients_and_weights_of_three_mini_batches_are_those_of_torch(
    family: str,
    reduction: Reduction,
    settings: Settings,
    model_dir: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    torch_model = TorchReference(model_dir(family))
    config, params = load_model(model_dir(family), dtype="float32")
    rng = np.random.default_rng(5)
    moved = jax.tree.map(lambda p: p + 0.05 * rng.normal(size=p.shape).astype("f4"), params)
    save_huggingface(moved, config, tmp_path / "reference")
    torch_reference = TorchReference(tmp_path / "reference")

    jobs, batches = [], []
    logprobs = jax.jit(
        partial(batch_logprobs, config=config, dtype=jnp.float32, token_logprobs=token_logprobs)
    )
    for _ in range(MINI_BATCHES):
        groups = random_groups(rng, 4, reduction)
        old = torch_model.logprobs(groups)
        groups = [
            replace(group, sampler_logprobs=tuple(o + rng.normal(0, 0.1, len(o)) for o in olds))
            for group, olds in zip(groups, old, strict=True)
        ]
        jobs.append(Job(groups, old, torch_reference.logprobs(groups)))
        expected = jobs[-1].packed(pack_length=64, rows=2, micro_batches=4)
        ours = expected._replace(
            old_logprobs=logprobs(params, expected, {}),
            reference_logprobs=logprobs(moved, expected, {}),
        )
        for name in ("old_logprobs", "reference_logprobs"):
            np.testing.assert_allclose(getattr(ours, name), getattr(expected, name), atol=1e-5)
        batches.append(ours)

    optimizer = optax.chain(keeping_gradients(), make_optimizer(ADAMW, 100))
    step = jax.jit(
        partial(
            train_step,
            config=config,
            objective=partial(grpo, settings=settings),
            optimizer=optimizer,
            dtype=jnp.float32,
        )
    )
    state, clipped = jax.jit(partial(initial_state, optimizer=optimizer))(params), 0
    for number, (job, batch) in enumerate(zip(jobs, batches, strict=True)):
        state, metrics = step(state, batch, {})
        loss, norm = torch_model.step(job, settings, reduction)
        assert float(metrics.sums.loss) == pytest.approx(loss, rel=5e-5, abs=2e-6)
        assert float(metrics.gradient_norm) == pytest.approx(norm, rel=2e-4)
        assert metrics.sums.clipped_low + metrics.sums.clipped_high == torch_model.clipped
        clipped += torch_model.clipped
        kept: Any = state.optimizer
        gradients = as_in_torch(kept[0], config, tmp_path / f"gradients {number}")
        for name, values in gradients.items():
            expected_gradient = torch_model.gradients[name]
            np.testing.assert_allclose(
                values, expected_gradient, rtol=2e-3, atol=1e-4 * norm, err_msg=name
            )
    assert clipped > 0  # or the later mini-batches would test little
    weights = dict(torch_model.model.named_parameters())
    for name, values in as_in_torch(state.params, config, tmp_path / "ours").items():
        expected_weights = weights[name].detach().numpy()
        np.testing.assert_allclose(values, expected_weights, rtol=2e-3, atol=2e-4, err_msg=name)
