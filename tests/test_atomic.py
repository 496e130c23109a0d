"""Files that are whole or absent."""

import os
from pathlib import Path

import pytest

from rmr1_jax.atomic import write_whole
from rmr1_jax.errors import UserError


def test_a_process_that_writes_the_same_file_meanwhile_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sync = tmp_path / "plan.json", os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            write_whole(file, "the other's")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_whole(file, "ours")
    assert file.read_text() == "ours"
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()  # no file takes the place of a directory
    with pytest.raises(UserError, match=r"plan\.json: cannot be written"):
        write_whole(tmp_path / "plan.json", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]
