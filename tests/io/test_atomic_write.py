"""Files that are whole or absent."""

import os
from pathlib import Path

import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_file, atomic_write


def test_a_process_that_writes_the_same_file_meanwhile_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sync = tmp_path / "plan.json", os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            atomic_write(file, "the other's")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    atomic_write(file, "ours")
    assert file.read_text() == "ours"
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()  # no file takes the place of a directory
    with pytest.raises(UserError, match=r"plan\.json: cannot be written"):
        atomic_write(tmp_path / "plan.json", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    file = atomic_write(tmp_path / "plan.json", "before")
    with pytest.raises(KeyboardInterrupt), atomic_file(file) as opened:
        opened.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]
