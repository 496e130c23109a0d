"""Prompts for reinforcement learning: every layout, what is dropped, and the order they come in."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.data.preference_store import StoreWriter
from rmr1_jax.data.prompt_set import PromptSet, PromptStream, open_prompts
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message, Preference, chain_of_rubrics, reasoning
from rmr1_jax.sampling.judge import Judge
from rmr1_jax.sampling.judgement import Reader

LONG = 4096


def pair(number: int, **fields: Any) -> dict[str, Any]:
    record = {"id": f"pair {number}", "question": f"Is {number} even?", "label": "AB"[number % 2]}
    return record | {"response_a": "It is.", "response_b": "It is not."} | fields


def released(number: int, **fields: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": f"Is {number} even?"},
    ]
    return {"context_messages": messages, "winner": ("model_a", "model_b")[number % 2]} | fields


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    def write(records: list[dict[str, Any]]) -> str:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


def labels_of(prompts: PromptSet) -> list[str]:
    return [prompts[index].label for index in range(len(prompts))]


class TestLayouts:
    def test_pairs_are_asked_as_the_judge_asks_them(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        prompts = open_prompts(
            write([pair(number) for number in range(5)]), chatml, reasoning(), max_prompt=LONG
        )
        judge = cast(
            Judge, SimpleNamespace(tokenizer=chatml, prompt=reasoning(), reader=Reader(chatml))
        )
        for number in range(5):
            question = (Message("user", f"Is {number} even?"),)
            preference = Preference("pair", question, "It is.", "It is not.", None)
            read = prompts[number]
            assert read.tokens.tolist() == Judge.prompt_tokens(judge, preference)
            assert (read.id, read.label) == (f"pairs.jsonl/pair {number}", "AB"[number % 2])

    def test_chosen_and_rejected(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        record = {"prompt": "Is 2 even?", "chosen": "It is.", "rejected": "It is not."}
        prompts = open_prompts(write([record]), chatml, chain_of_rubrics(), max_prompt=LONG)
        text = chatml.decode(prompts[0].tokens)
        side = prompts[0].label
        assert f"[The Start of Chatbot {side}'s Response]\nIt is.\n" in text

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_the_released_layout_is_asked_as_it_is(
        self, suffix: str, tmp_path: Path, chatml: PreTrainedTokenizerFast
    ) -> None:
        records = [released(number) for number in range(4)]
        path = tmp_path / f"rlvr.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        else:
            path.write_text("\n".join(map(json.dumps, records)))
        prompts = open_prompts(str(path), chatml, None, max_prompt=LONG)
        assert labels_of(prompts) == ["A", "B", "A", "B"]
        assert chatml.decode(prompts[3].tokens) == (
            "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\nIs 3 even?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_a_prepared_directory_has_splits(
        self, tmp_path: Path, chatml: PreTrainedTokenizerFast
    ) -> None:
        with StoreWriter(tmp_path / "prepared", "preferences") as writer:
            for split, count in (("train", 3), ("validation", 2)):
                for number in range(count):
                    preference = Preference(
                        f"math/{split} {number}", (Message("user", "Q"),), "yes", "no", "B"
                    )
                    writer.split(split).append(
                        Example(preference.id, "math", preference.label, preference)
                    )
            writer.finish({})
        path = str(tmp_path / "prepared")
        train = open_prompts(path, chatml, reasoning(), max_prompt=LONG)
        held_out = open_prompts(path, chatml, reasoning(), max_prompt=LONG, split="validation")
        assert train.ids == ("math/train 0", "math/train 1", "math/train 2")
        assert held_out.ids == ("math/validation 0", "math/validation 1")
        assert train.fingerprint != held_out.fingerprint
        with pytest.raises(UserError, match="has no split 'test'; it has train, validation"):
            open_prompts(path, chatml, reasoning(), max_prompt=LONG, split="test")

    def test_traces_that_were_synthesised_carry_a_label(
        self, tmp_path: Path, chatml: PreTrainedTokenizerFast
    ) -> None:
        (tmp_path / "traces.jsonl").write_text(
            json.dumps(released(1, winner="So <answer>[[A]]</answer>"))
        )
        (tmp_path / "report.json").write_text("{}")
        assert labels_of(open_prompts(str(tmp_path), chatml, None, max_prompt=LONG)) == ["A"]

    def test_real_pairs(self, shared_data: Path, make_tokenizer: Callable[..., Any]) -> None:
        prompts = open_prompts(
            str(shared_data / "pref" / "judgebench-claude.jsonl"),
            make_tokenizer(),
            chain_of_rubrics(),
            max_prompt=8192,
        )
        assert prompts.counts.kept > 200
        assert set(labels_of(prompts)) == {"A", "B"}

    def test_pairs_without_a_prompt_to_render_them_are_refused(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(UserError, match=r"holds pairs, and no prompt .* --data.prompt"):
            open_prompts(write([pair(0)]), chatml, None, max_prompt=LONG)

    def test_tells_what_all_prompts_begin_with(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        source = write([pair(number) for number in range(5)])
        prompts = open_prompts(source, chatml, chain_of_rubrics(), max_prompt=LONG)
        shared = prompts.shared.tolist()
        begins = [prompts[index].tokens.tolist()[: len(shared) + 1] for index in range(5)]
        assert all(tokens[:-1] == shared for tokens in begins)
        assert len({tokens[-1] for tokens in begins}) > 1
        assert (chain_of_rubrics().system or "no system message") in chatml.decode(shared)


class TestDropped:
    def test_records_are_counted_and_said(
        self, write: Callable[..., str], tmp_path: Path, chatml: PreTrainedTokenizerFast
    ) -> None:
        records = [
            released(0),
            released(1, context_messages=[{"role": "user", "content": "why " * 200}]),
            released(2, winner="a trace without a verdict"),
            pair(3, label=None),
            {"text": "no pair"},
            released(5, id="1"),
            released(6),
        ]
        rejects = RejectsFile(tmp_path / "rejects.jsonl")
        done: list[int] = []
        prompts = open_prompts(
            write(records), chatml, None, max_prompt=100, progress=done.append, rejects=rejects
        )
        assert prompts.ids == ("pairs.jsonl/1", "pairs.jsonl/7")
        assert prompts.counts.records == done[-1] == 7
        assert prompts.counts.dropped == {"too_long": 1, "no_label": 2, "unreadable": 2}
        assert prompts.counts.lengths.max == len(prompts[0].tokens) == prompts.counts.lengths.p50
        said = [json.loads(line) for line in rejects.path.read_text().splitlines()]
        reasons = {line["line"]: line["reason"] for line in said}
        assert sorted(reasons) == [2, 3, 4, 5, 6]
        assert "tokens, more than max_prompt=100" in reasons[2]
        assert "gives no verdict" in reasons[3]
        assert "'pairs.jsonl/1' is given twice" in reasons[6]

    def test_a_prompt_of_just_the_longest_length_is_kept(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        path = write([released(0)])
        length = len(open_prompts(path, chatml, None, max_prompt=LONG)[0].tokens)
        assert len(open_prompts(path, chatml, None, max_prompt=length)) == 1
        with pytest.raises(UserError, match=f"has {length} tokens, --data.max_prompt={length - 1}"):
            open_prompts(path, chatml, None, max_prompt=length - 1)

    def test_messages_that_the_template_refuses(
        self, write: Callable[..., str], make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        refuses = make_tokenizer(
            "{% for message in messages %}{% if message.role == 'system' %}"
            "{{ raise_exception('no system message') }}{% endif %}{{ message.content }}{% endfor %}"
        )
        user = [{"role": "user", "content": "Q"}]
        records = [released(0, context_messages=user), released(1)]
        prompts = open_prompts(write(records), refuses, None, max_prompt=LONG)
        assert prompts.counts.dropped == {"template_refuses": 1}
        with pytest.raises(UserError, match="the chat template refuses messages of system, user"):
            open_prompts(write(records[::-1]), refuses, None, max_prompt=LONG)

    def test_nothing_left_is_refused_with_the_counts(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        path = write([released(number) for number in range(3)])
        expected = (
            r"no prompt of the 3 leaves room: the shortest has \d+ tokens, --data.max_prompt=5;"
        )
        with pytest.raises(UserError, match=expected):
            open_prompts(path, chatml, None, max_prompt=5)
        path = write([released(0, winner="no verdict"), released(1, winner="none")])
        with pytest.raises(UserError, match=r"none of its 2 records can be used \(2 no label\)"):
            open_prompts(path, chatml, None, max_prompt=LONG)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, chatml: PreTrainedTokenizerFast) -> PromptSet:
    path = tmp_path_factory.mktemp("prompts") / "rlvr.jsonl"
    path.write_text("\n".join(json.dumps(released(number)) for number in range(20)))
    return open_prompts(str(path), chatml, None, max_prompt=LONG)


class TestBothOrders:
    @pytest.fixture
    def prompts(self, write: Callable[..., str], chatml: PreTrainedTokenizerFast) -> PromptSet:
        path = write([pair(number) for number in range(5)])
        return open_prompts(path, chatml, reasoning(), max_prompt=LONG, both_orders=True)

    def test_the_swapped_pair_follows_with_the_other_label(
        self, prompts: PromptSet, chatml: PreTrainedTokenizerFast
    ) -> None:
        assert len(prompts) == 10
        assert labels_of(prompts) == ["A", "B", "B", "A", "A", "B", "B", "A", "A", "B"]
        given, swapped = prompts[2], prompts[3]
        assert swapped.id == f"{given.id}, swapped"
        text, other = (chatml.decode(prompt.tokens) for prompt in (given, swapped))
        assert text.index("It is.") < text.index("It is not.")
        assert other.index("It is not.") < other.index("It is.")

    def test_the_stream_keeps_the_orders_of_a_pair_together(self, prompts: PromptSet) -> None:
        drawn = [prompt.id for _, prompt in PromptStream(prompts, seed=3).draw(20)]
        assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(prompts.ids)
        for given, swapped in zip(drawn[0::2], drawn[1::2], strict=True):
            assert swapped == f"{given}, swapped"

    def test_rendered_prompts_are_refused(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(UserError, match="cannot be shown in both orders"):
            open_prompts(
                write([released(1)]), chatml, reasoning(), max_prompt=LONG, both_orders=True
            )

    def test_a_pair_is_dropped_in_both_orders(
        self, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        path = write([pair(1), pair(2, response_a="It is. " * 100)])
        prompts = open_prompts(path, chatml, reasoning(), max_prompt=400, both_orders=True)
        assert len(prompts) == 2
        assert prompts.counts.dropped == {"too_long": 1}


class TestStream:
    def test_gives_every_prompt_once_an_epoch_in_another_order_each(
        self, prompts: PromptSet
    ) -> None:
        drawn = PromptStream(prompts).draw(60)
        assert [position for position, _ in drawn] == list(range(60))
        epochs = [[prompt.id for _, prompt in drawn[start : start + 20]] for start in (0, 20, 40)]
        for epoch in epochs:
            assert sorted(epoch) == sorted(prompts.ids)
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert tuple(epochs[0]) != prompts.ids

    def test_is_a_function_of_its_seed(self, prompts: PromptSet) -> None:
        def ids(seed: int) -> list[str]:
            return [prompt.id for _, prompt in PromptStream(prompts, seed).draw(20)]

        assert ids(1) == ids(1) != ids(2)

    def test_goes_on_where_it_stood(self, prompts: PromptSet) -> None:
        unbroken = PromptStream(prompts, 3).draw(70)
        for killed_after in (0, 7, 20, 33):
            first = PromptStream(prompts, 3)
            first.draw(killed_after)
            state = json.loads(json.dumps(first.get_state()))
            second = PromptStream(prompts, 3)
            second.draw(5)  # what it did before does not matter
            second.set_state(state)
            rest = second.draw(70 - killed_after)
            assert [position for position, _ in rest] == list(range(killed_after, 70))
            for (_, actual), (_, expected) in zip(rest, unbroken[killed_after:], strict=True):
                assert actual.id == expected.id
                assert np.array_equal(actual.tokens, expected.tokens)

    def test_can_be_read_at_any_position(self, prompts: PromptSet) -> None:
        stream = PromptStream(prompts)
        drawn = stream.draw(45)
        for position in (44, 0, 21, 20, 3):
            assert stream[position].id == drawn[position][1].id
        assert stream.draw(1)[0][0] == 45

    def test_with_other_prompts_is_refused(
        self, prompts: PromptSet, write: Callable[..., str], chatml: PreTrainedTokenizerFast
    ) -> None:
        other = open_prompts(write([released(0)]), chatml, None, max_prompt=LONG)
        with pytest.raises(UserError, match="have changed since the checkpoint"):
            PromptStream(other).set_state(PromptStream(prompts).get_state())
