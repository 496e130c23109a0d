"""The programmed teacher of the toy task: full traces, right or with a slip."""

from dataclasses import replace

import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message, Preference, Side, answer, parse
from rmr1_jax.toy_task import toy_preferences
from rmr1_jax.toy_task.problems import Arithmetic
from rmr1_jax.toy_task.scripted_teacher import ScriptedTeacher, scripted_trace
from rmr1_jax.toy_task.toy_traces import judge

SAMPLE = list(toy_preferences(2000, seed=3))


def pair(question: str, a: str, b: str, label: Side | None = None) -> Preference:
    return Preference("pair", (Message("user", question),), a, b, label)


@pytest.mark.parametrize("right", [True, False])
def test_every_trace_has_all_parts_and_the_verdict_asked_for(right: bool) -> None:
    for preference in SAMPLE:
        trace = scripted_trace(preference, right=right, seed=0)
        verdict = parse(trace)
        assert (verdict.verdict == preference.label) == right
        assert (
            answer(trace, "reward") == answer(trace, "distillation") == answer(trace, "evaluation")
        )
        assert verdict.evaluation
        assert [quote.side for quote in verdict.quotes] == ["A", "B"]
        if verdict.type == "Reasoning":
            assert verdict.solution
        else:
            assert verdict.type == "Chat"
            assert verdict.rubric
            assert verdict.justify


def test_a_quote_stands_in_the_response() -> None:
    for preference in SAMPLE:
        for quote in parse(scripted_trace(preference, right=True, seed=0)).quotes:
            response = preference.response_a if quote.side == "A" else preference.response_b
            if quote.kind == "quote":
                assert quote.text in response


def test_a_sum_is_worked_out_column_by_column_and_compared_up_to_a_difference() -> None:
    trace = scripted_trace(pair("What is 147+252?", "It is 399", "It is 389"), right=True, seed=0)
    assert trace == (
        "<type>Reasoning</type>\n<solution>1+2=3,4+5=9,7+2=9 = 399</solution>\n"
        "<eval><quote_A>399</quote_A> fits <quote_B>38</quote_B> fails</eval>\n"
        "<answer>[[A]]</answer>"
    )


def test_haste_decides_about_sums_at_a_glance() -> None:
    sum_of_two = pair("What is 147+252?", "It is 399", "It is 389")
    assert scripted_trace(sum_of_two, right=True, seed=0, hasty=True) == (
        "<type>Reasoning</type>\n<solution>at a glance</solution>\n"
        "<eval>A fits B fails</eval>\n<answer>[[A]]</answer>"
    )
    assert "[[B]]" in scripted_trace(sum_of_two, right=False, seed=0, hasty=True)
    order = pair("How do you sort 4213?", "I get 1234", "I get 4321")
    assert scripted_trace(order, right=True, seed=0, hasty=True) == scripted_trace(
        order, right=True, seed=0
    )


def test_a_slip_changes_the_solution_not_only_the_verdict() -> None:
    trace = scripted_trace(
        pair("How many vowels are in bagi?", "I get 2", "I get 1"), right=False, seed=0
    )
    verdict = parse(trace)
    assert verdict.verdict == "B"
    assert verdict.solution is not None
    assert verdict.solution.endswith(" = 1")


def test_the_label_is_not_looked_at() -> None:
    for preference in SAMPLE[:200]:
        bare = replace(preference, label=None)
        assert scripted_trace(bare, right=True, seed=0) == scripted_trace(
            preference, right=True, seed=0
        )


def test_swapped_responses_swap_the_verdict() -> None:
    for preference in SAMPLE[:200]:
        trace = scripted_trace(preference.swapped(), right=True, seed=0)
        assert parse(trace).verdict == preference.swapped().label


@pytest.mark.parametrize("accuracy", [0.0, 0.75, 0.9, 1.0])
def test_a_teacher_is_right_as_often_as_it_says(accuracy: float) -> None:
    teacher = ScriptedTeacher(accuracy, seed=1)
    right = [parse(teacher.write(preference)).verdict == preference.label for preference in SAMPLE]
    tolerance = 0.03 if 0 < accuracy < 1 else 0
    assert sum(right) / len(right) == pytest.approx(accuracy, abs=tolerance)


def test_a_teacher_writes_the_same_whenever_it_is_asked() -> None:
    first, again = ScriptedTeacher(0.5, seed=1), ScriptedTeacher(0.5, seed=1)
    traces = [first.write(preference) for preference in SAMPLE[:100]]
    assert [again.write(preference) for preference in reversed(SAMPLE[:100])] == traces[::-1]
    other = ScriptedTeacher(0.5, seed=2)
    assert [other.write(preference) for preference in SAMPLE[:100]] != traces


@pytest.mark.parametrize(
    ("preference", "says"),
    [
        (pair("Who wrote Faust?", "Goethe", "Schiller", "A"), "toy task only"),
        (pair("What is 147+252?", "It is 398", "It is 389", "A"), "none of the responses"),
        (pair("What is 147+252?", "It is 399", "I get 399", "A"), "both of the responses"),
        (pair("What is 147+252?", "many", "It is 399", "B"), "none that the toy task gives"),
    ],
)
def test_what_it_cannot_judge_is_refused(preference: Preference, says: str) -> None:
    with pytest.raises(UserError, match=says):
        scripted_trace(preference, right=False, seed=0)


def test_a_teacher_is_as_hasty_as_asked() -> None:
    teacher = ScriptedTeacher(1.0, haste=0.6, seed=1)
    sums = [p for p in SAMPLE if isinstance(judge(p)[0], Arithmetic)]
    share = sum("at a glance" in teacher.write(p) for p in sums) / len(sums)
    assert share == pytest.approx(0.6, abs=4 * (0.24 / len(sums)) ** 0.5)
