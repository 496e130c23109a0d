"""`--stage=evaluate` around a judge without a model: what it writes, how it goes on, what it
refuses."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config.evaluate_config import BENCHMARKS as NAMES
from rmr1_jax.evaluation.benchmarks import BENCHMARKS
from rmr1_jax.main import main
from tests.evaluation.fake_run import LOGGED
from tests.stages.conftest import FakeJudge

SUBSETS = ("llmbar-natural", "hep-python", "math-prm")
ROTATIONS = 9


def rewardbench_row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "prompt": f"Question {number}?",
        "chosen": f"yes {number}",
        "chosen_model": "x",
        "rejected": f"no {number}",
        "rejected_model": "y",
        "subset": SUBSETS[number % len(SUBSETS)],
        "id": number,
        **fields,
    }


def rm_bench_row(number: int) -> dict[str, Any]:
    return {
        "id": f"chat/{number}",
        "prompt": f"Style {number}?",
        "chosen": [f"yes {number} {style}" for style in range(3)],
        "rejected": [f"no {number} {style}" for style in range(3)],
        "domain": "chat",
    }


@dataclass
class EvaluateStage:
    """`--stage=evaluate` into one directory, as the command line runs it."""

    folder: Path
    judge: FakeJudge

    def __post_init__(self) -> None:
        self.model, self.output = self.folder / "model", self.folder / "out"
        self.rewardbench = self.folder / "rewardbench.jsonl"
        self.rm_bench = self.folder / "rm_bench.json"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        self.write([rewardbench_row(number) for number in range(9)])
        self.rm_bench.write_text(json.dumps([rm_bench_row(number) for number in range(3)]))

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rewardbench.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def run(self, *options: str, benchmarks: str = "rewardbench") -> int:
        files = [f"--{name}={getattr(self, name)}" for name in benchmarks.split(",")]
        return main(
            [
                "--stage=evaluate",
                f"--model={self.model}",
                f"--benchmarks={benchmarks}",
                *files,
                f"--output={self.output}",
                *options,
            ]
        )

    def records(self, benchmark: str = "rewardbench") -> list[dict[str, Any]]:
        file = self.output / "records" / f"{benchmark}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    def scores(self) -> dict[str, Any]:
        scores: dict[str, Any] = json.loads((self.output / "scores.json").read_text())
        return scores


@pytest.fixture
def evaluation(tmp_path: Path, fake_judge: FakeJudge, alone: None) -> EvaluateStage:
    return EvaluateStage(tmp_path, fake_judge)


def test_every_benchmark_can_be_asked_for() -> None:
    assert tuple(BENCHMARKS) == NAMES


class TestARun:
    def test_records_every_judgement_in_the_order_of_the_data(
        self, evaluation: EvaluateStage
    ) -> None:
        assert evaluation.run(benchmarks="rewardbench,rm_bench") == 0
        records = evaluation.records()
        assert [record["id"] for record in records] == [str(number) for number in range(9)]
        assert [record["index"] for record in evaluation.records("rm_bench")] == list(
            range(3 * ROTATIONS)
        )
        for record in records:
            right = record["verdict"] == record["chosen_position"]
            assert record["correct"] == int(right) and record["seconds"] >= 0

    def test_places_responses_as_published(self, evaluation: EvaluateStage) -> None:
        evaluation.run()
        placed = [record["chosen_position"] for record in evaluation.records()]
        assert placed == list("BBBBABABB")  # the stream's T, T, T, T, F, T, F, T, T: true is B

    def test_scores_what_it_recorded_and_says_what_is_missing(
        self, evaluation: EvaluateStage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluation.run()
        scores = evaluation.scores()["rewardbench"]
        right = sum(record["correct"] for record in evaluation.records())
        assert scores["micro"]["value"] == pytest.approx(right / 9)
        assert scores["overall"]["complete"] is False
        assert any("donotanswer" in line for line in scores["missing"])
        printed = capsys.readouterr()
        assert "missing: " in printed.err and "(incomplete)" in printed.out
        assert (evaluation.output / "report.html").is_file()

    def test_keeps_what_was_asked_for_the_report(self, evaluation: EvaluateStage) -> None:
        evaluation.run()
        lines = (evaluation.output / "items" / "rewardbench.jsonl").read_text().splitlines()
        assert json.loads(lines[4])["chosen"] == "yes 4"

    def test_in_both_orders_judges_each_pair_twice(self, evaluation: EvaluateStage) -> None:
        evaluation.run("--order=both")
        placed = [(record["id"], record["chosen_position"]) for record in evaluation.records()]
        assert placed[:4] == [("0", "A"), ("0", "B"), ("1", "A"), ("1", "B")]
        assert evaluation.scores()["rewardbench"]["position"]["consistent"]["n"] == 9

    def test_votes_are_records_and_a_curve(self, evaluation: EvaluateStage) -> None:
        evaluation.run("--votes=3", "--temperature=1")
        assert [record.get("sample", 0) for record in evaluation.records()[:4]] == [0, 1, 2, 0]
        assert [point["k"] for point in evaluation.scores()["rewardbench"]["votes"]] == [1, 2, 3]

    def test_a_budget_reaches_the_judge(self, evaluation: EvaluateStage) -> None:
        evaluation.run("--budget=64")
        assert evaluation.judge.asked[0]["budget"] == 64

    def test_a_limit_takes_pairs_evenly(self, evaluation: EvaluateStage) -> None:
        evaluation.run("--limit=3")
        assert [record["id"] for record in evaluation.records()] == ["0", "3", "6"]
        assert [record["chosen_position"] for record in evaluation.records()] == ["B", "B", "A"]
        assert (
            "--limit: 3 of the 9 pairs that are there"
            in evaluation.scores()["rewardbench"]["missing"]
        )


class TestGoingOn:
    def test_after_an_interrupt_gives_the_same_records_and_scores(
        self, evaluation: EvaluateStage, tmp_path: Path
    ) -> None:
        options = ["--votes=2", "--temperature=1", "--order=both"]
        evaluation.run(*options)
        whole = [dict(record, seconds=0) for record in evaluation.records()]
        scores = without_time(evaluation.scores())
        evaluation.output = tmp_path / "again"
        evaluation.judge.interrupt_after = len(evaluation.judge.judged) + 7
        assert evaluation.run(*options) == 130
        assert not (evaluation.output / "records" / "rewardbench.jsonl").exists()
        evaluation.judge.interrupt_after = None
        before = len(evaluation.judge.judged)
        assert evaluation.run(*options) == 0
        assert len(evaluation.judge.judged) - before == 18 - 7
        assert [dict(record, seconds=0) for record in evaluation.records()] == whole
        assert without_time(evaluation.scores()) == scores

    def test_what_is_finished_is_not_judged_again(self, evaluation: EvaluateStage) -> None:
        evaluation.run()
        judged = len(evaluation.judge.judged)
        evaluation.run(benchmarks="rewardbench,rm_bench")
        assert len(evaluation.judge.judged) == judged + 3 * ROTATIONS

    def test_with_other_settings_is_refused(
        self, evaluation: EvaluateStage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluation.run()
        assert evaluation.run("--order=both") == 2
        assert "order: 'published' there, 'both' now" in capsys.readouterr().err

    def test_with_other_pairs_is_refused(
        self, evaluation: EvaluateStage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluation.run()
        evaluation.write([rewardbench_row(number) for number in range(8)])
        assert evaluation.run() == 2
        assert "benchmarks.rewardbench" in capsys.readouterr().err


class TestScoringAlone:
    def test_gives_the_scores_that_judging_gave(self, evaluation: EvaluateStage) -> None:
        evaluation.run(benchmarks="rewardbench,rm_bench")
        scores = evaluation.scores()
        (evaluation.output / "scores.json").unlink()
        assert main(["--stage=evaluate", "--score_only", f"--output={evaluation.output}"]) == 0
        assert evaluation.scores() == scores

    def test_takes_the_records_of_anybody(self, tmp_path: Path, alone: None) -> None:
        records = tmp_path / "records"
        records.mkdir()
        lines = [
            {"benchmark": "rewardbench", "id": str(n), "index": n, "group": "hep-go",
             "cell": None, "chosen_position": "A", "trace": "[[A]]" if n else "?"}
            for n in range(4)
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (records / "rewardbench.jsonl").write_text(text)
        assert main(["--stage=evaluate", "--score_only=true", f"--output={tmp_path}"]) == 0
        scores = json.loads((tmp_path / "scores.json").read_text())["rewardbench"]
        assert scores["micro"]["value"] == 0.75 and scores["none"] == 1

    def test_the_other_rule_gives_half_for_no_verdict(self, evaluation: EvaluateStage) -> None:
        evaluation.write([rewardbench_row(0, chosen="none", rejected="none")])
        evaluation.run()
        assert evaluation.scores()["rewardbench"]["micro"]["value"] == 0
        again = ["--stage=evaluate", "--score_only", f"--output={evaluation.output}"]
        main([*again, "--rule=rewardbench"])
        assert evaluation.scores()["rewardbench"]["micro"]["value"] == 0.5


class TestImporting:
    def test_published_logs_are_scored(self, tmp_path: Path, alone: None) -> None:
        logs, output = tmp_path / "logs.json", tmp_path / "out"
        logs.write_text(json.dumps([LOGGED]))
        arguments = [f"--import_logs={logs}", f"--output={output}"]
        assert main(["--stage=evaluate", *arguments]) == 0
        scores = json.loads((output / "scores.json").read_text())
        assert scores["rewardbench"]["subsets"]["hep-go"]["value"] == 1
        assert main(["--stage=evaluate", *arguments]) == 2, "nothing is written over"

    def test_what_cannot_be_read_is_listed_and_the_rest_is_scored(
        self, tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs, output = tmp_path / "logs.json", tmp_path / "out"
        broken = [{**LOGGED, "subset": f"s{n}"} for n in range(20)]
        logs.write_text(json.dumps([LOGGED, *broken]))
        arguments = [f"--import_logs={logs}", f"--output={output}"]
        assert main(["--stage=evaluate", *arguments]) == 1
        assert "20 problems in all" in capsys.readouterr().err
        assert len((output / "rejects" / "import.txt").read_text().splitlines()) == 20


class TestComparing:
    def test_two_runs_gives_a_page_and_numbers(
        self, evaluation: EvaluateStage, tmp_path: Path
    ) -> None:
        evaluation.run("--temperature=1", "--seed=1")
        first, evaluation.output = evaluation.output, tmp_path / "second"
        evaluation.run("--temperature=1", "--seed=2")
        both = [str(first), str(evaluation.output)]
        place = tmp_path / "comparison"
        assert main(["--stage=evaluate", "--compare", *both, f"--output={place}"]) == 0
        compared = json.loads((place / "comparison.json").read_text())
        assert compared["benchmarks"]["rewardbench"]["pairs"] == 9
        assert (place / "comparison.html").is_file()


class TestBadInput:
    def test_rows_that_cannot_be_judged_are_kept_and_shift_no_other(
        self, evaluation: EvaluateStage
    ) -> None:
        rows = [rewardbench_row(number) for number in range(9)]
        rows[1]["chosen"] = " "
        evaluation.write(rows)
        assert evaluation.run() == 1
        rejected = (evaluation.output / "rejects" / "rewardbench.jsonl").read_text()
        assert "chosen: is empty" in rejected
        placed = [record["chosen_position"] for record in evaluation.records()]
        assert placed == list("BBBABABB")

    def test_prompts_that_do_not_fit_are_counted_before_judging(
        self, evaluation: EvaluateStage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluation.write(
            [rewardbench_row(0), rewardbench_row(1, chosen="too long", rejected="too long")]
        )
        assert evaluation.run() == 1
        assert "1 of 2 prompts do not fit the context of 4,096 tokens" in capsys.readouterr().err
        assert evaluation.records()[1]["problem"] == "prompt_too_long"
        assert evaluation.scores()["rewardbench"]["prompt_too_long"] == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model=MODEL"], "needs --output=DIRECTORY"),
            (["--model=MODEL", "--output=x", "--benchmarks=glue"], "--benchmarks=glue is unknown"),
            (["--model=nowhere", "--output=x"], "there is no such directory or file"),
            (["--model=MODEL", "--output=x", "--rule=kind"], "--rule=kind is unknown"),
            (["--model=MODEL", "--output=x", "--rmb=y", "--benchmarks=rm_bench"], "leaves rmb out"),
            (["--model=MODEL", "--output=x", "--benchmarks=rmb,rmb"], "names one twice"),
            (["--model=MODEL", "--output=x", "--benchmarks=preferences"], "needs --preferences="),
            (["--output=x", "--score_only", "--import_logs=y"], "exclude each other"),
            (["--output=x", "--compare", "y"], "two or more"),
            (["--output=x", "--compare", "y", "z"], "holds no records"),
            (["--output=x", "--import_logs=y"], "there is no such file or directory"),
            (["--output=x", "--score_only"], "holds no records"),
            (["--model=MODEL", "--output=x", "--order=random"], "published, both"),
            (["--model=MODEL", "--output=x", "--votes=3"], "needs --temperature above 0"),
        ],
    )  # fmt: skip
    def test_is_one_line_that_names_it(
        self,
        evaluation: EvaluateStage,
        arguments: list[str],
        message: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(evaluation.folder)
        given = [word.replace("MODEL", str(evaluation.model)) for word in arguments]
        assert main(["--stage=evaluate", *given]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and error.count("\n") == 0


def without_time(scores: dict[str, Any]) -> dict[str, Any]:
    part = scores["rewardbench"]
    return {**scores, "rewardbench": {**part, "seconds": 0, "tokens_per_second": 0}}
