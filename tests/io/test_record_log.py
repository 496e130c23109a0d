"""The output file by itself."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.errors import UserError
from rmr1_jax.io.record_log import RecordLog


@given(st.lists(st.text(), max_size=4))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("log") / "out.jsonl"
    with RecordLog(path) as log:
        log.write_run_info({})
        for number, text in enumerate(texts):
            log.append({"id": str(number), "trace": text})
    with RecordLog(path) as log:
        assert log.count == len(texts)
        assert [record["trace"] for record in log.records()] == texts


def test_a_lone_surrogate_does_not_break_the_line(tmp_path: Path) -> None:
    with RecordLog(tmp_path / "out.jsonl") as log:
        log.append({"id": "x", "trace": "\ud800"})
        assert [record["trace"] for record in log.records()] == ["?"]


def test_the_file_is_free_again_after_a_run(tmp_path: Path) -> None:
    with RecordLog(tmp_path / "out.jsonl"), pytest.raises(UserError, match="another run"):
        RecordLog(tmp_path / "out.jsonl")
    with RecordLog(tmp_path / "out.jsonl") as log:
        assert log.count == 0


def test_settings_bind_only_once_there_are_records(tmp_path: Path) -> None:
    with RecordLog(tmp_path / "out.jsonl") as log:
        log.write_run_info({"settings": {"seed": 1}})
        log.check_settings({"seed": 2})
        log.append({"id": "x"})
        log.check_settings({"seed": 1})
        with pytest.raises(UserError, match="seed: 1 there, 2 now"):
            log.check_settings({"seed": 2})


def test_records_with_unreadable_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.run.json").write_text("{")
    with RecordLog(tmp_path / "out.jsonl") as log:
        log.append({"id": "x"})
        with pytest.raises(UserError, match=r"out\.jsonl\.run\.json is damaged"):
            log.check_settings({"seed": 1})


def test_a_device_is_no_output() -> None:
    with pytest.raises(UserError, match="is no ordinary file"):
        RecordLog(Path("/dev/null"))
