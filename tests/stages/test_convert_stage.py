"""`--stage=convert`: every format into the others, and bad input into one clear line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmr1_jax.config import ConvertConfig
from rmr1_jax.errors import UserError
from rmr1_jax.models.checkpoint import load_model, load_tokenizer, recognise
from rmr1_jax.models.weight_map import flatten
from rmr1_jax.stages.convert_stage import run

Make = Callable[..., Path]


def convert(source: Path, output: Path, to: Any, **options: Any) -> None:
    assert run(ConvertConfig(input=str(source), output=str(output), to=to, **options)) == 0


def test_hugging_face_to_orbax_to_hugging_face(
    minimind_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(minimind_dir, tmp_path / "orbax", "orbax")
    assert recognise(tmp_path / "orbax")[0] == "orbax"
    assert capsys.readouterr().out == (
        f"{minimind_dir} (huggingface) -> {tmp_path / 'orbax'} (orbax): 74 tensors, "
        "25,829,888 parameters, 103.3 MB of float32\n"
    )
    convert(tmp_path / "orbax", tmp_path / "hf", "huggingface", max_shard_size="40MB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) == 3
    theirs = AutoModelForCausalLM.from_pretrained(minimind_dir).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    before, after = (AutoTokenizer.from_pretrained(d) for d in (minimind_dir, tmp_path / "hf"))
    assert before.chat_template == after.chat_template


@pytest.mark.slow
def test_gguf_to_hugging_face_and_to_orbax(smollm_gguf: Path, tmp_path: Path) -> None:
    convert(smollm_gguf, tmp_path / "hf", "huggingface", dtype="bfloat16")
    convert(smollm_gguf, tmp_path / "orbax", "orbax", dtype="bfloat16")
    (_, through_hf), (_, through_orbax) = (load_model(tmp_path / d) for d in ("hf", "orbax"))
    for (path, a), (_, b) in zip(flatten(through_hf), flatten(through_orbax), strict=True):
        assert str(a.dtype) == "bfloat16"
        np.testing.assert_array_equal(a, b, err_msg=path)
    messages = [{"role": "user", "content": "Which is better?"}]
    prompts = [
        load_tokenizer(place)[0].apply_chat_template(messages, tokenize=False)
        for place in (smollm_gguf, tmp_path / "hf", tmp_path / "orbax")
    ]
    assert prompts[0] == prompts[1] == prompts[2]


def test_a_model_without_tokenizer_is_converted_and_the_lack_is_told(
    tiny_checkpoint: Make,
    minimind_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    convert(tiny_checkpoint("qwen2"), tmp_path / "without", "orbax")
    assert "--tokenizer=DIRECTORY" in capsys.readouterr().err
    convert(tiny_checkpoint("qwen2"), tmp_path / "with", "orbax", tokenizer=str(minimind_dir))
    assert capsys.readouterr().err == ""
    assert (tmp_path / "with" / "tokenizer.json").is_file()


def test_what_cannot_work_is_refused_before_anything_is_written(
    tiny_checkpoint: Make, tmp_path: Path
) -> None:
    source = tiny_checkpoint("qwen2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")

    def refused(message: str, source: Path, output: Path, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            convert(source, output, options.pop("to", "huggingface"), **options)

    refused("is the input", source, source)
    refused("does not exist", tmp_path / "nowhere", tmp_path / "out")
    refused("no config.json", tmp_path, tmp_path / "out")
    refused(r"holds mine\.txt", source, tmp_path / "full")
    refused("is not a size", source, tmp_path / "out", max_shard_size="big")
    refused("holds no tokenizer", source, tmp_path / "out", tokenizer=str(tmp_path))
    refused("cannot be written", source, Path("/proc/out"))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


# A limit on the size of files stands in for a full disk.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
from rmr1_jax.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("to", ["orbax", "huggingface"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    minimind_dir: Path, tmp_path: Path, to: str
) -> None:
    options = [f"--input={minimind_dir}", f"--output={tmp_path / 'out'}", f"--to={to}"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "--stage=convert", *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'out'} cannot be written: File too large.")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
