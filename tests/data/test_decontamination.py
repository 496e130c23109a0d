"""What a benchmark asks is found among the examples, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.data.decontamination import Benchmarks
from rmr1_jax.data.example import Example
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message, Preference, chain_of_rubrics

LONG = "Write a story about a small red fox who finds an old brass key under a tree"


def example(*texts: str, response: str = "yes") -> Example:
    roles = ("user", "assistant") * len(texts)
    context = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return Example("1", "set", "A", Preference("1", context, response, "no", "A"))


def benchmark(folder: Path, *records: Any, name: str = "bench.json", ngram: int = 8) -> Benchmarks:
    path = folder / name
    if name.endswith(".json"):
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Benchmarks([str(folder)], ngram)


def test_the_same_question_is_found_whatever_its_case_and_spaces(tmp_path: Path) -> None:
    benchmarks = benchmark(tmp_path, {"prompt": "What is\n2 + 2?"})
    assert benchmarks.overlap(example("what  is 2 + 2?")) == "question"
    assert benchmarks.overlap(example("what  is 2 + 2?", "4", "and 3 + 3?")) == "question"
    assert benchmarks.overlap(example("what is 2 - 2?")) is None
    assert benchmarks.overlap(example("and?", "yes", "what is 2 + 2?")) is None


def test_words_in_a_row_are_found_anywhere_in_the_conversation(tmp_path: Path) -> None:
    benchmarks = benchmark(tmp_path, {"prompt": LONG})
    said = "Please: a SMALL red fox -- who finds an old brass"  # nine words of it
    assert benchmarks.overlap(example(said)) == "words"
    assert benchmarks.overlap(example("Hello", "Hi", said)) == "words"
    assert benchmarks.overlap(example("a small red fox who finds an apple")) is None  # seven
    assert benchmarks.overlap(example("Hello", response=said)) is None


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": LONG, "chosen": ["a"] * 3, "rejected": ["b"] * 3, "id": "chat/1"},
        {"prompt": LONG, "chosen": "a", "rejected": "b", "subset": "hep-python"},
        {"conversation_input": [{"role": "user", "content": LONG, "language": "English"}]}
        | {"bon_best": {"llm_name": "x", "answer": "a"}, "loser_list": [], "bon_uid": "1"},
        {"question": LONG, "response_A": "a", "response_B": "b", "label": "A>B"},
        {"conversation": [{"role": "user", "content": LONG}]},
        {"chosen": f"\n\nHuman: {LONG}\n\nAssistant:", "rejected": "\n\nHuman: x"},
        {"conversations": [{"from": "human", "value": LONG}]}
        | {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        {"chosen": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "a"}]}
        | {"rejected": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "b"}]},
    ],
    ids=lambda record: " ".join(record),
)
@pytest.mark.parametrize("name", ["bench.json", "bench.jsonl"])
def test_any_benchmark_file_holds_questions(
    tmp_path: Path, record: dict[str, Any], name: str
) -> None:
    benchmarks = benchmark(tmp_path, record, name=name)
    assert benchmarks.records == 1
    assert benchmarks.overlap(example(LONG)) == "question"
    assert benchmarks.overlap(example(f"{LONG} again")) == "words"


@pytest.mark.parametrize("turns", [1, 3])
def test_released_prompts_are_looked_into(tmp_path: Path, turns: int) -> None:
    benchmarks = benchmark(tmp_path, {"prompt": LONG})
    texts = (LONG, "Once", "Go on")[:turns]
    pair = example(*texts).preference
    assert pair is not None
    prompt = tuple(Message(**message) for message in chain_of_rubrics().messages(pair))  # type: ignore[arg-type]
    released = Example("1", "set", "A", prompt=prompt)
    assert benchmarks.overlap(released) == ("question" if turns == 1 else "words")


def test_a_record_without_a_question_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--against: .*bench\.json, record 2: question: is not fo"):
        benchmark(tmp_path, {"prompt": "Q"}, {"text": "Q"})


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        Benchmarks([str(tmp_path / "none.jsonl")], 13)


def test_the_benchmarks_themselves_are_found(shared_data: Path) -> None:
    files = ["rewardbench/dev.jsonl", "rm-bench/dev.json", "rmb"]
    benchmarks = Benchmarks([str(shared_data / file) for file in files], 13)
    assert benchmarks.records == 623 + 247 + 589 + 158
    for item in json.loads((shared_data / "rm-bench" / "dev.json").read_text("utf-8")):
        assert benchmarks.overlap(example(item["prompt"])) == "question"
