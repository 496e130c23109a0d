"""From command line and recipe to a configuration."""

from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from rmr1_jax.config import (
    STAGES,
    ConvertConfig,
    JudgeConfig,
    load_recipe,
    option_types,
    parse_config,
    take_option,
)
from rmr1_jax.errors import UserError


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.py"
    path.write_text(f"from rmr1_jax.config import ConvertConfig, JudgeConfig\n{text}\n")
    return str(path)


def test_without_arguments_a_stage_has_its_defaults() -> None:
    assert parse_config("judge", []) == JudgeConfig()


def test_overrides_are_typed() -> None:
    config = parse_config(
        "judge", ["--temperature=0.7", "--max_num_seqs", "3", "--swap", "--question=--a = b"]
    )
    assert config == JudgeConfig(temperature=0.7, max_num_seqs=3, swap=True, question="--a = b")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--swap", True), ("--no_swap", False), ("--swap=true", True), ("--swap=False", False)],
)
def test_a_switch_is_written_either_way(flag: str, value: bool) -> None:
    assert parse_config("judge", [flag]).swap is value


def test_a_value_of_the_wrong_type_names_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse_config("judge", ["--temperature=hot"])
    assert exit.value.code == 2
    assert "--temperature" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--modle=x", "did you mean --model?"),
        ("--max-tokens=5", "did you mean --max_new_tokens?"),
        ("--swap=maybe", "--swap=maybe must be true or false"),
        ("--zzz", "--zzz is no option of this stage"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        parse_config("judge", [argument])


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("judge", "convert", "demo"):
        with pytest.raises(SystemExit) as exit:
            parse_config(stage, ["--help"])
        assert exit.value.code == 0
    text = capsys.readouterr().out
    for option in ("--model", "--max_new_tokens", "--no_swap", "--max_shard_size", "--config"):
        assert option in text
    assert "0 takes the likeliest token" in text


def test_help_breaks_no_phrase(capsys: pytest.CaptureFixture[str]) -> None:
    """The lines of a docstring are joined; only the width of the terminal breaks them."""
    for stage in STAGES:
        with pytest.raises(SystemExit):
            parse_config(stage, ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for kind in STAGES.values():
        options = dict(option_types(kind))
        for field in docstring_parser.parse_from_object(kind).params:
            if field.arg_name in options:
                assert " ".join((field.description or "").split()) in text


class TestRecipe:
    def test_gives_the_defaults_that_options_override(self, tmp_path: Path) -> None:
        path = recipe(tmp_path, "config = JudgeConfig(model='m', votes=3, swap=True)")
        config = parse_config("judge", [f"--config={path}", "--votes=5", "--no_swap"])
        assert config == JudgeConfig(model="m", votes=5)

    def test_may_be_a_function(self, tmp_path: Path) -> None:
        path = recipe(tmp_path, "def get_config():\n    return ConvertConfig(to='huggingface')")
        assert load_recipe(path, "convert") == ConvertConfig(to="huggingface")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("config = JudgeConfig(modle='m')", "line 2.*did you mean model"),
            ("x = 1\nconfig = JudgeConfig(", "line 3.*SyntaxError"),
            ("config = nothing", "line 2.*NameError"),
            ("config = ConvertConfig()", "needs `config = JudgeConfig.*found ConvertConfig"),
            ("", "found NoneType"),
        ],
    )
    def test_with_a_mistake_names_file_and_line(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        path = recipe(tmp_path, text)
        with pytest.raises(UserError, match=message) as error:
            load_recipe(path, "judge")
        assert path in str(error.value)

    def test_that_is_missing_is_named(self) -> None:
        with pytest.raises(UserError, match=r"nowhere\.py: there is no such file"):
            load_recipe("nowhere.py", "judge")


def test_an_option_is_taken_in_either_form_and_the_last_one_counts() -> None:
    assert take_option(["--a=1", "--b=2", "--a", "3"], "a") == ("3", ["--b=2"])
    assert take_option(["--ab=1"], "a") == (None, ["--ab=1"])
    with pytest.raises(UserError, match="--a needs a value"):
        take_option(["--a", "--b"], "a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "needs --model=PATH"),
        ({"model": "no/such/model"}, "no such directory or file"),
        ({"input": ""}, "nothing to judge"),
        ({"output": ""}, "--input needs --output"),
        ({"output": "in.jsonl"}, "are the same file"),
        ({"question": "Q"}, "leave out --input and --output"),
        ({"max_new_tokens": 0}, "--max_new_tokens=0 must be at least 1"),
        ({"temperature": -1.0}, "--temperature=-1.0 must be at least 0"),
        ({"temperature": float("nan")}, "--temperature=nan must be at least 0"),
        ({"top_p": 0.0}, "--top_p=0.0 must be above 0 and at most 1"),
        ({"top_k": -1}, "--top_k=-1 must be at least 0"),
        ({"min_p": 1.5}, "--min_p=1.5 must be from 0 to 1"),
        ({"votes": 0}, "--votes=0 must be at least 1"),
        ({"max_num_seqs": 0}, "--max_num_seqs=0 must be at least 1"),
        ({"max_context": 0}, "--max_context=0 must be at least 1"),
        ({"dtype": "int3"}, "--dtype=int3 is unknown"),
    ],
)
def test_a_judge_configuration_that_cannot_work_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good: dict[str, Any] = {"model": str(tmp_path), "input": "in.jsonl", "output": "out.jsonl"}
    JudgeConfig(**good).check()
    with pytest.raises(UserError, match=message):
        JudgeConfig(**(good | fields)).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": ""}, "needs --output=PATH"),
        ({"to": "gguf"}, "--to=gguf is unknown"),
        ({"dtype": "int8"}, "--dtype=int8 is unknown"),
    ],
)
def test_a_convert_configuration_that_cannot_work_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    good: dict[str, Any] = {"input": "in", "output": "out"}
    ConvertConfig(**good).check()
    with pytest.raises(UserError, match=message):
        ConvertConfig(**(good | fields)).check()


class TestSections:
    def test_are_named_with_a_dot(self) -> None:
        config = parse_config("sft", ["--optimizer.learning_rate=0.1", "--data.train=x"])
        assert (config.optimizer.learning_rate, config.data.train) == (0.1, "x")

    def test_have_switches_too(self) -> None:
        config = parse_config("sft", ["--data.loss_on_header=false"])
        assert not config.data.loss_on_header
        assert not parse_config("sft", ["--data.no_loss_on_header"]).data.loss_on_header

    def test_are_suggested_for_a_misspelled_option(self) -> None:
        with pytest.raises(UserError, match=r"did you mean --optimizer\.learning_rate"):
            parse_config("sft", ["--optimizer.learnig_rate=3"])
