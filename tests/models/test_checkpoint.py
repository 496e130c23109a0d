"""Checkpoints of every format are recognised and loaded; ours explain themselves."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import (
    fingerprint,
    load_config,
    load_model,
    load_tokenizer,
    prompt_of,
    recognise,
    save_weights,
)
from rmr1_jax.models.huggingface import SINGLE, save_huggingface
from rmr1_jax.models.model_config import PROMPT_KEY, load_hf_config
from rmr1_jax.models.weight_map import flatten, nest

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", "float32"), ("qwen2", "float16"), ("qwen3", "bfloat16")]
)
def test_hugging_face_to_orbax_and_back_keeps_every_bit(
    tiny_checkpoint: Make, tmp_path: Path, family: str, dtype: str
) -> None:
    config, params = load_model(tiny_checkpoint(family, dtype))
    save_weights(tmp_path / "orbax", params, config)
    save_huggingface(params, config, tmp_path / "direct")
    read_config, read = load_model(tmp_path / "orbax")
    assert read_config == config
    save_huggingface(read, read_config, tmp_path / "through")
    before, after = ((tmp_path / name / SINGLE).read_bytes() for name in ("direct", "through"))
    assert before == after


@pytest.mark.devices8
def test_a_checkpoint_is_read_onto_other_devices_in_another_dtype(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama"))
    save_weights(tmp_path / "orbax", params, config)
    mesh = jax.make_mesh((8,), ("fsdp",))
    shardings = {
        path: jax.NamedSharding(mesh, jax.P(*["fsdp" if n == 32 else None for n in leaf.shape]))
        for path, leaf in flatten(params)
    }
    _, read = load_model(tmp_path / "orbax", dtype="bfloat16", shardings=nest(shardings))
    for (path, ours), (_, theirs) in zip(flatten(read), flatten(params), strict=True):
        assert ours.sharding == shardings[path]
        np.testing.assert_array_equal(ours, theirs.astype("bfloat16"), err_msg=path)


def test_a_checkpoint_explains_itself(
    tiny_checkpoint: Make, minimind_dir: Path, tmp_path: Path
) -> None:
    config, params = load_model(tiny_checkpoint("llama"))
    out = tmp_path / "orbax"
    save_weights(out, params, config, tokenizer_from=minimind_dir)
    assert recognise(out) == ("orbax", out)
    assert load_config(out) == config
    ours, stop = load_tokenizer(out)
    theirs, _ = load_tokenizer(minimind_dir)
    assert ours.chat_template == theirs.chat_template
    assert stop == (2,)
    save_weights(out, params, config)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(out)


def test_only_an_earlier_checkpoint_is_replaced(tiny_checkpoint: Make, tmp_path: Path) -> None:
    config, params = load_model(tiny_checkpoint("llama"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds thesis\.tex"):
        save_weights(tmp_path / "other", params, config)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_damaged_weights_are_one_clear_line(
    tiny_checkpoint: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, params = load_model(tiny_checkpoint("llama"))

    def error_after(damage: Callable[[Path], None]) -> str:
        save_weights(tmp_path / "orbax", params, config)
        damage(tmp_path / "orbax")
        with pytest.raises(UserError) as caught:
            load_model(tmp_path / "orbax")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def truncate(directory: Path) -> None:
        largest = max(directory.glob("weights/**/d/*"), key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:5000])

    def fewer_layers(directory: Path) -> None:
        described = load_hf_config(directory) | {"num_hidden_layers": 2, "attention_bias": False}
        (directory / "config.json").write_text(json.dumps(described))

    assert "damaged or incomplete" in error_after(truncate)
    assert "holds no weights" in error_after(lambda d: shutil.rmtree(d / "weights"))
    assert "no config.json" in error_after(lambda d: (d / "config.json").unlink())
    message = error_after(fewer_layers)
    assert "extra: layers/attention/" in message
    assert "layers/mlp/up/kernel [3, 32, 48] instead of [2, 32, 48]" in message
    assert "Traceback" not in capfd.readouterr().err


def test_another_checkpoint_in_the_same_place_has_another_fingerprint(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("llama"), run / "model")
    for step in (100, 200):
        weights = run / "checkpoints" / str(step) / "weights"
        weights.mkdir(parents=True)
        (weights / "data").write_bytes(b"%d" % step * 100_000)
    latest = fingerprint(run)
    assert latest == fingerprint(run / "checkpoints" / "200")
    assert latest != fingerprint(run / "checkpoints" / "100")
    weights = run / "checkpoints" / "200" / "weights" / "data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"1")  # of the same size
    assert fingerprint(run) != latest


def test_the_format_is_recognised(tiny_checkpoint: Make, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama")
    assert recognise(source) == ("huggingface", source)
    (tmp_path / "a.gguf").write_bytes(b"")
    assert recognise(tmp_path / "a.gguf") == ("gguf", tmp_path / "a.gguf")
    assert recognise(tmp_path) == ("gguf", tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    for path, words in {
        tmp_path: r"several GGUF files \(a\.gguf, b\.gguf\)",
        tmp_path / "nowhere": "does not exist",
        source / "config.json": "is no checkpoint",
    }.items():
        with pytest.raises(UserError, match=words):
            recognise(path)


def test_stop_tokens_come_from_the_generation_config_first(
    minimind_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(minimind_dir, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    file.write_text('{"eos_token_id": [2, 0]}')
    assert load_tokenizer(tmp_path)[1] == (2, 0)
    file.unlink()
    assert load_tokenizer(tmp_path)[1] == (2,)


def test_the_prompt_of_a_judge_is_kept(tiny_checkpoint: Make, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama")
    assert prompt_of(source) is None
    shutil.copytree(source, tmp_path / "judge")
    described = load_hf_config(source) | {PROMPT_KEY: "reasoning"}
    (tmp_path / "judge" / "config.json").write_text(json.dumps(described))
    config, params = load_model(tmp_path / "judge")
    save_weights(tmp_path / "orbax", params, config)
    assert prompt_of(tmp_path / "orbax") == "reasoning"


def test_a_damaged_tokenizer_is_one_clear_line(minimind_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(minimind_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_gguf_file_brings_its_tokenizer(smollm_gguf: Path) -> None:
    tokenizer, stop = load_tokenizer(smollm_gguf)
    assert stop == (tokenizer.eos_token_id,) == (2,)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert str(prompt).startswith("<|im_start|>system")


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
from rmr1_jax.models.checkpoint import load_model, load_tokenizer, save_weights
config, params = load_model(sys.argv[1])
save_weights(sys.argv[2], params, config, tokenizer_from=sys.argv[1])
load_model(sys.argv[2])
load_tokenizer(sys.argv[2])[0].apply_chat_template([{"role": "user", "content": "Hi"}])
"""


def test_nothing_needs_torch_and_nothing_chatters(minimind_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(minimind_dir), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
