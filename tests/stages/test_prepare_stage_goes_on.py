"""`--stage=prepare` started again: after a kill, once it is done, with other options."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config import PrepareConfig
from rmr1_jax.errors import UserError
from rmr1_jax.stages.prepare_stage import prepare

REPOSITORY = Path(__file__).resolve().parents[2]


def pairs_in(path: Path, count: int) -> Path:
    records = [
        {"prompt": f"What is item {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"}
        for n in range(count)
    ]
    records[17]["rejected"] = records[17]["chosen"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def config(output: Path, source: Path, **options: Any) -> PrepareConfig:
    options = {"near_duplicates": 0.0, "validation": 0.1, "distillation": 0.2} | options
    return PrepareConfig(output=str(output), input=str(source), **options)


def content(output: Path) -> dict[str, bytes]:
    files = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return pairs_in(tmp_path / "many.jsonl", 600)


class TestTheSameCommandAgain:
    @pytest.mark.parametrize(
        ("target", "after"),
        [
            ("scan.RowScanner.examine", 0),
            ("scan.RowScanner.examine", 599),
            ("record_shards.SplitWriter.append", 0),
            ("record_shards.SplitWriter.append", 301),
            ("record_shards.SplitWriter.append", 598),
            ("record_shards.SplitWriter.finish", 0),
            ("record_shards.SplitWriter.finish", 2),
            ("preference_store.StoreWriter.finish", 0),
        ],
    )
    def test_goes_on_to_the_same_bytes(
        self,
        tmp_path: Path,
        source: Path,
        monkeypatch: pytest.MonkeyPatch,
        target: str,
        after: int,
    ) -> None:
        options: dict[str, Any] = {"shard_records": 50, "near_duplicates": 0.9}
        prepare(config(tmp_path / "whole", source, **options))
        with monkeypatch.context() as patch:
            interrupt(patch, f"rmr1_jax.data.{target}", after)
            with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
                prepare(config(tmp_path / "broken", source, **options))
        prepare(config(tmp_path / "broken", source, **options))
        assert content(tmp_path / "broken") == content(tmp_path / "whole")

    @pytest.mark.slow
    def test_goes_on_after_being_killed_at_any_moment(self, tmp_path: Path) -> None:
        options = ["--toy_task=4000", "--shard_records=100"]

        def start(output: str) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-m", "rmr1_jax.main", "--stage=prepare", *options]
            return subprocess.Popen([*command, f"--output={tmp_path / output}"], cwd=REPOSITORY)

        begin = time.monotonic()
        assert start("whole").wait() == 0
        took = time.monotonic() - begin
        for share in (0.5, 0.7, 0.8, 0.9, 0.95):
            run = start("broken")
            time.sleep(share * took)
            run.kill()
            run.wait()
        assert start("broken").wait() == 0
        assert content(tmp_path / "broken") == content(tmp_path / "whole")

    def test_does_nothing_once_it_is_done(
        self, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = prepare(config(tmp_path / "out", source))
        before = content(tmp_path / "out")
        source.unlink()
        assert prepare(config(tmp_path / "out", source)) == first
        assert content(tmp_path / "out") == before
        assert "is prepared already" in capsys.readouterr().err

    def test_notices_that_a_source_has_changed(
        self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            interrupt(patch, "rmr1_jax.data.record_shards.SplitWriter.append", 0)
            with pytest.raises(KeyboardInterrupt):
                prepare(config(tmp_path / "out", source))
        lines = source.read_text().splitlines(keepends=True)
        source.write_text("".join(lines[:5] + lines[6:]))
        with pytest.raises(UserError, match=r"many\.jsonl: has changed since .* record 6"):
            prepare(config(tmp_path / "out", source))


def interrupt(patch: pytest.MonkeyPatch, target: str, after: int) -> None:
    """Let `target` work so many times, and then be as if somebody pressed ^C."""
    module, kind, name = target.rsplit(".", 2)
    owner = getattr(importlib.import_module(module), kind)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def once_too_often(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return original(*arguments)

    patch.setattr(owner, name, once_too_often)


class TestAnotherConfiguration:
    def test_is_refused_and_shown(self, tmp_path: Path, source: Path) -> None:
        prepare(config(tmp_path / "out", source))
        before = content(tmp_path / "out")
        with pytest.raises(UserError) as caught:
            prepare(config(tmp_path / "out", source, seed=7, validation=0.3))
        assert "seed: 42 there, 7 now" in str(caught.value)
        assert "validation: 0.1 there, 0.3 now" in str(caught.value)
        assert content(tmp_path / "out") == before

    def test_of_the_splits_may_still_come_before_anything_is_written(
        self, tmp_path: Path, source: Path
    ) -> None:
        with pytest.raises(UserError, match="--validation=700 is more than the 599 records"):
            prepare(config(tmp_path / "out", source, validation=700))
        assert prepare(config(tmp_path / "out", source, validation=5)).kept == 599
