"""The token cache: made once, read at random, made again only when what it depends on changes."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmr1_jax.data import token_cache as module
from rmr1_jax.data.example import Example
from rmr1_jax.data.token_cache import TokenCache, cache_key, token_cache
from rmr1_jax.data.tokenize import Tokenized, TokenizeOptions, tokenize
from rmr1_jax.errors import UserError
from rmr1_jax.judging import chain_of_rubrics, reasoning

OPTIONS = TokenizeOptions(max_length=1000)
PROMPT = reasoning()


@pytest.fixture
def make(
    tmp_path: Path, traced: list[Example], chatml: PreTrainedTokenizerFast
) -> Callable[..., TokenCache]:
    def make(
        source: list[Example] = traced,
        options: TokenizeOptions = OPTIONS,
        progress: module.Progress | None = None,
    ) -> TokenCache:
        return token_cache(tmp_path, source, "source", chatml, PROMPT, options, progress=progress)

    return make


def test_holds_what_the_tokenizer_gives(
    make: Callable[..., TokenCache], traced: list[Example], chatml: PreTrainedTokenizerFast
) -> None:
    cache = make()
    assert len(cache) == cache.counts.kept == cache.counts.examples == 30
    for index, example in enumerate(traced):
        sequence = cache[index]
        expected = tokenize(chatml, example.messages(PROMPT), example.trace, max_length=1000)
        assert isinstance(expected, Tokenized)
        assert sequence.tokens.tolist() == expected.tokens.tolist()
        assert (sequence.loss_from, sequence.verdict) == expected[1:3]
        assert cache.ids[index] == example.id
        assert cache.lengths[index] == len(expected.tokens)
        assert cache.loss_lengths[index] == len(expected.tokens) - expected.loss_from


@pytest.mark.parametrize("at_a_time", [1, 7, 30, 256])
def test_is_the_same_however_many_are_tokenised_at_a_time(
    at_a_time: int, make: Callable[..., TokenCache], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = make()
    monkeypatch.setattr(module, "AT_A_TIME", at_a_time)
    (tmp_path / expected.key).rename(tmp_path / "other")
    seen: list[int] = []
    cache = make(progress=seen.append)
    for name in module.ARRAYS:
        assert np.array_equal(getattr(cache, name), getattr(expected, name))
    assert seen[-1] == 30 and len(seen) == -(-30 // at_a_time)


def test_counts_and_names_what_is_dropped(
    make: Callable[..., TokenCache], traced: list[Example]
) -> None:
    whole = make()
    longest = whole.counts.prompt.max
    source = [replace(traced[0], trace=None), *traced]
    cache = make(source, TokenizeOptions(longest + 10))
    counts = cache.counts
    assert counts.dropped == {"no_trace": 1}
    assert counts.truncated == sum(whole.lengths > longest + 10) > 0
    assert cache.lengths.max() == longest + 10
    assert counts.trace.max == cache.loss_lengths.max()
    assert counts.trace.mean == pytest.approx(cache.loss_lengths.mean())
    assert counts.prompt.p50 == np.median(cache.loss_from)

    cache = make(source, TokenizeOptions(longest + 2, overlong="drop"))
    counts = cache.counts
    assert set(counts.dropped) == {"no_trace", "prompt_too_long", "too_long"}
    assert counts.kept + sum(counts.dropped.values()) == counts.examples == 31
    lines = (cache.directory / "dropped.jsonl").read_text().splitlines()
    dropped = [json.loads(line) for line in lines]
    assert len(dropped) == sum(counts.dropped.values())
    assert {line["id"] for line in dropped} | set(cache.ids) == {example.id for example in source}
    assert dropped[0] == {
        "index": 0,
        "id": "pair 0",
        "reason": "no_trace",
        "detail": "there is no trace to learn",
    }


class TestUsedAgain:
    def test_without_asking_the_source(self, make: Callable[..., TokenCache]) -> None:
        class Silent(list[Example]):
            def __iter__(self) -> Iterator[Example]:
                raise AssertionError("the source was read again")

        first = make()
        again = make(Silent([]))
        assert again.key == first.key and again.counts == first.counts

    def test_in_another_process(self, make: Callable[..., TokenCache]) -> None:
        cache = make()
        copy = pickle.loads(pickle.dumps(cache))
        assert np.array_equal(copy.tokens, cache.tokens)

    def test_unless_something_it_depends_on_changes(
        self,
        chatml: PreTrainedTokenizerFast,
        make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    ) -> None:
        shorter = TokenizeOptions(max_length=999)
        keys = [
            cache_key("source", chatml, PROMPT, OPTIONS),
            cache_key("other", chatml, PROMPT, OPTIONS),
            cache_key("source", make_tokenizer("{{ messages }}"), PROMPT, OPTIONS),
            cache_key("source", chatml, chain_of_rubrics(), OPTIONS),
            cache_key("source", chatml, PROMPT, shorter),
            cache_key("source", chatml, PROMPT, replace(OPTIONS, loss_on_header=False)),
        ]
        assert len(set(keys)) == len(keys)
        assert cache_key("source", make_tokenizer(), PROMPT, OPTIONS) == keys[0]

    def test_not_if_a_killed_run_left_it_half_made(
        self, make: Callable[..., TokenCache], tmp_path: Path
    ) -> None:
        def killed(done: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(progress=killed)
        assert [path.name[-5:] for path in tmp_path.iterdir() if path.is_dir()] == [".part"]
        assert len(make()) == 30
        assert not list(tmp_path.glob("*.part"))

    @pytest.mark.parametrize("name", ["tokens", "offsets", "verdict", "counts.json"])
    def test_not_if_it_is_damaged(self, name: str, make: Callable[..., TokenCache]) -> None:
        cache = make()
        tokens, file = np.array(cache.tokens), cache.directory / name
        file.write_bytes(file.read_bytes()[:-4])
        assert np.array_equal(make().tokens, tokens)
        file.unlink()
        assert np.array_equal(make().tokens, tokens)


class TestBadInput:
    def test_nothing_left_to_learn_from(
        self, make: Callable[..., TokenCache], traced: list[Example]
    ) -> None:
        with pytest.raises(UserError, match=r"30 prompt too long.*raise max_length, which is 8"):
            make(options=TokenizeOptions(8))
        with pytest.raises(UserError, match=r"1 no trace\); give examples with traces"):
            make([replace(traced[0], trace=None)])
        with pytest.raises(UserError, match="no example to learn from"):
            make([])

    def test_a_template_that_refuses(
        self,
        make_tokenizer: Callable[..., PreTrainedTokenizerFast],
        traced: list[Example],
        tmp_path: Path,
    ) -> None:
        tokenizer = make_tokenizer("{{ raise_exception('No system role') }}")
        with pytest.raises(UserError, match="No system role"):
            token_cache(tmp_path, traced, "source", tokenizer, PROMPT, OPTIONS)

    def test_a_place_that_cannot_be_written(
        self, traced: list[Example], chatml: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            token_cache(tmp_path / "file", traced, "source", chatml, PROMPT, OPTIONS)
