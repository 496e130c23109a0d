"""The GRPO objective against NumPy, written from the specification, response by response."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from rmr1_jax.data.packed_batch import GroupBatch
from rmr1_jax.models.transformer import Transformer
from rmr1_jax.rl.batch import Group, pack_groups
from rmr1_jax.rl.loss import (
    Settings,
    Sums,
    grpo,
    low_variance_kl,
    over_updates,
    token_logprobs,
)
from rmr1_jax.training.step import Metrics

VOCAB = 11


class Table:
    """A model whose hidden states are a table, and its logits those: what is left is the loss."""

    def __init__(self, hidden: Array) -> None:
        self.hidden = hidden

    def __call__(self, *inputs: Any, **options: Any) -> Array:
        return self.hidden

    def head(self) -> tuple[Array, str]:
        return jnp.eye(VOCAB), "DV"


def table(hidden: Array) -> Transformer:
    """All of a model that the objective asks for."""
    return cast(Transformer, Table(hidden))


class Case(NamedTuple):
    hidden: Array
    micro: GroupBatch


def case(seed: int = 0, spread: float = 0.3) -> Case:
    """Two rows of ragged groups; old, reference and sampler differ from the model by `spread`."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(4):
        lengths = rng.integers(1, 7, int(rng.integers(1, 4)))
        groups.append(
            Group(
                prompt=rng.integers(0, VOCAB, int(rng.integers(1, 5))),
                responses=tuple(rng.integers(0, VOCAB, length) for length in lengths),
                sampler_logprobs=tuple(np.zeros(length) for length in lengths),
                advantages=rng.normal(size=len(lengths)),
                weights=1 / lengths,
            )
        )
    batch = pack_groups(groups, pack_length=48, rows=2)
    micro = GroupBatch(*(leaf[0] for leaf in batch))
    hidden = jnp.asarray(rng.normal(size=(*micro.tokens.shape, VOCAB)), jnp.float32)
    now = np.asarray(token_logprobs(table(hidden), micro))

    def near() -> np.ndarray:
        return np.where(micro.loss_weights > 0, now + rng.normal(size=now.shape) * spread, 0)

    return Case(
        hidden,
        micro._replace(
            old_logprobs=near(), reference_logprobs=near() + 0.1, sampler_logprobs=near()
        ),
    )


def ours(case: Case, settings: Settings, weight: float | None = None) -> tuple[Sums, Array]:
    """The sums, and the gradient by the hidden states."""
    weight = float(case.micro.loss_weights.sum()) if weight is None else weight

    def loss(hidden: Array) -> tuple[Array, Sums]:
        model: Any = Table(hidden)
        return grpo(model, case.micro, jnp.float32(weight), settings=settings)

    (total, sums), gradient = jax.value_and_grad(loss, has_aux=True)(case.hidden)
    assert float(total) == float(sums.loss)
    return sums, gradient


def plain(case: Case, settings: Settings) -> dict[str, float]:
    """The same in NumPy and float64, one response at a time."""
    micro = case.micro
    logits = np.asarray(case.hidden, np.float64)
    sums = dict.fromkeys(Sums._fields, 0.0)
    for row in range(len(micro.tokens)):
        for branch in range(1, int(micro.loss_response_ids[row].max()) + 1):
            at = np.flatnonzero(micro.loss_response_ids[row] == branch)
            rows = logits[row, micro.loss_positions[row, at]]
            every = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
            logp = every[np.arange(len(at)), micro.loss_targets[row, at]]
            old = logp if settings.on_policy else micro.old_logprobs[row, at]
            advantage = micro.advantages[row, at]
            weight = micro.loss_weights[row, at] / micro.loss_weights.sum()

            ratio = np.exp(logp - old)
            if settings.ratio == "sequence":
                ratio = np.full(len(at), np.exp(np.mean(logp - old)))
            bounded = np.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
            policy = np.maximum(-advantage * ratio, -advantage * bounded)
            off = old - micro.sampler_logprobs[row, at]
            if settings.tis_cap:
                policy *= np.minimum(np.exp(off), settings.tis_cap)
            d = micro.reference_logprobs[row, at] - logp
            kl = np.clip(np.exp(d) - d - 1, -10, 10) * (settings.kl > 0)
            entropy = -(np.exp(every) * every).sum(-1) if settings.entropy else -logp

            sums["policy_loss"] += (weight * policy).sum()
            sums["kl"] += (weight * kl).sum()
            sums["entropy"] += (weight * entropy).sum()
            sums["tokens"] += len(at)
            sums["ratio"] += ratio.sum()
            low, high = 1 - settings.clip_low, 1 + settings.clip_high
            sums["clipped_low"] += ((ratio < low) & (advantage < 0)).sum()
            sums["clipped_high"] += ((ratio > high) & (advantage > 0)).sum()
            sums["mismatch"] += np.abs(off).sum()
            sums["mismatch_far"] += ((np.exp(off) < 0.9) | (np.exp(off) > 1.1)).sum()
            sums["mismatch_highest"] = max(sums["mismatch_highest"], np.abs(off).max())
    sums["loss"] = (
        sums["policy_loss"] + settings.kl * sums["kl"] - settings.entropy * sums["entropy"]
    )
    return sums


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(clip_high=0.28),
        Settings(ratio="sequence", clip_low=0.05, clip_high=0.07),
        Settings(tis_cap=1.2),
        Settings(entropy=0.01),
        Settings(kl=0.0),
        Settings(on_policy=True, tis_cap=1.5),
    ],
    ids=["published", "clip higher", "gspo", "correction", "entropy", "no kl", "on policy"],
)
def test_every_sum_is_that_of_the_formulas(settings: Settings) -> None:
    for seed in range(3):
        each = case(seed)
        sums, _ = ours(each, settings)
        for name, expected in plain(each, settings).items():
            assert float(getattr(sums, name)) == pytest.approx(expected, rel=2e-5, abs=2e-6), name
    if not settings.on_policy:
        assert sums.clipped_low > 0 and sums.clipped_high > 0


def test_what_is_clipped_has_no_gradient() -> None:
    each = case(0, spread=2.0)
    sums, gradient = ours(each, Settings(kl=0.0))
    micro = each.micro
    now = token_logprobs(table(each.hidden), micro)
    ratio = np.exp(now - micro.old_logprobs)
    clipped = ((ratio < 0.8) & (micro.advantages < 0)) | ((ratio > 1.2) & (micro.advantages > 0))
    assert clipped.sum() == sums.clipped_low + sums.clipped_high > 0
    taught = np.zeros(micro.tokens.shape, bool)
    rows, slots = np.nonzero((micro.loss_weights > 0) & ~clipped)
    taught[rows, micro.loss_positions[rows, slots]] = True
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, taught)


def test_the_kl_is_clamped_and_has_no_gradient_beyond() -> None:
    differences = jnp.array([-1e4, -11.1, -10.5, -1.0, 0.0, 1.0, 2.5, 2.7, 30.0, 1e4])
    value = low_variance_kl(differences)
    expected = np.clip(np.exp(np.minimum(differences, 50.0)) - differences - 1, -10, 10)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    slope = jax.vmap(jax.grad(low_variance_kl))(differences)
    inside = [0, 0, np.expm1(-10.5), np.expm1(-1), 0, np.expm1(1), np.expm1(2.5), 0, 0, 0]
    np.testing.assert_allclose(slope, inside, rtol=1e-5)


def test_what_an_option_leaves_out_is_not_read() -> None:
    each = case(1)
    nothing = np.full_like(each.micro.old_logprobs, np.nan)
    without = Case(each.hidden, each.micro._replace(reference_logprobs=nothing))
    sums, gradient = ours(without, Settings(kl=0.0))
    assert np.isfinite(sums).all() and np.isfinite(gradient).all()
    on_policy = Case(each.hidden, each.micro._replace(old_logprobs=nothing))
    sums, gradient = ours(on_policy, Settings(on_policy=True))
    assert np.isfinite(sums).all() and np.isfinite(gradient).all()
    assert sums.ratio == sums.tokens
    is_old = each.micro._replace(old_logprobs=token_logprobs(table(each.hidden), each.micro))
    expected, expected_gradient = ours(Case(each.hidden, is_old), Settings())
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)
    assert float(sums.loss) == pytest.approx(float(expected.loss), rel=1e-6)


def test_a_mini_batch_without_any_weight_teaches_nothing() -> None:
    each = case(2)
    nothing = each.micro._replace(loss_weights=np.zeros_like(each.micro.loss_weights))
    for settings in (Settings(), Settings(ratio="sequence", entropy=0.1, tis_cap=2.0)):
        sums, gradient = ours(Case(each.hidden, nothing), settings, weight=0.0)
        assert all(float(value) == 0 for value in sums)
        assert (np.asarray(gradient) == 0).all()


def test_the_sequence_ratio_has_the_gradient_of_the_response_as_a_whole() -> None:
    each, settings = case(3), Settings(ratio="sequence", kl=0.0)

    def whole(hidden: Array) -> Array:
        """GSPO as its paper has it: one term a response, its ratio differentiated as it is."""
        model: Any = Table(hidden)
        logp, micro, total = token_logprobs(model, each.micro), each.micro, jnp.zeros(())
        for row in range(len(micro.tokens)):
            for branch in range(1, int(micro.loss_response_ids[row].max()) + 1):
                at = np.flatnonzero(micro.loss_response_ids[row] == branch)
                ratio = jnp.exp(jnp.mean(logp[row, at] - micro.old_logprobs[row, at]))
                terms = (
                    ratio * micro.advantages[row, at[0]],
                    (jnp.clip(ratio, 0.8, 1.2) * micro.advantages[row, at[0]]),
                )
                total -= jnp.minimum(*terms)
        return total / micro.loss_weights.sum()

    _, gradient = ours(each, settings)
    np.testing.assert_allclose(gradient, jax.grad(whole)(each.hidden), rtol=1e-4, atol=1e-7)


def test_the_entropy_bonus_raises_the_entropy() -> None:
    each = case(4)
    weight = jnp.float32(each.micro.loss_weights.sum())
    settings = Settings(entropy=1.0, kl=0.0)
    flat = each.micro._replace(advantages=np.zeros_like(each.micro.advantages))
    objective = partial(grpo, micro=flat, weight_of_step=weight, settings=settings)
    model: Any = Table
    before = objective(model(each.hidden))[1].entropy
    gradient = jax.grad(lambda hidden: objective(model(hidden))[0])(each.hidden)
    assert objective(model(each.hidden - 0.5 * gradient))[1].entropy > before


def test_sums_add_up_and_the_highest_stays_the_highest() -> None:
    one, other = (
        Sums(*np.arange(len(Sums._fields), dtype=np.float32) * factor) for factor in (1, 2)
    )
    total = Sums.zero().plus(one).plus(other)
    highest = one._fields.index("mismatch_highest")
    for index, value in enumerate(total):
        assert float(value) == (2 if index == highest else 3) * index


def update(bad_steps: int) -> Metrics:
    bad = jnp.int32(bad_steps)
    return Metrics(Sums.zero(), jnp.float32(1), bad == 0, bad, jnp.int32(0))


def test_a_good_update_does_not_hide_the_bad_ones_before_it() -> None:
    step = over_updates([update(bad_steps) for bad_steps in (1, 2, 3, 0, 1, 0)])
    assert not step.finite
    assert int(step.bad_steps) == 3
