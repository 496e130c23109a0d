"""`--stage=prepare`: from files of pairs to splits in a store, with every step counted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.config import PrepareConfig, Source
from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_store import ExampleStore
from rmr1_jax.errors import UserError
from rmr1_jax.main import main
from rmr1_jax.stages.prepare_stage import prepare, run


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "prompt": f"What is item {number}?",
        "chosen": f"yes {number}",
        "rejected": f"no {number}",
        **fields,
    }


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", [pair(number) for number in range(100)])


def config(output: Path, *inputs: Path, **options: Any) -> PrepareConfig:
    options = {"near_duplicates": 0.0, "validation": 0.1, "distillation": 0.2} | options
    return PrepareConfig(output=str(output), input=",".join(map(str, inputs)), **options)


def stored(output: Path) -> dict[str, list[Example]]:
    store = ExampleStore(output)
    return {
        name: [store.split(name)[index] for index in range(count)]
        for name, count in store.splits.items()
    }


def content(output: Path) -> dict[str, bytes]:
    files = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def test_splits_are_disjoint_and_hold_everything(tmp_path: Path, pairs: Path) -> None:
    report = prepare(config(tmp_path / "out", pairs, balance="alternate"))
    splits = stored(tmp_path / "out")
    assert {name: len(examples) for name, examples in splits.items()} == {
        "train": 72,
        "validation": 10,
        "distillation": 18,
    }
    ids = [example.id for examples in splits.values() for example in examples]
    assert sorted(ids) == sorted(f"pairs.jsonl/{number + 1}" for number in range(100))
    assert report.kept == 100
    labels = [example.label for examples in splits.values() for example in examples]
    assert labels.count("A") == labels.count("B") == 50


def test_positions_alternate_through_all_sources_as_published(tmp_path: Path, pairs: Path) -> None:
    other = write(tmp_path / "other.jsonl", [pair(number) for number in range(100, 105)])
    published = {"balance": "alternate", "validation": 0.0, "distillation": 0.0}
    prepare(config(tmp_path / "out", other, pairs, **published))
    train = stored(tmp_path / "out")["train"]
    assert [example.label for example in train] == ["A", "B"] * 52 + ["A"]
    for example in train:
        assert example.preference is not None
        winner = example.preference.response_a if example.label == "A" else None
        assert (winner or example.preference.response_b).startswith("yes")


def test_every_step_is_counted_printed_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write(
        tmp_path / "first.jsonl",
        [
            pair(1, kind="drop"),
            pair(2, kind="keep", chosen=""),
            pair(3, rejected="yes 3"),
            *[pair(4)] * 3,
            pair(5, prompt="A benchmark asks this"),
            *[pair(number) for number in range(10, 20)],
        ],
    )
    second = write(tmp_path / "second.jsonl", [pair(4), pair(30), pair(31)])
    bench = write(tmp_path / "bench.jsonl", [{"prompt": "a benchmark asks this"}])
    given = PrepareConfig(
        output=str(tmp_path / "out"),
        sources=(
            Source(str(first), exclude={"kind": ("drop", "never")}),
            Source(str(second), count=1),
        ),
        near_duplicates=0.0,
        against=str(bench),
    )
    assert run(given) == 1
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    counts = {"read": 17, "bad": 1, "filtered": 1, "identical_responses": 1, "duplicates": 2}
    counts |= {"near_duplicates": 0, "same_question": 1, "shared_words": 0, "too_long": 0}
    counts |= {"not_chosen": 0, "kept": 11}
    assert saved["sources"]["first.jsonl"] == counts
    assert saved["sources"]["second.jsonl"] == dict.fromkeys(counts, 0) | {
        "read": 3,
        "duplicates": 1,
        "not_chosen": 1,
        "kept": 1,
    }
    for counts in saved["sources"].values():
        assert counts["read"] == sum(n for step, n in counts.items() if step != "read")
    assert saved["sources"]["total"]["kept"] == 12
    assert saved["filters"] == {"first.jsonl": {"kind=drop": 1, "kind=never": 0}}
    printed = capsys.readouterr()
    assert "benchmark question" in printed.out and "first.jsonl: 1 filtered by" in printed.out
    assert "2 records were rejected" in printed.err
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [2, 3]


def test_near_duplicates_are_dropped(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(300))
    records = [pair(1, chosen=text), pair(1, chosen=f"{text} more"), pair(2, chosen="else")]
    report = prepare(
        config(tmp_path / "out", write(tmp_path / "p.jsonl", records), near_duplicates=0.9)
    )
    assert report.sources["total"]["near_duplicates"] == 1
    assert report.kept == 2


def test_prompts_that_are_too_long_are_dropped(tmp_path: Path, minimind_dir: Path) -> None:
    records = [pair(1), pair(2, prompt="word " * 400)]
    report = prepare(
        config(
            tmp_path / "out",
            write(tmp_path / "p.jsonl", records),
            tokenizer=str(minimind_dir),
            prompt="reasoning",
            max_prompt_tokens=400,
        )
    )
    assert report.sources["total"]["too_long"] == report.kept == 1


def test_released_sets_are_stored_as_they_are(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {
            "context_messages": [
                {"role": "system", "content": "Judge."},
                {"role": "user", "content": f"Which? {number}"},
            ],
            "winner": winner,
        }
        for number, winner in enumerate(["model_a", "model_b", "model_b", "A is. [[A]]"])
    ]
    released = write(tmp_path / "released.jsonl", records)
    report = prepare(config(tmp_path / "out", released, validation=0.0, distillation=0.0))
    train = stored(tmp_path / "out")["train"]
    assert [example.label for example in train] == ["A", "B", "B", "A"]
    assert [message.content for message in train[1].prompt] == ["Judge.", "Which? 1"]
    assert train[3].trace == "A is. [[A]]"
    assert report.splits["train"] == {
        "records": 4,
        "chosen_a": 2,
        "chosen_b": 2,
        "unlabelled": 0,
        "as_given": 4,
    }


def test_ids_that_repeat_are_told_apart(tmp_path: Path) -> None:
    records = [pair(number, id=str(number % 2)) for number in range(4)]
    source = write(tmp_path / "p.jsonl", records)
    prepare(config(tmp_path / "out", source, validation=0.0, distillation=0.0))
    train = stored(tmp_path / "out")["train"]
    assert [e.id for e in train] == ["p.jsonl/0", "p.jsonl/1", "p.jsonl/0#3", "p.jsonl/1#4"]


class TestRefused:
    def test_an_output_that_holds_something_else(self, tmp_path: Path, pairs: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(UserError, match="holds something else"):
            prepare(config(tmp_path / "out", pairs))
        assert content(tmp_path / "out") == {"thesis.txt": b"mine"}

    def test_a_mixture_without_records(self, tmp_path: Path, pairs: Path) -> None:
        given = config(tmp_path / "out", pairs, against=str(pairs))
        with pytest.raises(UserError, match="the mixture is empty: of 100 records none is left"):
            prepare(given)
        # Nothing there holds the next attempt to these settings.
        assert prepare(config(tmp_path / "out", pairs)).kept == 100

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"input": "none.jsonl"}, "there is no such file"),
            ({"balance": "coin"}, "--balance=coin is unknown"),
            ({"near_duplicates": 1.5}, "at most 1"),
            ({"output": "gs://bucket/out"}, "must be a local directory"),
            ({"sources": (Source("code", count=0),), "input": ""}, "count of code=0"),
            ({"against": "none.jsonl"}, "there is no such file"),
            ({"tokenizer": "none"}, "none does not exist"),
        ],
    )
    def test_before_the_output_is_made(
        self,
        tmp_path: Path,
        pairs: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: dict[str, Any],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=message):
            prepare(PrepareConfig(**{"output": "out", "input": str(pairs)} | options))
        assert not (tmp_path / "out").exists()

    def test_a_second_run_at_the_same_time(
        self, tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def at_the_same_time(*_: object) -> None:
            with pytest.raises(UserError, match="another run is writing it"):
                prepare(config(tmp_path / "out", pairs))
            raise KeyboardInterrupt

        monkeypatch.setattr("rmr1_jax.stages.prepare_stage.write_mixture", at_the_same_time)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(tmp_path / "out", pairs))


def test_the_command_line_prepares_the_toy_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmr1_jax.main.quiet_libraries", lambda: None)
    monkeypatch.setattr("rmr1_jax.main.keep_compiled_programs", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert main(["--stage=prepare", "--toy_task=200"]) == 0
    splits = ExampleStore(tmp_path / "data" / "toy_task").splits
    assert splits == {"train": 49, "validation": 4, "distillation": 147}


def test_an_error_leaves_no_lock_behind(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(UserError):
        prepare(config(tmp_path / "out", pairs, distillation=500))
    shutil.rmtree(tmp_path / "out")
    assert prepare(config(tmp_path / "out", pairs)).kept == 100
