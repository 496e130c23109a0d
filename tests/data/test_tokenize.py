"""What is learnt of a conversation: the published boundary, the whole trace, its end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rmr1_jax.data.tokenize import (
    Messages,
    Refusal,
    Tokenized,
    TokenizeOptions,
    check_template,
    tokenize,
    tokenize_all,
)
from rmr1_jax.errors import UserError

SYSTEM_USER = [
    {"role": "system", "content": "Judge."},
    {"role": "user", "content": "Which is better? 漢字 é"},
]
USER = SYSTEM_USER[1:]
TRACE = "<rubric>[[B]] or not</rubric>\nThe first. <answer>[[A]]</answer>"
THINKING = "<think>\nIs it [[B]]?\n</think>\n\nThe first. <answer>[[A]]</answer>"


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen2.5")


@pytest.fixture(scope="module")
def r1(shared_data: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "r1-distill-qwen")


def learn(
    tokenizer: Any, messages: Messages, trace: str, *, max_length: int = 200, **options: Any
) -> Tokenized:
    result = tokenize(tokenizer, messages, trace, max_length=max_length, **options)
    assert isinstance(result, Tokenized)
    return result


def parts(tokenizer: Any, result: Tokenized) -> tuple[str, str]:
    """(prompt, what is learnt) as text."""
    tokens, start = result.tokens, result.loss_from
    return tokenizer.decode(tokens[:start]), tokenizer.decode(tokens[start:])


class TestQwen:
    """Golden: the text of Qwen2.5's template, spelled out."""

    PROMPT = (
        "<|im_start|>system\nJudge.<|im_end|>\n"
        "<|im_start|>user\nWhich is better? 漢字 é<|im_end|>\n"
    )

    def test_learns_the_header_as_published(self, qwen: Any) -> None:
        result = learn(qwen, SYSTEM_USER, TRACE)
        header = "<|im_start|>assistant\n"
        assert parts(qwen, result) == (self.PROMPT, f"{header}{TRACE}<|im_end|>")
        assert result.tokens[-1] == qwen.eos_token_id == 151645
        assert result.tokens[result.loss_from] == 151644

    def test_or_only_the_trace(self, qwen: Any) -> None:
        result = learn(qwen, SYSTEM_USER, TRACE, loss_on_header=False)
        header = "<|im_start|>assistant\n"
        assert parts(qwen, result) == (f"{self.PROMPT}{header}", f"{TRACE}<|im_end|>")

    @pytest.mark.parametrize("trace", [TRACE, THINKING, " spaces before", "spaces after \n\n"])
    def test_the_prompt_is_tokenised_as_it_is_when_asked(self, trace: str, qwen: Any) -> None:
        result = learn(qwen, SYSTEM_USER, trace, loss_on_header=False)
        asked = qwen.apply_chat_template(SYSTEM_USER, tokenize=False, add_generation_prompt=True)
        prompt = qwen(asked, add_special_tokens=False)["input_ids"]
        assert result.tokens[: result.loss_from].tolist() == prompt

    def test_adds_no_special_token_of_its_own(self, qwen: Any) -> None:
        plain = qwen.apply_chat_template(
            [*SYSTEM_USER, {"role": "assistant", "content": TRACE}], tokenize=False
        )
        tokens = qwen(plain.rstrip("\n"), add_special_tokens=False)["input_ids"]
        assert learn(qwen, SYSTEM_USER, TRACE).tokens.tolist() == tokens


class TestR1Distilled:
    """Golden: templates that cut the thoughts out of an assistant's message."""

    @pytest.mark.parametrize("trace", [TRACE, THINKING])
    @pytest.mark.parametrize("loss_on_header", [True, False])
    def test_the_trace_survives_whole(self, loss_on_header: bool, trace: str, r1: Any) -> None:
        result = learn(r1, USER, trace, loss_on_header=loss_on_header)
        prompt, learnt = parts(r1, result)
        assert prompt + learnt == (
            "<｜begin▁of▁sentence｜><｜User｜>Which is better? 漢字 é<｜Assistant｜>"  # noqa: RUF001
            f"{trace}<｜end▁of▁sentence｜>"  # noqa: RUF001
        )
        assert learnt.startswith("<｜Assistant｜>") == loss_on_header  # noqa: RUF001

    def test_there_is_one_bos(self, r1: Any) -> None:
        tokens = learn(r1, USER, THINKING).tokens.tolist()
        assert tokens.count(r1.bos_token_id) == 1 and tokens[0] == r1.bos_token_id


class TestTemplates:
    HEADER = "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

    def test_thoughts_that_the_generation_prompt_opens_are_opened_once(
        self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        """Newer R1 templates: `<think>` in the generation prompt, cut from the history."""
        tokenizer = make_tokenizer(
            self.HEADER + "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
        )
        for trace in (THINKING, THINKING.removeprefix("<think>\n")):
            result = learn(tokenizer, USER, trace, loss_on_header=False)
            prompt, learnt = parts(tokenizer, result)
            assert prompt.endswith("assistant\n<think>\n")
            assert learnt == THINKING.removeprefix("<think>\n") + "<|im_end|>"

    def test_that_trim_messages(
        self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        tokenizer = make_tokenizer(
            self.HEADER + "{{ m.content | trim }}<|im_end|>{% endfor %}" + self.ASK
        )
        result = learn(tokenizer, USER, f"\n{TRACE}\n", loss_on_header=False)
        assert parts(tokenizer, result)[1] == f"{TRACE}<|im_end|>"

    def test_that_do_not_end_with_the_end_of_sequence(
        self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        tokenizer = make_tokenizer(self.HEADER + "{{ m.content }}\n{% endfor %}" + self.ASK)
        result = learn(tokenizer, USER, TRACE, loss_on_header=False)
        assert parts(tokenizer, result)[1] == f"{TRACE}<|im_end|>"

    def test_a_token_across_the_boundary_is_learnt(
        self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        """Without a special token between them, BPE joins the prompt's end and the trace."""
        tokenizer = make_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
        assert tokenizer.tokenize("answer") == ["answer"]
        result = learn(tokenizer, [{"role": "user", "content": "is it? ans"}], "wer [[A]]")
        assert parts(tokenizer, result) == ("is it?", " answer [[A]]<|im_end|>")

    def test_that_refuse_a_system_message_are_refused_before_work_starts(
        self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ) -> None:
        tokenizer = make_tokenizer(
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}"
            "{% endif %}" + self.HEADER + "{{ m.content }}<|im_end|>{% endfor %}" + self.ASK
        )
        check_template(tokenizer, USER)
        with pytest.raises(UserError, match=r"system, user \(No system role\); use a prompt"):
            check_template(tokenizer, SYSTEM_USER)
        refusal = tokenize(tokenizer, SYSTEM_USER, TRACE, max_length=99)
        assert refusal == Refusal("template_refuses", "No system role")

    def test_that_are_absent(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
        with pytest.raises(UserError, match="no chat template"):
            check_template(make_tokenizer(None), USER)


class TestLengths:
    def test_a_prompt_that_leaves_no_room_is_refused(self, chatml: PreTrainedTokenizerFast) -> None:
        prompt = learn(chatml, SYSTEM_USER, TRACE).loss_from
        refusal = tokenize(chatml, SYSTEM_USER, TRACE, max_length=prompt + 2)
        assert isinstance(refusal, Refusal) and refusal.reason == "prompt_too_long"
        assert isinstance(tokenize(chatml, SYSTEM_USER, TRACE, max_length=prompt + 3), Tokenized)

    def test_a_long_trace_is_truncated_and_ends(self, chatml: PreTrainedTokenizerFast) -> None:
        whole = learn(chatml, SYSTEM_USER, TRACE)
        assert not whole.truncated
        cut = learn(chatml, SYSTEM_USER, TRACE, max_length=len(whole.tokens) - 5)
        assert cut.truncated
        assert cut.tokens.tolist() == [*whole.tokens[:-6].tolist(), chatml.eos_token_id]

    def test_or_dropped(self, chatml: PreTrainedTokenizerFast) -> None:
        length = len(learn(chatml, SYSTEM_USER, TRACE).tokens)
        for max_length, kept in ((length, True), (length - 1, False)):
            result = tokenize(chatml, SYSTEM_USER, TRACE, max_length=max_length, overlong="drop")
            assert isinstance(result, Tokenized) == kept
        assert isinstance(result, Refusal) and result.reason == "too_long"

    @pytest.mark.parametrize("trace", [None, "", " \n"])
    def test_no_trace_is_refused(self, trace: str | None, chatml: PreTrainedTokenizerFast) -> None:
        refusal = tokenize(chatml, USER, trace, max_length=99)
        assert isinstance(refusal, Refusal) and refusal.reason == "no_trace"


class TestVerdict:
    @pytest.mark.parametrize("trace, letter", [(TRACE, "A"), (THINKING, "A"), ("[[B]]", "B")])
    def test_is_the_token_of_the_last_letter(
        self, trace: str, letter: str, chatml: PreTrainedTokenizerFast
    ) -> None:
        result = learn(chatml, SYSTEM_USER, trace)
        assert letter in chatml.decode(result.tokens[result.verdict : result.verdict + 1])
        rest = str(chatml.decode(result.tokens[result.verdict + 1 :]))
        assert "[[" not in rest and rest.startswith("]]")

    def test_is_not_looked_for_in_the_prompt(self, chatml: PreTrainedTokenizerFast) -> None:
        asked = [{"role": "user", "content": "Say [[A]] or [[B]]."}]
        assert learn(chatml, asked, "I cannot say.").verdict == -1

    def test_is_none_where_it_was_cut_off(self, chatml: PreTrainedTokenizerFast) -> None:
        whole = learn(chatml, SYSTEM_USER, TRACE)
        for length, kept in ((whole.verdict + 2, True), (whole.verdict + 1, False)):
            cut = learn(chatml, SYSTEM_USER, TRACE, max_length=length)
            assert cut.verdict == (whole.verdict if kept else -1)

    def test_is_the_letter_in_the_golden_vocabulary(self, qwen: Any) -> None:
        result = learn(qwen, SYSTEM_USER, TRACE)
        assert qwen.decode([result.tokens[result.verdict]]) == "A"


def test_a_batch_gives_what_each_gives_alone(chatml: PreTrainedTokenizerFast) -> None:
    examples = [(SYSTEM_USER, TRACE), (USER, None), (USER, THINKING), (USER, "x" * 500)]
    options = TokenizeOptions(100, loss_on_header=False)
    for (messages, trace), result in zip(
        examples, tokenize_all(chatml, examples, options), strict=True
    ):
        alone = tokenize(chatml, messages, trace, max_length=100, loss_on_header=False)
        assert [str(part) for part in alone] == [str(part) for part in result]
