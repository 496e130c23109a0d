"""The command line itself: which stage, what an error looks like, what is set up before jax."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rmr1_jax
from rmr1_jax import main as command
from rmr1_jax.errors import UserError
from rmr1_jax.main import keep_compiled_programs, main


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the judge stage raise an exception, and leaves the process alone otherwise."""

    def fail(error: BaseException) -> None:
        def run(config: object) -> int:
            raise error

        monkeypatch.setattr(command, "quiet_libraries", lambda: None)
        monkeypatch.setattr(command, "keep_compiled_programs", lambda: None)
        monkeypatch.setattr(command.pipeline, "run", run)

    return fail


def test_help_lists_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    out = capsys.readouterr().out
    for stage in ("prepare", "synthesize", "sft", "judge", "convert", "demo", "recipes"):
        assert out.count(f"\n  {stage} ") == 2


def test_a_stage_is_named_by_its_word_or_by_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["judge"], ["--stage=judge"], ["--stage", "judge"]):
        assert main(words) == 2
        assert "--stage=judge needs --model=PATH" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rmr1_jax {rmr1_jax.__version__}\n"


def test_recipes_are_listed_by_the_names_that_config_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"sft_rm_r1:qwen-7b", "grpo_rm_r1:deepseek-32b", "prepare_rm_r1"} <= {*names}


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["sft", "--lr=1"], "--optimizer.learning_rate"),
        (["convert", "--input=a", "--output=b", "--to=hf"], "huggingface"),
        (["convert", "--input=a", "--output=b", "--to", "hf"], "huggingface"),
        (["plan", "--lr=1"], "--optimizer.learning_rate"),
        (["recipe"], "recipes"),
        (["evaluate", "--model=/", "--output=b", "--benchmarks=reward_bench"], "rewardbench"),
        (["grpo", "--config=grpo_rmr1:qwen-7b"], "grpo_rm_r1"),
        (["grpo", "--config=grpo_rm_r1:qwen7b"], "qwen-7b"),
    ],
)
def test_a_near_miss_is_guessed(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"did you mean {meant}?" in error and error.count("\n") == 1


def test_a_stage_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["jugde"], ["--stage=jugde"]):
        assert main(words) == 2
        assert "jugde is not a stage; did you mean judge?" in capsys.readouterr().err
    assert main(["--model=x"]) == 2
    assert "name a stage first: rmr1 {prepare," in capsys.readouterr().err


def test_judging_without_a_model_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    environment = dict(os.environ)
    try:
        assert main(["--stage=judge"]) == 2
    finally:
        os.environ.clear()
        os.environ.update(environment)
    error = capsys.readouterr().err
    assert error.startswith("error: --stage=judge needs --model=PATH") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("mend this"), 2, "error: mend this"),
        (
            OSError(errno.ENOSPC, "No space left on device", "v.jsonl"),
            2,
            "error: v.jsonl: No space left on device; free some space and run the same command",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "error: x: Permission denied"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (KeyboardInterrupt("3 of 5 done"), 130, "error: interrupted; 3 of 5 done"),
    ],
)
def test_an_expected_error_is_one_line_without_traceback(
    fail_with: Callable[[BaseException], None],
    error: BaseException,
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(error)
    assert main(["--stage=judge"]) == status
    text = capsys.readouterr().err
    assert message in text and text.count("\n") == 1
    assert main(["--stage=judge", "--debug"]) == status
    text = capsys.readouterr().err
    assert message in text and "Traceback" in text


def test_a_mistake_of_ours_keeps_its_traceback(fail_with: Callable[[BaseException], None]) -> None:
    fail_with(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["--stage=judge"])


def test_help_and_checks_do_not_import_jax() -> None:
    code = (
        "import sys, rmr1_jax, rmr1_jax.main, rmr1_jax.stages.judge_stage as judge\n"
        "assert rmr1_jax.main.main(['--stage=judge']) == 2\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("options", ["--help", "--stage=judge --help"])
def test_output_that_nobody_reads_any_more_is_no_error(options: str) -> None:
    line = f"{sys.executable} -m rmr1_jax.main {options} | true"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=buffered)
    assert finished.stderr == ""


class TestCache:
    @pytest.fixture(autouse=True)
    def environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})

    def test_is_in_the_home_directory(self, tmp_path: Path) -> None:
        keep_compiled_programs()
        path = Path("~/.cache/rmr1_jax/xla").expanduser()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(path)

    def test_is_moved_by_the_environment(self, tmp_path: Path) -> None:
        os.environ["RMR1_JAX_CACHE"] = str(tmp_path / "a" / "b")
        keep_compiled_programs()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()

    def test_is_off_when_set_to_nothing_and_leaves_the_choice_of_jax_alone(self) -> None:
        os.environ["RMR1_JAX_CACHE"] = ""
        keep_compiled_programs()
        assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
        os.environ.update(RMR1_JAX_CACHE="elsewhere", JAX_COMPILATION_CACHE_DIR="mine")
        keep_compiled_programs()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"

    def test_that_cannot_be_made_is_said_and_done_without(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        os.environ["RMR1_JAX_CACHE"] = str(tmp_path / "file" / "cache")
        keep_compiled_programs()
        assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
        assert "set RMR1_JAX_CACHE to another directory" in capsys.readouterr().err


def test_the_package_knows_its_version_and_no_other_names() -> None:
    assert rmr1_jax.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="Jugde"):
        _ = rmr1_jax.Jugde
