"""Equal pairs and nearly equal ones."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.data.dedup import PERMUTATIONS, content_hash, near_duplicates, signature
from rmr1_jax.data.example import Example
from rmr1_jax.data.ngrams import hash_runs, words
from rmr1_jax.judging import Message, Preference


def example(question: str, a: str = "yes", b: str = "no") -> Example:
    preference = Preference("1", (Message("user", question),), a, b, "A")
    return Example("1", "set", "A", preference)


def swapped(given: Example) -> Example:
    assert given.preference is not None
    return replace(given, label="B", preference=given.preference.swapped())


def rendered(text: str, system: str = "Judge.") -> Example:
    return Example("1", "set", "A", prompt=(Message("system", system), Message("user", text)))


class TestContent:
    def test_is_the_same_in_either_order(self) -> None:
        assert content_hash(example("Q")) == content_hash(swapped(example("Q")))

    def test_differs_with_any_text(self) -> None:
        others = [example("Q "), example("Q", "yes!"), example("Q", "yes", "n"), rendered("Q")]
        assert len({content_hash(other) for other in [example("Q"), *others]}) == 5

    def test_does_not_mix_question_and_answer_up(self) -> None:
        assert content_hash(example("ab", "c")) != content_hash(example("a", "bc"))


@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(1, 6), st.integers(0, 30))
def test_equal_runs_of_words_have_equal_hashes(text: list[str], n: int, start: int) -> None:
    runs = [tuple(text[place : place + n]) for place in range(len(text) - n + 1)]
    hashes = hash_runs(text, n)
    assert len(hashes) == len(runs)
    assert len(set(hashes.tolist())) == len(set(runs))
    assert np.array_equal(hash_runs(text[start:], n), hashes[start:])


def test_words_are_told_apart_in_any_script() -> None:
    assert words("Café, NO: 3+4 naïve_x") == ["café", "no", "3", "4", "naïve_x"]
    assert words("3+4", signs=True) == ["3", "+", "4"]
    assert words("我爱你 ok") == ["我", "爱", "你", "ok"]


def vocabulary(count: int, seed: int) -> list[str]:
    return [f"w{random.Random(seed * 7919 + number).randrange(10**6)}" for number in range(count)]


def jaccard(a: list[str], b: list[str]) -> float:
    first, second = ({tuple(text[n : n + 5]) for n in range(len(text) - 4)} for text in (a, b))
    return len(first & second) / len(first | second)


class TestSignature:
    @pytest.mark.parametrize("changed", [0, 3, 30, 200])
    def test_estimates_the_jaccard_similarity(self, changed: int) -> None:
        text = vocabulary(400, 1)
        other = text[: 400 - changed] + vocabulary(changed, 2)
        one, two = (signature(example(" ".join(said))) for said in (text, other))
        assert np.mean(one == two) == pytest.approx(jaccard(text, other), abs=0.13)

    def test_is_the_same_in_either_order(self) -> None:
        one = example(" ".join(vocabulary(50, 1)), "first of all", "and second")
        assert np.array_equal(signature(one), signature(swapped(one)))

    def test_tells_signs_apart(self) -> None:
        one, two = example("what is 3 + 4 + 5 ?"), example("what is 3 - 4 - 5 ?")
        assert np.mean(signature(one) == signature(two)) < 0.6

    def test_looks_past_the_system_message_of_a_released_prompt(self) -> None:
        text = " ".join(vocabulary(50, 1))
        assert np.array_equal(signature(rendered(text)), signature(rendered(text, "Other.")))


def one_by_one(signatures: np.ndarray, examples: list[int], threshold: float) -> list[bool]:
    """Every pair compared, earliest first."""
    kept: list[int] = []
    drop = []
    for index in examples:
        near = any(np.mean(signatures[index] == signatures[other]) >= threshold for other in kept)
        drop.append(near)
        if not near:
            kept.append(index)
    return drop


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.7, 0.9, 1.0]))
def test_near_duplicates_are_those_that_comparing_every_pair_finds(
    seed: int, threshold: float
) -> None:
    generator = np.random.default_rng(seed)
    signatures = generator.integers(0, 2**32, (60, PERMUTATIONS), dtype=np.uint32)
    for index in generator.permutation(60)[:30]:
        # Far from the threshold, where hashing might miss a pair.
        origin = int(generator.integers(0, 60))
        signatures[index] = signatures[origin]
        places = generator.permutation(PERMUTATIONS)[: generator.choice([0, 2, 90])]
        signatures[index, places] += np.uint32(1)
    examples = np.sort(generator.permutation(60)[:50])
    found = near_duplicates(signatures, examples, threshold)
    assert found.tolist() == one_by_one(signatures, examples.tolist(), threshold)


def test_nothing_is_dropped_where_nothing_is_alike() -> None:
    signatures = np.random.default_rng(0).integers(0, 2**32, (500, PERMUTATIONS), dtype=np.uint32)
    assert not near_duplicates(signatures, np.arange(500), 0.5).any()
    assert near_duplicates(signatures, np.arange(0), 0.5).shape == (0,)
