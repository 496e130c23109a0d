"""What bad lines and bad files do to the judge stage: one clear line, and the rest goes on."""

import errno
import os
from typing import Any

import pytest


class TestBadLines:
    def test_go_to_the_rejects_file_and_the_rest_is_judged(self, stage: Any) -> None:
        lines = [stage.pair(1), "{not json", stage.pair(2, label="C"), "", stage.pair(3)]
        assert stage.run(lines) == 1
        assert stage.ids() == ["pair 1", "pair 3"]
        rejects = stage.rejects()
        assert [reject["line"] for reject in rejects] == [2, 3]
        assert "label" in rejects[1]["reason"]

    def test_are_not_repeated_when_the_run_goes_on(self, stage: Any, fake_judge: Any) -> None:
        fake_judge.slots, fake_judge.interrupt_after = 1, 1
        assert stage.run(["{not json", stage.pair(1), "nor this", stage.pair(2)]) == 130
        fake_judge.interrupt_after = None
        assert stage.run() == 1
        assert [r["line"] for r in stage.rejects()] == [1, 3]

    def test_that_were_mended_leave_the_rejects_file(self, stage: Any) -> None:
        assert stage.run([stage.pair(1), "{not json"]) == 1
        assert stage.run([stage.pair(1), stage.pair(2)]) == 0
        assert not (stage.rejects_file).exists()

    def test_alone_need_no_model(self, stage: Any, fake_judge: Any) -> None:
        assert stage.run(["{not json"]) == 1
        assert fake_judge.loads == []
        assert stage.records() == []

    def test_a_prompt_too_long_is_a_record_and_shows_in_the_exit_status(self, stage: Any) -> None:
        assert stage.run([stage.pair(1, response_a="too long"), stage.pair(2)]) == 1
        assert [record["problem"] for record in stage.records()] == ["prompt_too_long", None]


class TestBadFiles:
    def test_a_full_disk_keeps_whole_records_and_the_run_goes_on_later(
        self,
        stage: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        left, write = 700, os.write

        def write_to_small_disk(file: int, data: bytes) -> int:
            nonlocal left
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = write(file, data[:left])
            left -= written
            return written

        with monkeypatch.context() as disk:
            disk.setattr(os, "write", write_to_small_disk)
            assert stage.run([stage.pair(n) for n in range(6)]) == 2
        error = capsys.readouterr().err
        assert "No space left on device" in error and "run the same command again" in error
        assert "Traceback" not in error
        kept = (stage.output).read_bytes()
        assert kept.endswith(b"\n") and 0 < len(stage.records()) < 6
        assert stage.run() == 0
        assert (stage.output).read_bytes().startswith(kept)
        assert stage.ids() == [f"pair {n}" for n in range(6)]

    def test_an_output_without_permission_is_named_before_the_model_is_read(
        self,
        stage: Any,
        fake_judge: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
        assert stage.run([stage.pair(1)]) == 2
        error = capsys.readouterr().err
        assert "verdicts.jsonl: cannot be written (Permission denied)" in error
        assert fake_judge.loads == []

    @pytest.mark.parametrize("output", ["pairs.jsonl/verdicts.jsonl", "model"])
    def test_an_impossible_output_is_refused(
        self, stage: Any, output: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stage.run([stage.pair(1)], f"--output={stage.folder / output}") == 2
        assert "choose another --output" in capsys.readouterr().err

    def test_missing_folders_of_the_output_are_made(self, stage: Any) -> None:
        stage.output = stage.folder / "new" / "er" / "verdicts.jsonl"
        assert stage.run([stage.pair(1)]) == 0
        assert stage.ids() == ["pair 1"]

    @pytest.mark.parametrize("text", ["", "\n\n", None], ids=["empty", "blank", "missing"])
    def test_an_input_without_records_leaves_no_output(
        self, stage: Any, text: str | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if text is not None:
            (stage.input).write_text(text)
        assert stage.run() == 2
        assert "pairs.jsonl" in capsys.readouterr().err
        assert not (stage.output).exists()

    def test_a_pipe_as_input_is_refused(
        self, stage: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(stage.input)
        assert stage.run() == 2
        assert "is a pipe" in capsys.readouterr().err

    def test_an_input_where_the_rejects_go_is_refused(
        self, stage: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage.input = stage.rejects_file
        assert stage.run([stage.pair(1)]) == 2
        assert "rename it" in capsys.readouterr().err
        assert stage.input.exists()
