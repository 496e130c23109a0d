"""The notebooks as they are checked in, and executed from a clean kernel on little data."""

import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY
from tests.evaluation.fake_run import write_fake_run

FOLDER = REPOSITORY / "notebooks"
NAMES = ["judge_pairs.ipynb", "read_an_evaluation.ipynb", "train_small_judge.ipynb"]
INSTALLING = "importlib.util"
COMMANDS = "def rmr1(command)"
LITTLE = {"PAIRS": 600, "HELD_OUT": 6}
# What pytest and the tests of this project set, and a user's kernel does not have.
STRANGE = ("PYTEST_CURRENT_TEST", "XLA_FLAGS", "TPU_SKIP_MDS_QUERY")


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


def sources(name: str, kind: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == kind]


def test_these_are_the_notebooks() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestAsCheckedIn:
    def test_is_a_notebook_for_python(self, name: str) -> None:
        notebook = read(name)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"

    def test_has_no_outputs(self, name: str) -> None:
        for cell in json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None
            assert cell["metadata"] == {}

    def test_begins_with_its_title_and_the_badge(self, name: str) -> None:
        first = read(name).cells[0]
        assert first.cell_type == "markdown" and first.source.startswith("# ")
        assert "colab-badge.svg" in first.source

    def test_its_headings_are_in_order(self, name: str) -> None:
        text = "\n".join(sources(name, "markdown"))
        headings = re.findall(r"^(#+) (.*)$", text, re.MULTILINE)
        assert [level for level, _ in headings] == ["#"] + ["##"] * (len(headings) - 1)
        numbers = [int(title.partition(".")[0]) for _, title in headings[1:]]
        assert numbers == list(range(1, len(headings)))

    def test_says_what_happens_before_it_does(self, name: str) -> None:
        kinds = [cell.cell_type for cell in read(name).cells]
        assert "code code code code" not in " ".join(kinds)
        assert kinds[-1] == "markdown", "what one can do next"

    def test_names_no_machine(self, name: str) -> None:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.search(r"/(work|home|root|tmp|content)/|localhost", text)

    def test_installs_as_the_others_do(self, name: str) -> None:
        for mark in (INSTALLING, COMMANDS):
            cells = {cell for each in NAMES for cell in sources(each, "code") if mark in cell}
            assert len(cells) == 1, "the same in all of them"
        assert INSTALLING in sources(name, "code")[0]

    def test_other_notebooks_that_it_names_are_there(self, name: str) -> None:
        named = re.findall(r"\w+\.ipynb", "\n".join(sources(name, "markdown")))
        assert set(named) <= set(NAMES)


def test_ruff_has_nothing_to_say() -> None:
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--no-cache", str(FOLDER)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )
        assert done.returncode == 0, done.stdout


class TestInstalling:
    """The first cell, with another machine around it."""

    @staticmethod
    def run(
        monkeypatch: pytest.MonkeyPatch,
        *,
        chip: str = "cpu",
        source: str = "",
        there: bool = False,
        driver: str = "580.65.06",
        finds: str = "gpu",
    ) -> list[list[str]]:
        """Runs the cell on a machine where JAX finds a `gpu` or only a `cpu`; how it installed."""
        commands: list[list[str]] = []

        def run(command: list[str], **options: object) -> SimpleNamespace:
            commands.append(command)
            said = f"{driver}\n{driver}\n" if "nvidia-smi" in command else f"{finds}\n"
            return SimpleNamespace(returncode=0, stdout=said)

        nodes = [Path("/dev/vfio/0")] if chip == "tpu" else []
        smi = "nvidia-smi" if chip == "cuda" else None
        with monkeypatch.context() as machine:
            machine.setattr("importlib.util.find_spec", lambda name: there or None)
            machine.setattr("pathlib.Path.glob", lambda path, pattern: nodes)
            machine.setattr("shutil.which", lambda command: smi)
            machine.setattr("subprocess.run", run)
            machine.delenv("JAX_PLATFORMS", raising=False)
            [cell] = {sources(name, "code")[0] for name in NAMES}
            exec(cell.replace('SOURCE = ""', f"SOURCE = {source!r}"), {})
        return [command for command in commands if "pip" in command]

    def test_leaves_a_package_that_is_there_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.run(monkeypatch, chip="cuda", there=True) == []

    @pytest.mark.parametrize(("chip", "extra"), [("cpu", ""), ("cuda", "[cuda]"), ("tpu", "[tpu]")])
    def test_installs_what_the_chip_needs(
        self, chip: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        address = "git+https://example.org/rmr1_jax"
        [command] = self.run(monkeypatch, chip=chip, source=address)
        assert command[1:] == ["-m", "pip", "install", "--quiet", f"rmr1_jax{extra} @ {address}"]
        [command] = self.run(monkeypatch, chip=chip, source=str(tmp_path))
        assert command[-1] == f"{tmp_path}{extra}"

    def test_installs_the_cuda_that_an_old_driver_knows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(FOLDER)
        [command] = self.run(monkeypatch, chip="cuda", driver="550.54.15")
        assert command[-1] == f"{REPOSITORY}[cuda12]"
        extras = ConfigParser()
        extras.read(REPOSITORY / "setup.cfg")
        assert extras["options.extras_require"]["cuda12"].split() == ["jax[cuda12]"]

    @pytest.mark.parametrize("there", [False, True])
    def test_says_what_to_do_where_jax_does_not_find_the_gpu(
        self, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(FOLDER)
        with pytest.raises(RuntimeError, match=r"is 470\.82\.01\..*pip install 'jax\[cuda12\]'"):
            self.run(monkeypatch, chip="cuda", there=there, driver="470.82.01", finds="cpu")
        assert len(self.run(monkeypatch, chip="cpu", there=there, finds="cpu")) == (not there)

    def test_takes_the_checkout_that_it_is_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(FOLDER)
        [command] = self.run(monkeypatch, chip="tpu")
        assert command[-1] == f"{REPOSITORY}[tpu]"

    def test_asks_where_the_package_is(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RuntimeError, match="Say in SOURCE"):
            self.run(monkeypatch)


def test_an_example_that_was_interrupted_is_made_again() -> None:
    [cell] = [each for each in sources(NAMES[1], "code") if "if not RESULTS" in each]
    ran: list[str] = []

    def rmr1(command: str) -> None:
        ran.append(command)
        if len(ran) == 4:  # the second evaluation
            raise KeyboardInterrupt

    names = {"RESULTS": [], "rmr1": rmr1, "os": os, "PAIRS": 600, "STEPS": 36, "HELD_OUT": 6}
    with pytest.raises(KeyboardInterrupt):
        exec(cell, names)
    exec(cell, names)
    assert len(ran) == 8 and names["RESULTS"] == ["results/halfway", "results/trained"]


class Executed:
    """A notebook that ran to its end, and what it showed."""

    def __init__(self, name: str, folder: Path, **settings: object) -> None:
        self.notebook = read(name)
        environment = {key: value for key, value in os.environ.items() if key not in STRANGE}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
        environment |= {"IPYTHONDIR": str(folder / ".ipython")}
        environment |= {f"RMR1_{key}": str(value) for key, value in settings.items()}
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(self.notebook, timeout=900, resources=resources)
        client.execute(env=environment)

    def outputs(self, kind: str) -> list[str]:
        """All that was shown of a kind, such as text/html."""
        cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        shown = [output for cell in cells for output in cell.outputs]
        return [output.data[kind] for output in shown if kind in output.get("data", {})]

    @property
    def said(self) -> str:
        cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def write_pairs(items: Path, file: Path, count: int = 3) -> str:
    """The first pairs of an evaluation as a user would write them down; the first question."""
    known = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()[:count]]
    pairs = [
        {
            "question": item["conversation"][0]["content"],
            "response_a": item["chosen"],
            "response_b": item["rejected"],
            "label": "A",
        }
        for item in known
    ]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return str(pairs[0]["question"])


@pytest.mark.nightly
def test_a_small_judge_is_trained_and_then_judges(tmp_path: Path) -> None:
    training = Executed(
        "train_small_judge.ipynb",
        tmp_path,
        **LITTLE,
        SFT_STEPS=36,
        CHECK_EVERY=18,
        GRPO_STEPS=2,
        PROMPTS=4,
    )
    assert "rmr1_jax is installed.\n" in training.said
    assert "of 36 steps" in training.said, "progress is seen"
    assert len(training.outputs("image/png")) == 3, "curves of both stages, and one of all"
    before, after = training.outputs("text/html")
    assert "before: after supervised fine-tuning" in before and "with reinforcement" in after
    assert 'class="part eval"' in after and 'class="mark verdict"' in after
    assert "model.safetensors" in training.said
    for file in ("grpo_recipe.py", "stages.png", "small_judge/config.json"):
        assert (tmp_path / file).is_file()

    question = write_pairs(
        tmp_path / "results/sft/items/preferences.jsonl", tmp_path / "pairs.jsonl"
    )
    judging = Executed(
        "judge_pairs.ipynb", tmp_path, MODEL=tmp_path / "small_judge", PAIRS="pairs.jsonl"
    )
    assert "1 x cpu\n" in judging.said and f"The judge: {tmp_path / 'small_judge'}" in judging.said
    first, table, given, swapped = judging.outputs("text/html")
    assert 'class="part eval"' in first and question in first
    assert table.count('scope="row"') == 3 and "together" in table
    assert "as given" in given and "what was A is B" in swapped


@pytest.mark.nightly
def test_an_evaluation_is_made_and_read(tmp_path: Path) -> None:
    reading = Executed("read_an_evaluation.ipynb", tmp_path, **LITTLE, SFT_STEPS=36)
    assert "trained minus halfway" in reading.said
    assert len(reading.outputs("image/png")) == 3
    comparison, report = reading.outputs("text/html")[-2:]
    assert "halfway" in comparison and "srcdoc=" in report
    for folder in ("results/halfway", "results/trained", "comparison"):
        assert list((tmp_path / folder).glob("*.html"))


@pytest.mark.nightly
@pytest.mark.parametrize("benchmark", ["rewardbench", "rm_bench"])
def test_any_evaluation_can_be_read(tmp_path: Path, benchmark: str) -> None:
    from rmr1_jax.evaluation.report import write_report

    for seed, name in enumerate(("weak", "strong")):
        write_fake_run(tmp_path / name, seed=seed, skill=0.6 + 0.3 * seed, benchmarks=(benchmark,))
        write_report(tmp_path / name)
    reading = Executed(
        "read_an_evaluation.ipynb", tmp_path, RESULTS="weak strong", BENCHMARK=benchmark
    )
    assert "strong minus weak: +" in reading.said
    assert "$ python" not in reading.said, "nothing is judged again"
    assert len(reading.outputs("image/png")) == 3
