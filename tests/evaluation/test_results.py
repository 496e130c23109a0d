"""The directory of an evaluation: one run's, and always whole."""

from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.results import Results

SETTINGS = {"model": "m", "order": "published"}


def record(index: int, **fields: Any) -> Record:
    values: dict[str, Any] = {
        "benchmark": "rmb", "id": str(index), "index": index, "group": "g", "cell": None,
        "chosen_position": "A", "verdict": "A", "problem": None, "correct": 1.0,
    }  # fmt: skip
    return Record(**(values | fields))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    results = Results(tmp_path / "out")
    results.begin(SETTINGS, {"rmb": {"items": "abc"}})
    return results


class TestOneDirectoryIsOneRun:
    def test_the_same_run_may_enter_again(self, results: Results) -> None:
        results.begin(SETTINGS, {"rmb": {"items": "abc"}})

    def test_other_settings_are_refused_by_name(self, results: Results) -> None:
        with pytest.raises(UserError, match="order: 'published' there, 'both' now"):
            results.begin({**SETTINGS, "order": "both"}, {})

    def test_so_are_other_pairs(self, results: Results) -> None:
        with pytest.raises(UserError, match=r"rmb.*: 'abc' there, 'xyz' now"):
            results.begin(SETTINGS, {"rmb": {"items": "xyz"}})

    def test_another_benchmark_may_join(self, results: Results) -> None:
        results.begin(SETTINGS, {"rewardbench": {"items": "def"}})
        info = results.run_info()
        assert info is not None and sorted(info["benchmarks"]) == ["rewardbench", "rmb"]

    def test_another_prompt_is_refused(self, results: Results) -> None:
        results.note(prompt_sha256="1")
        results.note(prompt_sha256="1")
        with pytest.raises(UserError, match="prompt_sha256: '1' there, '2' now"):
            results.note(prompt_sha256="2")

    def test_records_of_others_are_not_added_to(self, tmp_path: Path) -> None:
        results = Results(tmp_path)
        results.write_records("rmb", [record(0)])
        with pytest.raises(UserError, match=r"no run\.json .* --score_only"):
            results.begin(SETTINGS, {})

    def test_nor_are_those_that_a_run_did_not_finish(self, results: Results) -> None:
        with results.log("rmb") as log:
            log.append(record(0).to_json())
        (results.output / "run.json").unlink()
        with pytest.raises(UserError, match=r"rmb\.partial\.jsonl: .* no run\.json"):
            results.begin(SETTINGS, {"rmb": {"items": "abc"}})

    def test_nor_those_of_a_benchmark_that_no_run_here_began(self, results: Results) -> None:
        results.write_records("rewardbench", [record(0, benchmark="rewardbench")])
        with pytest.raises(UserError, match=r"rewardbench\.jsonl: records are there"):
            results.begin(SETTINGS, {"rewardbench": {"items": "def"}})

    @pytest.mark.parametrize(
        ("there", "said"), [([0], "lacks 1 of"), ([0, 1, 2], "has 1 that are none"), ([0, 1], "")]
    )
    def test_finished_records_must_be_those_of_the_run(
        self, results: Results, there: list[int], said: str
    ) -> None:
        results.write_records("rmb", [record(n) for n in there])
        keys = [record(n).key for n in range(2)]
        if not said:
            results.check_finished("rmb", keys)
            return
        with pytest.raises(UserError, match=said):
            results.check_finished("rmb", keys)

    def test_a_damaged_memory_is_named(self, results: Results) -> None:
        (results.output / "run.json").write_text("{")
        with pytest.raises(UserError, match=r"run\.json is damaged"):
            results.begin(SETTINGS, {})


class TestRecords:
    def test_come_out_in_the_order_of_the_data_set(self, results: Results) -> None:
        with results.log("rmb") as log:
            for index in (2, 0, 1):
                log.append(record(index).to_json())
        results.finish("rmb", [record(index).key for index in range(3)])
        assert [each.index for each in results.read()["rmb"]] == [0, 1, 2]
        assert not results.partial_file("rmb").exists()

    def test_that_are_not_finished_are_not_read(self, results: Results) -> None:
        results.write_records("rewardbench", [record(0, benchmark="rewardbench")])
        with results.log("rmb") as log:
            log.append(record(0).to_json())
        assert list(results.read()) == ["rewardbench"]

    def test_half_a_line_of_a_kill_is_judged_again(self, results: Results) -> None:
        with results.log("rmb") as log:
            log.append(record(0).to_json())
        with results.partial_file("rmb").open("ab") as file:
            file.write(b'{"benchmark": "rmb", "id"')
        with results.log("rmb") as log:
            assert results.judged(log) == {record(0).key}

    def test_of_a_vote_that_was_made_again_the_last_counts(self, results: Results) -> None:
        with results.log("rmb") as log:
            log.append(record(0, trace="first").to_json())
            log.append(record(0, trace="second").to_json())
        results.finish("rmb", [record(0).key])
        assert [each.trace for each in results.read()["rmb"]] == ["second"]

    def test_where_there_are_none_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no records"):
            Results(tmp_path).read()
