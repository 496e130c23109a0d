"""The Judge on real weights: the traces that transformers would write, and clear refusals."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmr1_jax import Judge as PublicJudge
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message, Preference
from rmr1_jax.models.checkpoint import load_model
from rmr1_jax.models.huggingface import save_huggingface
from rmr1_jax.sampling.budget_forcing import CLOSING, closing_text
from rmr1_jax.sampling.judge import Judge, Judgement, SamplingOptions, choose_prompt

PAIRS = [
    Preference("1", (Message("user", "What is 2 + 3?"),), "It is 5.", "It is 6."),
    Preference(
        "2",
        (
            Message("user", "Name a colour."),
            Message("assistant", "Blue."),
            Message("user", "Another one, please {not blue}."),
        ),
        "Green.",
        "Blue.",
    ),
    Preference(
        "3", (Message("user", "Wie heißt die Hauptstadt von Österreich? 🎻"),), "Wien", "Graz"
    ),
]


pytestmark = pytest.mark.usefixtures("never_compact")


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """All but one of the simulated devices out of the way: they would share two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def whole_judge(minimind_dir: Path) -> Judge:
    return Judge.load(minimind_dir, max_num_seqs=2)


@pytest.fixture(scope="module")
def three_layers(minimind_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of the model, which compile in less than half of the time."""
    directory = tmp_path_factory.mktemp("three-layers")
    config, params = load_model(minimind_dir)
    params["layers"] = jax.tree.map(lambda leaf: leaf[np.array([0, 2, 7])], params["layers"])
    config = replace(config, num_layers=3)
    save_huggingface(params, config, directory, tokenizer_from=minimind_dir)
    return directory


@pytest.fixture(scope="module")
def judge(three_layers: Path) -> Judge:
    """It has no stop tokens, since three layers write no sentences."""
    judge = Judge.load(three_layers, max_num_seqs=2)
    judge.stop_ids = ()
    return judge


def by_index(found: Iterator[tuple[int, list[Judgement]]]) -> list[list[Judgement]]:
    return [judgements for _, judgements in sorted(found, key=lambda item: item[0])]


@pytest.mark.parametrize(
    ("used", "directory"),
    [
        ("judge", "three_layers"),
        pytest.param("whole_judge", "minimind_dir", marks=pytest.mark.nightly),
    ],
)
def test_greedy_traces_are_those_of_transformers_generate(
    used: str, directory: str, request: pytest.FixtureRequest
) -> None:
    judge: Judge = request.getfixturevalue(used)
    checkpoint: Path = request.getfixturevalue(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if not judge.stop_ids:
        model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = by_index(judge.judge(PAIRS, SamplingOptions(max_new_tokens=64)))
    for preference, [judgement] in zip(PAIRS, found, strict=True):
        prompt = torch.tensor([judge.prompt_tokens(preference)])
        with torch.no_grad():
            output = model.generate(prompt, max_new_tokens=64, do_sample=False)
        expected = output[0, prompt.shape[1] :]
        assert judgement.prompt_tokens == prompt.shape[1]
        assert judgement.trace_tokens == len(expected)
        assert judgement.trace == tokenizer.decode(expected, skip_special_tokens=True)
        logits = model(output[:, :-1]).logits[0, prompt.shape[1] - 1 :]
        logprobs = torch.log_softmax(logits, -1)[torch.arange(len(expected)), expected]
        assert judgement.logprob == pytest.approx(logprobs.sum().item(), abs=2e-3)


def test_the_prompt_is_the_chat_template_with_its_special_tokens_once(judge: Judge) -> None:
    messages = judge.prompt.messages(PAIRS[0])
    expected = judge.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert judge.prompt_tokens(PAIRS[0]) == judge.prompt_tokens(messages) == expected


@pytest.mark.parametrize("used", ["judge", pytest.param("whole_judge", marks=pytest.mark.nightly)])
def test_a_stream_is_the_judgement_piece_by_piece(
    used: str, request: pytest.FixtureRequest
) -> None:
    judge: Judge = request.getfixturevalue(used)
    options = SamplingOptions(max_new_tokens=40, temperature=0.7, seed=5)
    [[whole]] = by_index(judge.judge([PAIRS[2]], options))
    pieces, stream = [], judge.stream(PAIRS[2], options)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            last = end.value
            break
    assert last.trace == whole.trace == "".join(pieces)
    assert len(pieces) > 2
    if "\ufffd" not in whole.trace:  # three layers may write bytes that are no characters
        assert "\ufffd" not in "".join(pieces[:-1])


def test_votes_share_a_prompt_and_differ(judge: Judge) -> None:
    options = SamplingOptions(max_new_tokens=12, temperature=1.0)
    for samples in by_index(judge.judge(PAIRS, options, samples=2)):
        assert len({sample.trace for sample in samples}) == 2
        assert all(sample.finish_reason for sample in samples)


def test_a_later_start_draws_the_same_as_an_unbroken_run(judge: Judge) -> None:
    options = SamplingOptions(max_new_tokens=10, temperature=1.0)
    unbroken = by_index(judge.judge(PAIRS, options))
    later = by_index(judge.judge(PAIRS[1:], options, indices=[1, 2]))
    for [one], [other] in zip(later, unbroken[1:], strict=True):
        # Other slots are other shapes, in which some processors add in another order.
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert replace(one, logprob=other.logprob) == other


def test_an_index_for_every_preference(judge: Judge) -> None:
    with pytest.raises(ValueError, match="no index for preference 1"):
        list(judge.judge(PAIRS, SamplingOptions(max_new_tokens=2), indices=[4]))


def test_the_common_prefix_of_prompts_is_computed_once(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system message. The pair with several turns has less of it, and gives the same."""
    options = SamplingOptions(max_new_tokens=24)
    found = by_index(judge.judge(PAIRS, options))
    scheduler = judge._scheduler(1, judge.slots, 64)
    once = scheduler.work.prefill_tokens
    prefix = judge.shared_prefix()
    assert judge.tokenizer.decode(prefix).endswith("[Client Question]\n")
    monkeypatch.setattr("rmr1_jax.sampling.request_queue.SHORTEST_PREFIX", 10_000)
    assert judge.shared_prefix() == []
    expected = by_index(judge.judge(PAIRS, options))
    assert scheduler.work.prefill_tokens - once >= 2 * len(prefix) - 256
    for [one], [other] in zip(found, expected, strict=True):
        assert (one.trace, one.prompt_tokens) == (other.trace, other.prompt_tokens)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


# ---- budget forcing


@pytest.mark.nightly
def test_a_trace_over_its_budget_is_closed_and_gives_its_verdict(
    whole_judge: Judge, minimind_dir: Path
) -> None:
    judge = whole_judge
    cut = by_index(judge.judge(PAIRS, SamplingOptions(max_new_tokens=6)))
    found = by_index(judge.judge(PAIRS, SamplingOptions(max_new_tokens=50), budget=6))
    model: Any = AutoModelForCausalLM.from_pretrained(minimind_dir, dtype=torch.float32)
    a, b = judge.reader.compare_ids or (0, 0)
    for preference, [before], [judgement] in zip(PAIRS, cut, found, strict=True):
        assert before.problem == "truncated" and not before.forced
        assert judgement.forced and judgement.problem in (None, "none")
        closed = before.trace + CLOSING["chain_of_rubrics"]
        assert judgement.trace.startswith(closed)
        assert 6 < judgement.trace_tokens <= 6 + 8
        assert judgement.prompt_tokens == before.prompt_tokens
        assert judgement.verdict or preference is not PAIRS[0]
        if judgement.verdict:
            prompt = judge.prompt_tokens(preference) + judge.reader.encode(closed)
            with torch.no_grad():
                logits = model(torch.tensor([prompt])).logits[0, -1]
            expected = torch.sigmoid(logits[a] - logits[b]).item()
            assert judgement.confidence == pytest.approx(expected, abs=1e-3)


def test_every_sample_over_its_budget_is_asked_for_its_own_verdict(judge: Judge) -> None:
    options = SamplingOptions(max_new_tokens=5, temperature=1.0)
    plain = by_index(judge.judge(PAIRS, options, samples=2))
    written: list[int] = []
    found = by_index(
        judge.judge(
            PAIRS,
            options,
            samples=2,
            budget=5,
            on_progress=lambda progress: written.append(progress.tokens),
        )
    )
    for samples, cut in zip(found, plain, strict=True):
        for sample, before in zip(samples, cut, strict=True):
            assert sample.trace.startswith(before.trace + CLOSING["chain_of_rubrics"])
            assert sample.prompt_tokens == before.prompt_tokens
        assert all(sample.forced for sample in samples)
        assert len({sample.trace for sample in samples}) == 2
    assert written == sorted(written)
    assert written[-1] == sum(judgement.trace_tokens for group in found for judgement in group)


def test_cut_traces_do_not_wait_for_the_end(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmr1_jax.sampling.judge.CUT_AT_ONCE", 2)
    asked: list[int] = []

    def preferences() -> Iterator[Preference]:
        for number in range(24):
            asked.append(number)
            yield PAIRS[number % 3]

    options = SamplingOptions(max_new_tokens=2)
    stream = judge.judge(preferences(), options, budget=2)
    first, _ = next(stream)
    assert len(asked) < 24
    rest = [position for position, _ in stream]
    assert sorted([first, *rest]) == list(range(24))


def test_without_room_for_the_closing_a_trace_stays_truncated(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "max_context", len(judge.prompt_tokens(PAIRS[0])) + 8)
    [[judgement]] = by_index(judge.judge(PAIRS[:1], SamplingOptions(max_new_tokens=4), budget=4))
    assert judgement.problem == "truncated" and not judgement.forced


def test_thinking_is_ended_once() -> None:
    assert closing_text("reasoning", "<think> so").startswith("\n</think>")
    assert "</think>" not in closing_text("reasoning", "<think> so </think> Thus")
    assert closing_text("chain_of_rubrics", "<type>") == "\n\n<answer>[["


# ---- bad input


def test_a_prompt_over_the_context_is_named_and_the_others_go_on(judge: Judge) -> None:
    long = Preference("long", (Message("user", "Which?"),), "word " * 100_000, "b")
    options = SamplingOptions(max_new_tokens=4)
    found = by_index(judge.judge([PAIRS[0], long, PAIRS[1]], options))
    assert [judgements[0].problem for judgements in found][1] == "prompt_too_long"
    assert found[1][0].prompt_tokens > judge.config.max_position
    assert found[0][0].trace_tokens == 4 and found[2][0].trace_tokens == 4


def test_a_trace_cut_before_its_verdict_is_truncated_not_silent(judge: Judge) -> None:
    judgement = judge.compare("What is 2 + 3?", "5", "6", max_new_tokens=3)
    assert judgement.problem == "truncated" and judgement.verdict is None
    assert judgement.finish_reason == "length"


def test_the_response_is_shortened_where_the_context_ends(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "max_context", len(judge.prompt_tokens(PAIRS[0])) + 5)
    [[judgement]] = by_index(judge.judge(PAIRS[:1], SamplingOptions(max_new_tokens=50)))
    assert judgement.trace_tokens == 5 and judgement.finish_reason == "length"


def test_nothing_in_gives_nothing_out(judge: Judge) -> None:
    assert list(judge.judge([])) == []


def test_the_package_offers_the_judge() -> None:
    assert PublicJudge is Judge


# ---- which prompt


class Tokenizer:
    def __init__(self, chat_template: str | None):
        self.chat_template = chat_template


def test_the_prompt_given_wins_then_the_config_then_the_template(shared_data: Path) -> None:
    r1 = json.loads(
        (shared_data / "tokenizers" / "r1-distill-qwen" / "tokenizer_config.json").read_text()
    )["chat_template"]
    assert (
        choose_prompt("chain_of_rubrics", "reasoning", Tokenizer(r1))[0].style == "chain_of_rubrics"
    )
    assert choose_prompt(None, "chain_of_rubrics", Tokenizer(r1))[0].style == "chain_of_rubrics"
    assert choose_prompt(None, None, Tokenizer(r1))[0].style == "reasoning"
    assert choose_prompt(None, None, Tokenizer("{{ messages }}"))[0].style == "chain_of_rubrics"


def test_a_name_alone_never_decides(minimind_dir: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "RM-R1-DeepSeek-Distilled-Qwen-7B"
    renamed.symlink_to(minimind_dir, target_is_directory=True)
    judge = Judge.load(renamed, max_context=500)
    assert judge.max_context == 500
    assert judge.prompt.style == "chain_of_rubrics"
    assert "default" in judge.prompt_source


def test_a_mesh_that_does_not_divide_the_model_is_refused(
    minimind_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(UserError, match=r"kv_heads 2 .*tensor"):
        Judge.load(minimind_dir, mesh="tensor=8")
