"""Every command of README.md and docs/ runs, in its smallest form.

Commands of the stages are typed as they stand, in a folder that holds what they name (conftest.py),
with options behind them that make them small. One of each kind runs: the same stage with the same
options. What needs a cloud, a GPU's compiler, several processes or much time is parsed and checked,
and names the test that runs the like of it.
"""

import ast
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config import STAGES, parse_config, take_option
from rmr1_jax.distributed.rendezvous import OPTIONS
from rmr1_jax.main import main, take_distributed
from tests.docs.commands import REPOSITORY, Command, commands
from tests.launch.conftest import Cloud, reads_only

COMMANDS = list(commands())

SMALLEST = {
    "judge": ["--max_new_tokens=4", "--max_num_seqs=8"],
    "evaluate": ["--max_new_tokens=4", "--max_num_seqs=8", "--limit=2"],
    "synthesize": [
        *("--teacher1.kind=program", "--teacher1.model=", "--teacher2.kind=program"),
        *("--teacher2.model=", "--limit=2"),
    ],
    "sft": [
        *("--max_steps=1", "--batch_size=16", "--data.max_length=128", "--data.pack_length=128"),
        *("--data.held_out=0", "--validation.every=0", "--checkpoint.every=1"),
    ],
    "grpo": [
        *("--max_steps=1", "--batch_size=4", "--mini_batch=4", "--data.max_prompt=64"),
        *("--rollout.samples=2", "--rollout.max_response=8", "--rollout.max_num_seqs=8"),
        *("--pack_length=128", "--validation.every=0", "--checkpoint.every=1"),
    ],
    "convert": [],
    "prepare": [],
    "plan": ["--model=MODEL_DIR", "--topology=v5e:1x1", "--mesh=fsdp=-1"],
}
WRITES = {"sft": "workdir", "grpo": "workdir"}  # else: output
# Benchmarks that come from the hub are there as files.
FILES = {"rewardbench": "filtered.parquet", "rm_bench": "total_dataset.json", "rmb": "RMB_dataset"}

SEVERAL = (
    "tests/stages/test_sft_stage_processes.py::"
    "test_learn_what_one_process_learns_and_write_the_same_files"
)
GGUF = "tests/stages/test_convert_stage.py::test_gguf_to_hugging_face_and_to_orbax"
BENCHMARK = "tests/benchmarks/test_decode.py::test_the_smallest_run_counts_every_token"
# What is not run here -> the test that does, or its like. The first that fits counts.
ELSEWHERE = {
    # a model of 135M parameters, which takes most of a minute
    "convert *.gguf": GGUF,
    # by another compiler
    "plan *=h200:8": "tests/stages/test_plan_stage_gpu.py::test_every_program_of_a_recipe",
    "make demo": "tests/test_demo.py::test_shows_every_stage_and_goes_on",
    "make docs": "tests/docs/test_build.py::test_builds_without_a_warning",
    "benchmarks.decode": BENCHMARK,
    "benchmarks.sft_step": "tests/benchmarks/test_sft_step.py::"
    "test_both_take_the_same_steps_and_a_ratio_is_written",
    "benchmarks.grpo_step": "tests/benchmarks/test_grpo_step.py::"
    "test_our_engine_takes_steps_of_the_forced_lengths",
    "benchmarks.judging": "tests/benchmarks/test_judging.py::"
    "test_both_engines_write_the_same_traces",
    "benchmarks.padding": "tests/benchmarks/test_workloads.py::"
    "test_packed_rows_hold_little_padding",
}
# Programs of clouds and clusters: a command of theirs is only looked through for files of ours.
CLOUD = {"gcloud", "kubectl", "gsutil", "sbatch", "squeue", "scancel", "docker", "xpk"}


def elsewhere(command: Command) -> str | None:
    if command.is_stage and command.options & {*OPTIONS}:
        return SEVERAL
    return next((test for kind, test in ELSEWHERE.items() if matches(command, kind)), None)


def matches(command: Command, kind: str) -> bool:
    name, _, ending = kind.partition(" *")
    if command.is_stage:
        return command.stage == name and any(word.endswith(ending) for word in command.words)
    return " ".join(command.words).removeprefix("python -m ").startswith(name)


def kinds() -> list[Command]:
    """The stages' commands that run here, one of each kind."""
    found: dict[Any, Command] = {}
    for command in COMMANDS:
        if command.is_stage and elsewhere(command) is None and "help" not in command.options:
            found.setdefault((command.stage, command.options), command)
    return list(found.values())


STAGE_COMMANDS = [command for command in COMMANDS if command.is_stage]
OTHERS = [command for command in COMMANDS if not command.is_stage]


def test_they_are_found() -> None:
    assert len(STAGE_COMMANDS) > 15
    assert {command.stage for command in STAGE_COMMANDS} >= {*SMALLEST, "prepare"}
    pages = {command.where.partition(":")[0] for command in COMMANDS}
    assert pages >= {"README.md", "docs/evaluation.md", "docs/memory.md", "docs/gpu.md"}


@pytest.mark.parametrize("command", STAGE_COMMANDS, ids=str)
def test_a_stage_s_command_parses_and_passes_the_checks(command: Command, places: Path) -> None:
    if "help" in command.options:
        assert command.stage in ("", *STAGES)
        return
    assert command.stage in STAGES, command
    config = parse_config(command.stage, take_distributed(command.arguments)[1])
    if not any(re.search("=(/|gs:)", word) for word in command.words):
        config.check()  # elsewhere lies what this machine does not have


@pytest.mark.nightly
@pytest.mark.parametrize("command", kinds(), ids=str)
def test_one_of_each_kind_runs(command: Command, workplace: Path, tmp_path: Path) -> None:
    assert command.stage in SMALLEST, f"{command}: say how small it can be, or what test runs it"
    assert main([f"--stage={command.stage}", *command.arguments, *smallest(command, tmp_path)]) == 0


def smallest(command: Command, folder: Path) -> list[str]:
    """The options to put behind a command."""
    if command.stage == "evaluate" and "model" not in command.options:
        return [] if "score_only" in command.options else [f"--output={folder / 'new'}"]
    more = list(SMALLEST[command.stage])
    if command.stage == "plan":
        pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
        more += SMALLEST["sft" if "=sft_" in str(command) else "grpo"]
    if command.stage == "evaluate" and "preferences" not in command.options:
        asked = [word for word in command.words if word.startswith("--benchmarks=")]
        names = asked[-1].partition("=")[2].split(",") if asked else [*FILES]
        more += [f"--{name}={FILES[name]}" for name in names]
    writes = WRITES.get(command.stage, "output")
    if writes in command.options or command.stage in WRITES:
        more.append(f"--{writes}={folder / 'new'}")
    return more


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_any_other_command_runs_or_is_known(
    command: Command, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)  # recipes are named from here
    match command.words:
        case ("make", "test"):
            pass  # runs this
        case ("make", target):
            known = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M)
            assert target in known and elsewhere(command)
        case ("python3.12", "-m", "venv", _) | ("source", ".venv/bin/activate"):
            pass
        case ("pip", "install", *arguments):
            check_install(arguments)
        case ("python", "-c", code):
            exec(compile(code, command.where, "exec"), {})
        case ("python", "-m", module, *_) if module.startswith("benchmarks."):
            assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file() and elsewhere(command)
        case (script, *_) if script.removeprefix("./").startswith("launch/"):
            dry_run(command, cloud)
        case ("cd" | "export" | "git", *_):
            pass
        case (program, *arguments) if program in CLOUD:
            own = [word for word in arguments if re.match(r"(launch|configs|docs)/", word)]
            assert [word for word in own if not (REPOSITORY / word).exists()] == []
        case _:
            pytest.fail(f"{command}: no rule covers it")


def check_install(arguments: list[str]) -> None:
    """Constraints and extras that are named exist; the rest is a download."""
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "--constraint":
            assert (REPOSITORY / word).is_file()
        if found := re.fullmatch(r"\.\[(.+)\]", word):
            assert {*found[1].split(",")} <= {*setup["options.extras_require"]}


def dry_run(command: Command, cloud: Cloud) -> None:
    """A script says what it would do, with fakes of the clouds' tools; it changes nothing."""
    script, *words = command.words
    end = words.index("--") if "--" in words else len(words)
    result = cloud.run(script.partition("launch/")[2], *words[:end], "--dry-run", *words[end:])
    assert result.status == 0, f"{command}\n{result.out}\n{result.err}"
    assert reads_only(cloud.calls())
    stage, arguments = take_option(words[end + 1 :], "stage")
    if stage is not None:
        parse_config(stage, take_distributed(arguments)[1])


@pytest.mark.parametrize("test", sorted({SEVERAL, *ELSEWHERE.values()}))
def test_a_test_that_runs_a_command_elsewhere_exists(test: str) -> None:
    path, _, name = test.partition("::")
    module = ast.parse((REPOSITORY / path).read_text())
    assert name in {each.name for each in module.body if isinstance(each, ast.FunctionDef)}


def test_everything_that_is_run_elsewhere_is_still_a_command() -> None:
    used = {elsewhere(command) for command in COMMANDS}
    assert {*ELSEWHERE.values()} - used <= {
        "tests/docs/test_build.py::test_builds_without_a_warning"
    }
