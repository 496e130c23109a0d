"""The store of examples: what is written comes back, whoever reads it and after any kill."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_store import ExampleStore, StoreWriter, is_complete
from rmr1_jax.data.tf_example import decode, encode
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message, Preference


def pair(number: int) -> Example:
    preference = Preference(
        id=f"pair {number}",
        context=(Message("user", f"Wie groß ist {number}?"),),
        response_a="groß",
        response_b="klein",
        label="A",
        context_b=(Message("user", "?"), Message("assistant", "!"), Message("user", "?"))
        if number % 3 == 0
        else None,
    )
    trace = "<answer>[[A]]</answer>" if number % 2 else None
    return Example(preference.id, "numbers", "A", preference=preference, trace=trace)


def rendered(number: int) -> Example:
    prompt = (Message("system", "Judge."), Message("user", f"漢字 {number}"))
    return Example(f"released {number}", "released", None, prompt=prompt, trace="no verdict")


def write(directory: Path, examples: Iterable[Example], *, shard_records: int = 10) -> None:
    with StoreWriter(directory, "numbers", shard_records) as writer:
        train = writer.split("train")
        for number, example in enumerate(examples):
            if number >= train.done:
                train.append(example)
        writer.finish({"seed": 1})


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


EXAMPLES = [pair(number) for number in range(25)] + [rendered(number) for number in range(10)]


class TestRecords:
    @pytest.mark.parametrize("example", [pair(0), pair(1), rendered(0)])
    def test_come_back_as_they_were(self, example: Example) -> None:
        assert decode(encode(example)) == example

    @settings(max_examples=50)
    @given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"), min_size=1))
    def test_keep_any_text(self, content: str, trace: str) -> None:
        example = Example("1", "s", "B", prompt=(Message("user", content),), trace=trace)
        assert decode(encode(example)) == example

    def test_are_what_tfds_calls_an_example(self) -> None:
        """Its own serialiser and ours read each other's records."""
        from rmr1_jax.data.tf_example import tfds_features

        features, example = tfds_features(), pair(3)
        theirs = features.deserialize_example_np(encode(example))
        assert theirs["messages_b"]["role"] == [b"user", b"assistant", b"user"]
        assert (theirs["rendered"], theirs["trace"]) == (False, b"<answer>[[A]]</answer>")
        assert decode(features.serialize_example(theirs)) == example

    def test_refuse_an_example_at_odds_with_its_preference(self) -> None:
        with pytest.raises(ValueError, match="differ"):
            encode(Example("other", "s", "A", preference=pair(1).preference))

    def test_refuse_other_bytes(self) -> None:
        with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
            decode(b"\xff\xff\xff")
        with pytest.raises(ValueError, match="has no feature"):
            decode(b"")


class TestReading:
    def test_gives_back_what_was_written(self, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        store = ExampleStore(tmp_path)
        train = store.split("train")
        assert (store.splits, store.about) == ({"train": 35}, {"seed": 1})
        assert [train[index] for index in range(len(train))] == EXAMPLES
        assert train[30] == EXAMPLES[30]
        with pytest.raises(IndexError):
            train[35]

    def test_holds_several_splits_written_in_turn(self, tmp_path: Path) -> None:
        with StoreWriter(tmp_path, "numbers", 4) as writer:
            for number in range(10):
                writer.split("validation" if number % 5 == 0 else "train").append(pair(number))
            writer.split("empty")
            assert writer.split("train").count == 8
            writer.finish({})
        store = ExampleStore(tmp_path)
        assert store.splits == {"validation": 2, "train": 8, "empty": 0}
        assert store.split("validation")[1] == pair(5)
        assert list(store.split("empty")) == []  # type: ignore[call-overload]

    def test_works_as_a_source_for_grain_and_in_another_process(self, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        train = pickle.loads(pickle.dumps(ExampleStore(tmp_path).split("train")))
        shuffled = list(grain.MapDataset.source(train).shuffle(seed=3))
        assert shuffled != EXAMPLES
        assert sorted(shuffled, key=lambda example: EXAMPLES.index(example)) == EXAMPLES

    def test_is_open_to_tfds_and_to_grain_alone(self, tmp_path: Path) -> None:
        import tensorflow_datasets as tfds

        write(tmp_path, EXAMPLES)
        by_name = tfds.data_source("numbers", data_dir=tmp_path, split="train")
        directory = tmp_path / "numbers" / "1.0.0"
        by_directory = tfds.builder_from_directory(directory).as_data_source("train")
        assert len(by_name) == len(by_directory) == 35
        assert by_name[33]["id"] == by_directory[33]["id"] == b"released 8"
        assert by_name[33]["messages"]["content"][1] == "漢字 8".encode()
        raw = grain.sources.ArrayRecordDataSource(sorted(map(str, directory.glob("*record-*"))))
        assert decode(raw[33]) == EXAMPLES[33]

    def test_needs_no_tensorflow_and_not_even_tfds(self, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        code = (
            "import sys; from rmr1_jax.data.preference_store import ExampleStore; "
            f"print(ExampleStore({str(tmp_path)!r}).split('train')[34].id); "
            "print({'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines() == ["released 9", "set()"]

    def test_tells_content_apart(self, tmp_path: Path) -> None:
        for name, examples in (("a", EXAMPLES), ("b", EXAMPLES), ("c", EXAMPLES[:-1])):
            write(tmp_path / name, examples)
        a, b, c = (ExampleStore(tmp_path / name).fingerprint for name in "abc")
        assert a == b != c


class TestGoingOn:
    @pytest.mark.parametrize("killed_at", [0, 1, 9, 10, 11, 29, 30, 34])
    def test_gives_the_bytes_of_an_unbroken_run(self, killed_at: int, tmp_path: Path) -> None:
        write(tmp_path / "unbroken", EXAMPLES)

        def killed() -> Iterable[Example]:
            yield from EXAMPLES[:killed_at]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "killed", killed())
        assert not is_complete(tmp_path / "killed")
        with StoreWriter(tmp_path / "killed", "numbers", 10) as writer:
            assert writer.split("train").done == killed_at // 10 * 10
        write(tmp_path / "killed", EXAMPLES)
        assert content(tmp_path / "killed") == content(tmp_path / "unbroken")

    def test_after_a_kill_that_left_no_time_to_tidy_up(self, tmp_path: Path) -> None:
        code = (
            "import os, signal; from pathlib import Path; "
            "from rmr1_jax.data.preference_store import StoreWriter; "
            "from rmr1_jax.data.example import Example; from rmr1_jax.judging import Message\n"
            f"writer = StoreWriter(Path({str(tmp_path / 'killed')!r}), 'numbers', 10)\n"
            "for number in range(15):\n"
            "    message = Message('user', str(number))\n"
            "    writer.split('train').append(Example(str(number), 's', 'A', prompt=(message,)))\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code], check=False)
        assert len(list((tmp_path / "killed").rglob("*.part"))) == 1
        examples = [
            Example(str(number), "s", "A", prompt=(Message("user", str(number)),))
            for number in range(25)
        ]
        for name in ("killed", "unbroken"):
            write(tmp_path / name, examples)
        assert content(tmp_path / "killed") == content(tmp_path / "unbroken")

    def test_after_a_kill_between_two_renames(self, tmp_path: Path) -> None:
        for name in ("unbroken", "killed"):
            write(tmp_path / name, EXAMPLES)
        (tmp_path / "killed" / "store.json").unlink()
        shards = tmp_path / "killed" / "numbers" / "1.0.0"
        last = shards / "numbers-train.array_record-00003-of-00004"
        last.rename(shards / "numbers-train.array_record-00003")
        write(tmp_path / "killed", EXAMPLES)
        assert content(tmp_path / "killed") == content(tmp_path / "unbroken")

    def test_makes_a_damaged_shard_and_all_after_it_again(self, tmp_path: Path) -> None:
        for name in ("unbroken", "killed"):
            write(tmp_path / name, EXAMPLES)
        (tmp_path / "killed" / "store.json").unlink()
        shards = tmp_path / "killed" / "numbers" / "1.0.0"
        (shards / "numbers-train.array_record-00001-of-00004").write_bytes(b"nothing")
        with StoreWriter(tmp_path / "killed", "numbers", 10) as writer:
            assert writer.split("train").done == 10
        write(tmp_path / "killed", EXAMPLES)
        assert content(tmp_path / "killed") == content(tmp_path / "unbroken")


class TestBadInput:
    def test_a_complete_store_is_not_overwritten(self, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        with pytest.raises(UserError, match="complete store"):
            StoreWriter(tmp_path, "numbers")

    @pytest.mark.parametrize("name", ["", "1st", "a-b", "a/b"])
    def test_names_that_tfds_does_not_take(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="letters"):
            StoreWriter(tmp_path, name)
        with pytest.raises(UserError, match="letters"):
            StoreWriter(tmp_path, "numbers").split(name)

    def test_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such directory"):
            ExampleStore(tmp_path / "absent")
        with pytest.raises(UserError, match="no store of examples"):
            ExampleStore(tmp_path)

    def test_a_store_that_was_not_finished(self, tmp_path: Path) -> None:
        with StoreWriter(tmp_path, "numbers", 2) as writer:
            for number in range(3):
                writer.split("train").append(pair(number))
        with pytest.raises(UserError, match="not complete; run the command"):
            ExampleStore(tmp_path)

    def test_an_unknown_split(self, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        with pytest.raises(UserError, match="no split 'test'; it has train"):
            ExampleStore(tmp_path).split("test")

    def test_a_missing_or_shortened_shard(self, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        shard = next(tmp_path.rglob("*-00002-of-00004"))
        shard.write_bytes(shard.read_bytes()[:100])
        with pytest.raises(UserError, match=r"00002-of-00004: has 100 bytes, the index says"):
            ExampleStore(tmp_path)
        shard.unlink()
        with pytest.raises(UserError, match=r"00002-of-00004: is missing"):
            ExampleStore(tmp_path)

    def test_a_shard_with_other_bytes_in_it(self, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        shard = next(tmp_path.rglob("*-00002-of-00004"))
        shard.write_bytes(bytes(shard.stat().st_size))
        with pytest.raises(UserError, match=r"00002-of-00004, record 3: is damaged"):
            ExampleStore(tmp_path).split("train")[23]

    @pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 2}'])
    def test_a_damaged_index(self, text: str, tmp_path: Path) -> None:
        write(tmp_path, EXAMPLES)
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(UserError, match=r"make (the store|it) again"):
            ExampleStore(tmp_path)

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text(json.dumps({}))
        with pytest.raises(UserError, match="cannot be written"):
            StoreWriter(tmp_path / "file" / "store", "numbers")
