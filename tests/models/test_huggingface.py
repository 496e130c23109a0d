"""Hugging Face checkpoints in and out: exact values, all problems at once, all or nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import MARKER
from rmr1_jax.models import weight_map as tensors_module
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.huggingface import INDEX, SINGLE, parse_size, save_huggingface
from rmr1_jax.models.model_config import ModelConfig, load_hf_config
from rmr1_jax.models.transformer import parameter_shapes
from rmr1_jax.models.weight_map import count_parameters, flatten, nest, tensors_of

Make = Callable[..., Path]
FAMILIES = ["llama", "llama, tied", "qwen2", "qwen3"]


def stored(directory: Path) -> dict[str, np.ndarray]:
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def rewrite(directory: Path, target: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of a checkpoint in one file, with its tensors changed."""
    target.mkdir()
    shutil.copyfile(directory / "config.json", target / "config.json")
    values = stored(directory)
    change(values)
    save_file(values, target / SINGLE)
    return target


def error_of(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_tensors_is_the_parameters_of_the_decoder(
    tiny_checkpoint: Make, family: str
) -> None:
    config = ModelConfig.from_hf(load_hf_config(tiny_checkpoint(family)), source="")
    decoder = {path: leaf.shape for path, leaf in flatten(parameter_shapes(config))}
    assert decoder == {tensor.path: tensor.shape(config) for tensor in tensors_of(config)}


def test_every_weight_arrives_where_the_decoder_expects_it(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("llama")
    _, params = load_model(directory)
    theirs = stored(directory)
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    layer, head, unit = 2, 1, 5
    prefix = f"model.layers.{layer}"
    row = head * 12 + unit
    for name, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        weight, bias = (
            theirs[f"{prefix}.self_attn.{name}_proj.{kind}"] for kind in ("weight", "bias")
        )
        np.testing.assert_array_equal(attention[ours]["kernel"][layer, :, head, unit], weight[row])
        assert attention[ours]["bias"][layer, head, unit] == bias[row]
    output = theirs[f"{prefix}.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(attention["output"]["kernel"][layer, head, unit], output[:, row])
    np.testing.assert_array_equal(
        mlp["down"]["kernel"][layer], theirs[f"{prefix}.mlp.down_proj.weight"].T
    )
    np.testing.assert_array_equal(params["lm_head"]["kernel"], theirs["lm_head.weight"].T)
    np.testing.assert_array_equal(params["embed"]["embedding"], theirs["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", "float32"),
        ("llama, tied", "bfloat16"),
        ("qwen2", "float16"),
        ("qwen3", "bfloat16"),
    ],
)
def test_a_round_trip_keeps_every_bit(
    tiny_checkpoint: Make, tmp_path: Path, family: str, dtype: str
) -> None:
    source = tiny_checkpoint(family, dtype)
    config, params = load_model(source)
    assert {str(leaf.dtype) for _, leaf in flatten(params)} == {dtype}
    save_huggingface(params, config, tmp_path / "out", max_shard_size="20KB")
    before, after = stored(source), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert value.tobytes() == after[name].tobytes(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_an_export_and_gives_the_same_logits(
    tiny_checkpoint: Make, tmp_path: Path, family: str
) -> None:
    source = tiny_checkpoint(family, "float32")
    config, params = load_model(source)
    save_huggingface(params, config, tmp_path / "out", max_shard_size="50KB")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    model, info = loaded
    assert not any(info.values()), info
    original = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, original(tokens).logits)


def test_a_real_checkpoint_goes_round_with_its_tokenizer(
    minimind_dir: Path, tmp_path: Path
) -> None:
    config, params = load_model(minimind_dir)
    assert count_parameters(config) == 25_829_888
    save_huggingface(
        params, config, tmp_path / "out", max_shard_size="40MB", tokenizer_from=minimind_dir
    )
    before, after = stored(minimind_dir), stored(tmp_path / "out")
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name])
    assert before.keys() - after.keys() <= {"lm_head.weight"}
    ours, theirs = (AutoTokenizer.from_pretrained(d) for d in (tmp_path / "out", minimind_dir))
    assert ours.chat_template == theirs.chat_template
    assert ours.encode("Which is better?") == theirs.encode("Which is better?")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == GenerationConfig.from_pretrained(minimind_dir).eos_token_id
    assert "25,829,888 parameters" in (tmp_path / "out" / "README.md").read_text()


def test_weights_can_be_read_in_another_dtype(tiny_checkpoint: Make) -> None:
    source = tiny_checkpoint("qwen2", "float32")
    _, wide = load_model(source)
    _, narrow = load_model(source, dtype="bfloat16")
    for (path, a), (_, b) in zip(flatten(wide), flatten(narrow), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype(ml_dtypes.bfloat16), b, err_msg=path)
    with pytest.raises(UserError, match="'int8' is not supported"):
        load_model(source, dtype="int8")


def test_mixed_dtypes_are_read_in_the_one_that_holds_them_all(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    def widen(values: dict[str, np.ndarray]) -> None:
        values["model.norm.weight"] = values["model.norm.weight"].astype(np.float32)

    mixed = rewrite(tiny_checkpoint("qwen2", "bfloat16"), tmp_path / "mixed", widen)
    _, params = load_model(mixed)
    assert {str(leaf.dtype) for _, leaf in flatten(params)} == {"float32"}


@pytest.mark.devices8
@pytest.mark.parametrize(("group_bytes", "read_bytes"), [(1, 1), (1 << 20, 1 << 20)])
def test_each_device_holds_its_part_however_the_tensors_are_cut_for_reading(
    tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, group_bytes: int, read_bytes: int
) -> None:
    monkeypatch.setattr(tensors_module, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr(tensors_module, "READ_BYTES", read_bytes)
    directory = tiny_checkpoint("llama")
    whole = dict(flatten(load_model(directory)[1]))
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
    axes = {"D": "fsdp", "V": "tensor", "N": "tensor", "K": "tensor", "F": "tensor"}
    config = ModelConfig.from_hf(load_hf_config(directory), source="")
    shardings = {}
    for tensor in tensors_of(config):
        letters = ("L" if tensor.stacked else "") + "".join(tensor.axes)
        spec = jax.sharding.PartitionSpec(*(axes.get(letter) for letter in letters))
        shardings[tensor.path] = jax.sharding.NamedSharding(mesh, spec)
    _, params = load_model(directory, shardings=nest(shardings))
    for path, leaf in flatten(params):
        assert leaf.sharding == shardings[path]
        np.testing.assert_array_equal(leaf, whole[path], err_msg=path)
    query = params["layers"]["attention"]["query"]["kernel"]
    assert {shard.data.shape for shard in query.addressable_shards} == {(3, 16, 2, 12)}


def test_missing_extra_and_misshapen_tensors_are_all_reported_together(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    def damage(values: dict[str, np.ndarray]) -> None:
        del values["model.layers.1.mlp.up_proj.weight"], values["lm_head.weight"]
        values["model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        values["model.norm.weight"] = np.zeros(7, np.float32)
        values["model.layers.0.input_layernorm.weight"] = np.zeros(32, np.int8)

    message = error_of(rewrite(tiny_checkpoint("llama"), tmp_path / "damaged", damage))
    assert "2 missing: " in message
    assert "model.layers.1.mlp.up_proj.weight" in message
    assert "lm_head.weight" in message
    assert "1 extra: model.layers.9.mlp.up_proj.weight" in message
    assert "1 misshapen: model.norm.weight [7] instead of [32]" in message
    assert "input_layernorm.weight (I8)" in message


def test_a_long_list_of_problems_is_cut_and_counted(tiny_checkpoint: Make, tmp_path: Path) -> None:
    directory = rewrite(tiny_checkpoint("llama"), tmp_path / "empty", lambda values: values.clear())
    assert " and 41 more" in (message := error_of(directory))
    assert len(message) < 1000


def test_a_second_copy_of_a_tied_head_and_stored_frequencies_do_no_harm(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    def add(values: dict[str, np.ndarray]) -> None:
        values["lm_head.weight"] = values["model.embed_tokens.weight"]
        values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(6, np.float32)

    directory = rewrite(tiny_checkpoint("llama, tied"), tmp_path / "more", add)
    assert "lm_head" not in load_model(directory)[1]


def test_damaged_files_are_named_with_a_fix(tiny_checkpoint: Make, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama")
    shards = sorted(file.name for file in source.glob("*.safetensors"))
    assert len(shards) > 2

    def copy(name: str) -> Path:
        return Path(shutil.copytree(source, tmp_path / name))

    truncated = copy("truncated") / shards[1]
    truncated.write_bytes(truncated.read_bytes()[:-5])
    assert f"{truncated} is truncated or corrupt" in error_of(truncated.parent)
    empty = copy("empty") / shards[0]
    empty.write_bytes(b"")
    assert f"{empty} is truncated or corrupt" in error_of(empty.parent)
    page = copy("web page") / shards[0]
    page.write_bytes(b"<!DOCTYPE html>" * 100)
    assert f"{page} is truncated or corrupt" in error_of(page.parent)
    absent = copy("absent")
    (absent / shards[1]).unlink()
    (absent / shards[2]).unlink()
    assert f"names {shards[1]}, {shards[2]}, which" in error_of(absent)
    index = copy("index") / INDEX
    index.write_text('{"weight_map": {')
    assert f"{index} is not valid JSON" in error_of(index.parent)
    index.write_text('{"weight_map": {"lm_head.weight": "../other.safetensors"}}')
    assert "names ../other.safetensors" in error_of(index.parent)
    index.write_text("{}")
    assert "has no weight_map" in error_of(index.parent)


def test_a_directory_without_safetensors_says_what_it_holds_instead(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    assert "does not exist" in error_of(tmp_path / "nowhere")
    assert "no config.json" in error_of(tmp_path)
    shutil.copyfile(tiny_checkpoint("llama") / "config.json", tmp_path / "config.json")
    assert "holds no weights" in error_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin only" in error_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in error_of(tmp_path)


def test_shards_are_cut_by_size_and_the_index_finds_each_tensor(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama"))
    save_huggingface(params, config, tmp_path / "out", max_shard_size="25KB")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert set(index["weight_map"].values()) == {file.name for file in files}
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, framework="numpy") as shard:
            assert name in shard.keys()  # noqa: SIM118
    sizes = [sum(value.nbytes for value in load_file(file).values()) for file in files]
    assert max(sizes) <= 25_000
    assert index["metadata"]["total_size"] == sum(sizes) == 4 * count_parameters(config)
    save_huggingface(params, config, tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").glob("*.safetensors*")] == [SINGLE]


def test_sizes_are_read_in_decimal_and_binary_units() -> None:
    for text, size in {"5GB": 5 * 10**9, "512MiB": 2**29, "1.5kb": 1500, "7 B": 7}.items():
        assert parse_size(text) == size
    for text in ("", "5", "big", "-1GB", "0MB", "5XB"):
        with pytest.raises(UserError, match="is not a size"):
            parse_size(text)


def test_a_failed_export_leaves_nothing_and_an_earlier_one_as_it_was(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama"))

    def disk_fills_up(size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"out cannot be written: No space left on device\."):
        save_huggingface(params, config, tmp_path / "out", on_write=disk_fills_up)
    assert list(tmp_path.iterdir()) == []
    save_huggingface(params, config, tmp_path / "out")
    before = (tmp_path / "out" / SINGLE).read_bytes()
    with pytest.raises(UserError, match="No space left"):
        save_huggingface(params, config, tmp_path / "out", dtype="bfloat16", on_write=disk_fills_up)
    assert (tmp_path / "out" / SINGLE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.huggingface import save_huggingface
config, params = load_model(sys.argv[1])
written = []
def die(size):
    written.append(size)
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
save_huggingface(params, config, sys.argv[2], on_write=die)
"""


def test_an_export_clears_up_after_a_killed_one(tiny_checkpoint: Make, tmp_path: Path) -> None:
    config, params = load_model(tiny_checkpoint("llama"))
    (tmp_path / ".out.incomplete").mkdir()
    (tmp_path / ".out.incomplete" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    save_huggingface(params, config, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == [SINGLE]


@pytest.mark.nightly
def test_a_killed_export_leaves_no_checkpoint(tiny_checkpoint: Make, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(tmp_path / "out")])
    assert killed.returncode == -9
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / ".out.incomplete"]


def test_only_an_earlier_export_is_replaced(tiny_checkpoint: Make, tmp_path: Path) -> None:
    config, params = load_model(tiny_checkpoint("llama"))
    out = tmp_path / "out"
    out.mkdir()
    save_huggingface(params, config, out, max_shard_size="25KB")
    save_huggingface(params, config, out)
    assert [file.name for file in out.glob("*.safetensors")] == [SINGLE]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"it holds notes\.txt"):
        save_huggingface(params, config, out)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    (out / MARKER).unlink()
    with pytest.raises(UserError, match="not written by an earlier run"):
        save_huggingface(params, config, out)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        save_huggingface(params, config, tmp_path / "file")


def test_a_tokenizer_that_is_not_there_is_missed_before_weights_are_written(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama"))
    with pytest.raises(UserError, match="holds no tokenizer"):
        save_huggingface(params, config, tmp_path / "out", tokenizer_from=tiny_checkpoint("llama"))
    assert list(tmp_path.iterdir()) == []


IMPORT = """
import sys
import jax.numpy as jnp
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.weight_map import flatten
def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])
jnp.zeros(8).block_until_ready()
before = peak()
_, params = load_model(sys.argv[1])
print(peak() - before - sum(leaf.nbytes for _, leaf in flatten(params)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_host_memory_during_import_stays_below_two_shards_and_a_constant(tmp_path: Path) -> None:
    # 248 MB in six shards of 45 MB. On CPU the model itself lies in the same memory.
    config = ModelConfig("llama", 8192, 1024, 2816, 4, 16, 4, 64, 2048)
    values = np.float32(0.5)
    params = {t.path: np.broadcast_to(values, t.shape(config)) for t in tensors_of(config)}
    save_huggingface(nest(params), config, tmp_path / "big", max_shard_size="46MB")
    files = list((tmp_path / "big").glob("*.safetensors"))
    assert len(files) > 5
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path / "big")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    constant = tensors_module.GROUP_BYTES
    assert int(done.stdout) < 2 * max(file.stat().st_size for file in files) + constant
