"""Sources by name or path: the hub, TFDS, files near and far, what this package made."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_store import StoreWriter
from rmr1_jax.data.row_files import decode_row
from rmr1_jax.data.sources import RowSource, open_source
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message, Preference


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Q{number}", "chosen": f"yes {number}", "rejected": f"no {number}", **fields}


def examples(source: RowSource) -> list[Example]:
    found = []
    for row in source.rows():
        record = decode_row(row.raw)
        if source.filtered_by(record) is None:
            found.append(source.example(record, row.default_id))
    return found


def questions(source: RowSource) -> list[str]:
    return [example.preference.context[0].content for example in examples(source)]  # type: ignore[union-attr]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `load_dataset` finds sets in by the names they have on the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / name / "train-00000-of-00001.parquet")


class TestTheMixtureOfRmR1:
    def test_skywork_leaves_magpie_ultra_out(self, hub: Path) -> None:
        def messages(text: str) -> list[dict[str, str]]:
            return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]

        rows = [
            {"chosen": messages("yes"), "rejected": messages(f"no {number}"), "source": source}
            for number, source in enumerate(["helpsteer2", "magpie_ultra", "wildguard"])
        ]
        publish(hub, "Skywork/Skywork-Reward-Preference-80K-v0.2", rows)
        source = open_source("skywork")
        assert [example.id for example in examples(source)] == ["skywork/1", "skywork/3"]
        assert source.filters == [("source", "magpie_ultra")]

    def test_code_is_the_published_draw_of_eight_thousand(self, hub: Path) -> None:
        rows = [
            {"input": f"Q{number}", "accepted": "yes", "rejected": "no"} for number in range(8100)
        ]
        publish(hub, "Vezora/Code-Preference-Pairs", rows)
        # `datasets` shuffles with NumPy's default generator.
        order = np.random.default_rng(42).permutation(8100)[:8000]
        assert questions(open_source("code")) == [f"Q{number}" for number in order]

    def test_math_joins_the_steps(self, hub: Path) -> None:
        row = {"prompt": "Q", "initial_reason_steps": "One. "}
        row |= {"full_chosen": "Yes.", "full_rejected": "No."}
        publish(hub, "xinlai/Math-Step-DPO-10K", [row])
        preference = examples(open_source("math"))[0].preference
        assert preference is not None
        assert {preference.response_a, preference.response_b} == {"One. Yes.", "One. No."}


class TestOtherSets:
    def test_on_the_hub(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        loaded: list[Any] = []

        def load(name: str, config: str | None, *, split: str) -> Any:
            loaded.append((name, config, split))
            return datasets.Dataset.from_list([pair(1), pair(2)])

        monkeypatch.setattr(datasets, "load_dataset", load)
        source = open_source("owner/set:en", split="test")
        assert loaded == [("owner/set", "en", "test")]
        assert questions(source) == questions(source) == ["Q1", "Q2"]

    def test_that_the_hub_does_not_give_are_refused(self, hub: Path) -> None:
        with pytest.raises(UserError, match=r"source owner/none: .* cannot be loaded .* give the"):
            open_source("owner/none")
        publish(hub, "Vezora/Code-Preference-Pairs", [{"input": "Q", "accepted": "y"}])
        with pytest.raises(UserError, match=r"source code: .*Unknown split"):
            open_source("code", split="test")

    def test_of_tfds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import tensorflow_datasets as tfds

        columns = {"role": np.array([b"user"], object), "content": np.array([b"Q1"], object)}
        row = {"prompt": columns, "chosen": b"yes", "rejected": b"no", "score": np.float32(1)}
        monkeypatch.setattr(tfds, "data_source", lambda name, split: [row] * 3)
        assert questions(open_source("tfds:some_set")) == ["Q1"] * 3

    def test_of_tfds_in_a_directory(self, tmp_path: Path) -> None:
        directory = prepared(tmp_path) / "pairs" / "1.0.0"
        source = open_source(f"tfds:{directory}", fields={"conversation": "messages"})
        assert questions(source) == ["Q0", "Q1", "Q2"]

    def test_that_tfds_does_not_know_are_refused(self) -> None:
        with pytest.raises(UserError, match="source tfds:no_such_set: TFDS cannot open it"):
            open_source("tfds:no_such_set")


def prepared(folder: Path) -> Path:
    with StoreWriter(folder / "prepared", "pairs") as writer:
        for number in range(3):
            preference = Preference(
                f"x/{number}", (Message("user", f"Q{number}"),), "yes", "no", "A"
            )
            writer.split("train").append(Example(preference.id, "x", "A", preference))
        writer.finish({})
    return folder / "prepared"


def test_what_this_package_prepared_is_a_source(tmp_path: Path) -> None:
    source = open_source(str(prepared(tmp_path)))
    assert [example.id for example in examples(source)] == [
        f"{source.label}/x/{number}" for number in range(3)
    ]


def test_the_toy_task_is_a_source() -> None:
    found = examples(open_source("toy_task", toy_task=(20, 1)))
    assert len({example.id for example in found}) == 20
    assert {example.label for example in found} == {"A", "B"}


def test_a_directory_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps(pair(2)) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([pair(1, id="own")]))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(pair(3)).encode()))
    (tmp_path / "more").mkdir()
    pq.write_table(pa.Table.from_pylist([pair(4)]), tmp_path / "more" / "d.parquet")
    for ignored in ("README.md", "dataset_infos.json", ".hidden.json", "_notes.json"):
        (tmp_path / ignored).write_text("{}")
    source = open_source(str(tmp_path))
    assert questions(source) == ["Q1", "Q2", "Q3", "Q4"]
    ids = ["own", "b.jsonl/1", "c.jsonl.gz/1", "d.parquet/1"]
    assert [example.id for example in examples(source)] == [f"{tmp_path.name}/{id}" for id in ids]


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder that only fsspec reaches, as it does gs://."""
    system = fsspec.filesystem("memory")
    lines = "".join(json.dumps(pair(number)) + "\n" for number in range(3))
    system.pipe("/bucket/a.jsonl", lines.encode())
    system.pipe("/bucket/b.jsonl.gz", gzip.compress(json.dumps(pair(3)).encode()))
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([pair(4)]), table)
    system.pipe("/bucket/c.parquet", table.getvalue().to_pybytes())
    system.pipe("/bucket/d.json", json.dumps([pair(5)]).encode())
    system.pipe("/bucket/_log/e.json", b"{}")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def test_files_are_read_through_fsspec(bucket: str) -> None:
    assert questions(open_source(bucket)) == [f"Q{number}" for number in range(6)]
    assert questions(open_source(f"{bucket}/a.jsonl")) == ["Q0", "Q1", "Q2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory://bucket/none.jsonl", "there is no such file"),
        ("nowhere://bucket/none.jsonl", "cannot be reached .* give a path or gs://"),
        ("none.jsonl", "none.jsonl: there is no such file"),
        ("./none/at/all", "there is no such file"),
    ],
)
def test_a_file_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(name)


class TestFields:
    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        path = tmp_path / "pairs.jsonl"
        rows = [{"ask": f"Q{n}", "good": "yes", "bad": "no", "kind": n % 3} for n in range(6)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def test_may_have_other_names(self, path: str) -> None:
        fields = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
        assert questions(open_source(path, fields=fields)) == [f"Q{n}" for n in range(6)]

    def test_that_are_not_known_are_named(self, path: str) -> None:
        with pytest.raises(UserError, match=r"no known layout; its fields are ask, good, bad, kin"):
            open_source(path)

    @pytest.mark.parametrize("option", ["fields", "exclude"])
    def test_that_the_source_lacks_are_named(self, path: str, option: str) -> None:
        given: dict[str, Any] = {"fields": {"prompt": "ask", "chosen": "good", "rejected": "bad"}}
        extra = {"id": "uid"} if option == "fields" else {"uid": ("1",)}
        given[option] = given.get(option, {}) | extra
        with pytest.raises(UserError, match="no field 'uid'; it has ask, good, bad, kind"):
            open_source(path, **given)

    def test_can_be_filtered_by(self, path: str) -> None:
        fields = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
        source = open_source(path, fields=fields, exclude={"kind": ("0", "2")})
        assert questions(source) == ["Q1", "Q4"]
        taken = [source.filtered_by(decode_row(row.raw)) for row in source.rows()]
        assert taken == [0, None, 1, 0, None, 1]


def test_a_source_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.jsonl: none .* \(it holds no records\)"):
        open_source(str(tmp_path / "empty.jsonl"))
    (tmp_path / "text").mkdir()
    with pytest.raises(UserError, match=r"holds no file of data; it needs some of \.jsonl"):
        open_source(str(tmp_path / "text"))
