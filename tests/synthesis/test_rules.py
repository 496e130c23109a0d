"""What teacher 2 is told, and which traces are kept."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmr1_jax.judging import answer
from rmr1_jax.synthesis.rules import first_problem, second_messages, second_problem
from rmr1_jax.synthesis.teachers import Reply

CHAT = (
    "<type>Chat</type>\n<rubric>Tone (60%), brevity (40%)"
    "<justify>the client is upset</justify></rubric>\n"
    "<eval><quote_A>Sure!</quote_A> is curt, <summary_B>B comforts</summary_B></eval>\n"
    "<answer>[[B]]</answer>"
)
REASONING = (
    "<type>Reasoning</type>\n<solution>2 + 2 = 4</solution>\n"
    "<eval><quote_B>4</quote_B> is the correct answer.</eval>\n<answer>[[B]]</answer>"
)
PROMPT = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "A {or} B?"}]


def reply(text: str, finish_reason: str = "stop") -> Reply:
    return Reply(text, finish_reason, 1, 1)


class TestPass1:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[[B]]", None),
            ("[[B]]" + "." * 95, None),
            ("[[B]]" + "." * 96, "no verdict"),
            ("[[A]] [[B]]", None),  # as published: the other is not looked for
            ("[[A]]", "wrong verdict"),
            ("", "no verdict"),
        ],
    )
    def test_looks_at_the_last_100_characters(self, text: str, problem: str | None) -> None:
        assert first_problem(reply(text), "B") == problem

    def test_a_trace_that_was_cut_off_is_not_kept_whatever_it_says(self) -> None:
        assert first_problem(reply(CHAT, "length"), "B") == "cut off at max_new_tokens"

    def test_a_refusal_is_called_by_its_name(self) -> None:
        assert first_problem(reply("I cannot.", "refusal"), "B") == "ended by refusal"


class TestAppendix:
    def test_states_the_verdict_and_attaches_the_wrong_trace(self) -> None:
        system, user = second_messages(PROMPT, "B", "Wrong {trace}. [[A]]")
        assert system == PROMPT[0]
        assert user["content"].startswith("A {or} B?\n")
        appendix = user["content"].removeprefix("A {or} B?")
        assert "[[B]]" in appendix and "Chatbot B's response is the better one" in appendix
        assert "thorough" in appendix and "guideline" in appendix
        assert "Previous (Wrong) Judgement]\nWrong {trace}. [[A]]\n[The End" in appendix

    def test_leaves_the_messages_of_pass_1_alone(self) -> None:
        before = [dict(message) for message in PROMPT]
        second_messages(PROMPT, "A", "")
        assert before == PROMPT

    def test_does_without_a_system_message(self) -> None:
        [user] = second_messages(PROMPT[1:], "A", "wrong")
        assert user["role"] == "user" and "[[A]]" in user["content"]


class TestPass2:
    @staticmethod
    def problem(text: str, label: str = "B", has_rubrics: bool = True) -> str | None:
        return second_problem(reply(text), "A" if label == "A" else "B", has_rubrics=has_rubrics)

    @pytest.mark.parametrize("text", [CHAT, REASONING, f"{CHAT}\n", f"Let me see.\n{REASONING}"])
    def test_keeps_a_whole_judgement(self, text: str) -> None:
        assert self.problem(text) is None

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            ("[[B]]", "[[A]]", "wrong verdict"),
            ("<answer>", "[[A]]? <answer>", "two verdicts"),
            ("<answer>[[B]]</answer>", "", "no verdict"),
            ("</answer>", "</answer> I am sure.", "does not end with the answer tag"),
            ("<answer>[[B]]</answer>", "[[B]]", "does not end with the answer tag"),
            ("<type>Chat</type>", "", "no <type>"),
            ("Chat", "Other", "no <type>"),
            ("Chat", "Reasoning", "no <solution>"),
            ("<rubric>", "", "no <rubric>"),
            ("</rubric>", "", "no <rubric>"),
            ("the client is upset", " ", "no <justify>"),
            ("<eval>", "", "no <eval>"),
            ("</eval>", "", "no <eval>"),
        ],
    )
    def test_names_what_is_wrong(self, old: str, new: str, problem: str) -> None:
        text = CHAT.replace(old, new)
        assert text != CHAT and self.problem(text) == problem

    def test_a_reasoning_judgement_needs_its_solution(self) -> None:
        assert self.problem(REASONING.replace("2 + 2 = 4", "")) == "no <solution>"

    def test_the_reasoning_prompt_asks_for_no_sections(self) -> None:
        text = "B is right.</think>So B.\n<answer>[[B]]</answer>"
        assert self.problem(text, has_rubrics=False) is None
        assert self.problem(text) == "no <type>"

    def test_a_trace_that_was_cut_off_is_not_kept(self) -> None:
        cut = replace(reply(CHAT), finish_reason="length")
        assert second_problem(cut, "B", has_rubrics=True) == "cut off at max_new_tokens"

    @pytest.mark.parametrize(
        "leak",
        [
            "The previous (wrong) judgement overlooked this.",
            "Unlike the earlier judgment, I find",
            "The wrong judgement said",
            "The correct verdict is B.",
            "Since the given verdict is [[B]]",
            "The ground-truth label says so.",
            "As the Note to the Judge says,",
            "We are told that Chatbot B's response is better.",
            "I was informed that B is right.",
        ],
    )
    def test_a_trace_that_gives_away_that_it_knew_is_not_kept(self, leak: str) -> None:
        problem = self.problem(CHAT.replace("is curt", f"is curt. {leak}"))
        assert problem is not None and problem.startswith(("mentions", "says"))

    @pytest.mark.parametrize(
        "harmless",
        [
            "The correct answer is 5, and only B gives it.",
            "<quote_A>the previous judgement of the court</quote_A>",
            "B names the label of the axis.",
            "A told that B vitamins help.",
            "The verdict is clear.",
        ],
    )
    def test_what_any_judge_may_say_is_kept(self, harmless: str) -> None:
        assert self.problem(REASONING.replace("<eval>", f"<eval>{harmless} ")) is None

    @given(st.text(), st.sampled_from(["A", "B"]), st.booleans())
    def test_nothing_is_kept_that_does_not_end_with_the_label(
        self, text: str, label: str, has_rubrics: bool
    ) -> None:
        text += CHAT if len(text) % 2 else ""
        if self.problem(text, label, has_rubrics) is None:
            assert answer(text, "reward").verdict == label
