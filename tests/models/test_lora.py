"""Adapters compute, learn, merge and export as PEFT's do."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.distributed.sharding_rules import TRAINING_RULES, axis_sizes, shardings
from rmr1_jax.errors import UserError
from rmr1_jax.models import lora, transformer
from rmr1_jax.models.huggingface import save_huggingface
from rmr1_jax.models.lora import TARGETS, Lora, save_peft
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import forward, random_params
from rmr1_jax.models.weight_map import flatten, nest

CONFIG = ModelConfig(
    model_type="qwen3",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=64,
    qk_norm=True,
)
LORA = Lora(rank=4, alpha=6.0)
SOME = Lora(rank=3, alpha=8.0, targets=("value", "output", "down"))
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 20))


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_params(CONFIG)


def with_adapters(params: Any, settings: Lora, *, trained: bool = True) -> dict[str, Any]:
    """The model with adapters, whose B is far from zero if `trained`."""
    full = lora.combine(params, lora.random_adapters(CONFIG, settings, seed=1))
    if not trained:
        return full
    adapters, rest = lora.split_trainable(full)
    keys = iter(jax.random.split(jax.random.key(2), 20))
    noise = lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape)  # noqa: E731
    return lora.combine(jax.tree.map(noise, adapters), rest)


def only_adapters(tree: Any) -> dict[str, Any]:
    """With their scales."""
    return nest({path: leaf for path, leaf in flatten(tree) if "/adapter/" in path})


def paths(tree: Any) -> list[str]:
    return sorted(path for path, _ in flatten(tree))


@jax.jit
def logits(params: Any) -> jax.Array:
    return forward(CONFIG, params, jnp.asarray(TOKENS), dtype=jnp.float32)


@jax.jit
def gradients(adapters: Any, rest: Any) -> Any:
    """Gradients of the mean negative log-likelihood with respect to the adapters."""

    def loss(adapters: Any) -> jax.Array:
        found = jax.nn.log_softmax(logits(lora.combine(adapters, rest)))[:, :-1]
        return -jnp.take_along_axis(found, jnp.asarray(TOKENS)[:, 1:, None], -1).mean()

    return jax.grad(loss)(adapters)


def test_new_adapters_change_nothing(params: Any) -> None:
    np.testing.assert_array_equal(
        logits(with_adapters(params, LORA, trained=False)), logits(params)
    )


def test_a_seed_repeats_the_first_adapters_and_another_does_not() -> None:
    first, again, other = (
        lora.random_adapters(CONFIG, LORA, seed)["layers"]["mlp"]["up"]["adapter"]["a"]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    assert 0.9 * 32**-0.5 < np.abs(first).max() <= 32**-0.5
    assert len(np.unique(first)) > first.size // 2  # layers differ


def test_merged_is_adapted_in_a_plain_tree(params: Any) -> None:
    adapted = with_adapters(params, LORA)
    merged = lora.merge(adapted)
    assert paths(merged) == paths(params)
    assert np.abs(logits(adapted) - logits(params)).max() > 0.1
    np.testing.assert_allclose(logits(merged), logits(adapted), atol=2e-5)


def test_merging_rounds_once_to_the_dtype_of_the_kernel(params: Any) -> None:
    adapted = with_adapters(params, SOME)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    kernel = lora.merge(lora.combine(narrow, only_adapters(adapted)))["layers"]["mlp"]["down"][
        "kernel"
    ]
    adapter = adapted["layers"]["mlp"]["down"]["adapter"]
    wide = narrow["layers"]["mlp"]["down"]["kernel"].astype(np.float32) + (
        8 / 3 * np.einsum("lfr,lrd->lfd", adapter["a"], adapter["b"])
    )
    np.testing.assert_array_equal(kernel, wide.astype(jnp.bfloat16))


def test_only_the_matrices_of_adapters_are_trainable(params: Any) -> None:
    adapted = with_adapters(params, SOME)
    adapters, rest = lora.split_trainable(adapted)
    assert sorted(path for path, _ in flatten(adapters)) == [
        f"layers/{name}/adapter/{which}"
        for name in ("attention/output", "attention/value", "mlp/down")
        for which in ("a", "b")
    ]
    assert paths(lora.combine(adapters, rest)) == paths(adapted)
    assert paths(lora.merge(rest)) == paths(params)


@pytest.mark.parametrize("settings", [LORA, SOME], ids=["all", "some"])
def test_peft_loads_the_files_and_computes_the_same(
    params: Any, settings: Lora, tmp_path: Path
) -> None:
    adapted = with_adapters(params, settings)
    save_huggingface(params, CONFIG, tmp_path / "base")
    save_peft(tmp_path / "adapter", adapted, base_model="some/model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits(adapted), theirs, atol=1e-4)
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "some/model"
    assert (described["r"], described["lora_alpha"]) == (settings.rank, settings.alpha)


def test_gradients_are_those_of_peft(params: Any, tmp_path: Path) -> None:
    adapted = with_adapters(params, LORA)
    save_huggingface(params, CONFIG, tmp_path / "base")
    save_peft(tmp_path / "adapter", adapted)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True)
    tokens = torch.from_numpy(TOKENS)
    model(tokens, labels=tokens).loss.backward()
    theirs = {
        name.replace(".default", ""): weight.grad
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    ours, rest = lora.split_trainable(adapted)
    scales = only_adapters(rest)
    save_peft(tmp_path / "gradients", lora.combine(gradients(ours, rest), scales))
    written = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    assert written.keys() == theirs.keys()
    for name, gradient in written.items():
        expected = theirs[name]
        assert expected is not None
        atol = 1e-4 * float(expected.abs().max())
        np.testing.assert_allclose(gradient, expected.numpy(), atol=atol)


def test_the_files_hold_what_peft_itself_would_write(params: Any, tmp_path: Path) -> None:
    save_huggingface(params, CONFIG, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    modules = ["v_proj", "o_proj", "down_proj"]
    get_peft_model(base, PeftConfig(r=3, lora_alpha=8, target_modules=modules)).save_pretrained(
        str(tmp_path / "theirs")
    )
    save_peft(tmp_path / "ours", with_adapters(params, SOME))
    ours, theirs = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")
    )
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }


def test_bfloat16_adapters_are_written_as_they_are(params: Any, tmp_path: Path) -> None:
    adapters = lora.random_adapters(CONFIG, SOME, param_dtype=jnp.bfloat16)
    save_peft(tmp_path / "adapter", adapters)
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    assert written[name].dtype == jnp.bfloat16
    expected = adapters["layers"]["attention"]["value"]["adapter"]["a"][1].T
    np.testing.assert_array_equal(written[name], expected)


def test_exporting_never_overwrites_what_is_not_its_own(params: Any, tmp_path: Path) -> None:
    adapted = with_adapters(params, SOME)
    save_peft(tmp_path / "adapter", adapted)
    save_peft(tmp_path / "adapter", adapted)
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        save_peft(tmp_path / "adapter", adapted)
    with pytest.raises(UserError, match="no adapters"):
        save_peft(tmp_path / "other", params)
    assert not (tmp_path / "other").exists()


@pytest.mark.devices8
def test_sharded_over_devices_adapters_compute_the_same(params: Any) -> None:
    adapted = with_adapters(params, LORA)
    axes = lora.logical_axes(CONFIG, LORA)
    assert paths(adapted) == paths(axes)
    assert axis_sizes(axes, adapted)["rank"] == 4
    placed = shardings(axes, make_mesh(MeshShape(1, 4, 2)), TRAINING_RULES)
    found = logits(jax.device_put(adapted, placed))
    np.testing.assert_allclose(found, logits(adapted), atol=2e-5)


def test_a_model_without_adapters_has_the_tree_it_always_had(params: Any) -> None:
    model = transformer.with_params(CONFIG, params, dtype=jnp.float32)
    assert model.layers.mlp.up.adapter is None
    assert "adapter" not in str(transformer.logical_axes(CONFIG))


def test_targets_are_read_from_a_line() -> None:
    assert lora.parse_targets("query, down") == ("query", "down")
    assert lora.parse_targets(",".join(TARGETS)) == LORA.targets
    for text, problem in (("query,wrong", "wrong"), ("", "at least one"), ("up,up", "once")):
        with pytest.raises(UserError, match=problem):
            lora.parse_targets(text)
