"""The questions of the toy task: each can be drawn, asked, read back and solved.

A problem read back from the text of its question equals the one that was asked, so whoever has a
preference can find out which response is right without any record of how it was made.
"""

import random
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

_WORDS = """
apple bell bird boat book bread cat cloud cup dog door fire fish forest garden hill horse lamp leaf
moon music rain ring river ship song star stone tree wind
"""
WORDS = tuple(_WORDS.split())
NUMBERS = {"three": 3, "four": 4, "five": 5}


class Problem(Protocol):
    """A question with responses that are right and responses that are wrong."""

    type: ClassVar[Literal["Reasoning", "Chat"]]

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        """Any problem of this kind."""

    @classmethod
    def read(cls, question: str) -> Self | None:
        """The problem that a question asks, or None where it is of another kind."""

    def question(self, rng: random.Random) -> str:
        """The problem in one of several wordings."""

    def responses(self, rng: random.Random) -> tuple[str, str]:
        """A right response and a wrong one, of the same kinds of wording."""

    def is_right(self, response: str) -> bool:
        """Whether a response is right."""

    @classmethod
    def phrases(cls) -> list[str]:
        """The fixed pieces of its questions and responses."""


class _Closed(ABC):
    """A problem with one answer, given at the end of a short sentence."""

    type: ClassVar[Literal["Reasoning", "Chat"]] = "Reasoning"
    QUESTIONS: ClassVar[tuple[str, ...]]
    RESPONSES: ClassVar[tuple[str, ...]] = (
        "It is {}",
        "I get {}",
        "The answer is {}",
        "Answer: {}",
    )

    @property
    @abstractmethod
    def answer(self) -> str: ...

    @abstractmethod
    def mistake(self, rng: random.Random) -> str:
        """A wrong answer that one could take for the right one."""

    def question(self, rng: random.Random) -> str:
        return rng.choice(self.QUESTIONS).format(**vars(self))

    def responses(self, rng: random.Random) -> tuple[str, str]:
        answers = self.answer, self.mistake(rng)
        right, wrong = (rng.choice(self.RESPONSES).format(answer) for answer in answers)
        return right, wrong

    def is_right(self, response: str) -> bool:
        return self.given(response) == self.answer

    @staticmethod
    def given(response: str) -> str:
        """The answer that a response gives: its last word."""
        return response.rpartition(" ")[2]

    @classmethod
    def phrases(cls) -> list[str]:
        # The space before an answer is a token of its own: a copy starts after it in any wording.
        return [piece.rstrip() for piece in _pieces(*cls.RESPONSES)] + _pieces(*cls.QUESTIONS)


@dataclass(frozen=True)
class Arithmetic(_Closed):
    """A sum or a difference of three-digit numbers of small digits: no column carries.

    The digits of its answer are different ones.
    """

    a: int
    sign: Literal["+", "-"]
    b: int

    QUESTIONS = ("What is {a}{sign}{b}?", "How much is {a}{sign}{b}?", "Can you do {a}{sign}{b}?")

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        one, other = (
            int("".join(str(rng.randint(lowest, 4)) for lowest in (1, 0, 0))) for _ in range(2)
        )
        problem = cls(one, "+", other) if rng.random() < 0.5 else cls(one + other, "-", other)
        # A digit that comes twice makes answers hard to compare for a model that looks up what
        # followed a digit before.
        return problem if len(set(problem.answer)) == 3 else cls.draw(rng)

    @classmethod
    def read(cls, question: str) -> Self | None:
        match = re.search(r" (\d{3})([+-])(\d{3})\?$", question)
        if match is None:
            return None
        problem = cls(int(match[1]), "+" if match[2] == "+" else "-", int(match[3]))
        within = all(0 <= result <= 9 for _, _, result in problem.columns())
        return problem if within and len(problem.answer) == 3 else None

    def columns(self) -> list[tuple[int, int, int]]:
        """The two digits of each column, and their sum or difference."""
        return [
            (a, b, a + b if self.sign == "+" else a - b)
            for a, b in zip(map(int, str(self.a)), map(int, str(self.b)), strict=True)
        ]

    @property
    def answer(self) -> str:
        return str(self.a + self.b if self.sign == "+" else self.a - self.b)

    def mistake(self, rng: random.Random) -> str:
        """One to three digits are others: ones that such answers often have there."""
        places = rng.sample(range(3), rng.randint(1, 3))
        while True:
            other, digits = self.draw(rng), list(self.answer)
            for place in places:
                digits[place] = other.answer[place]
            wrong = "".join(digits)
            if other.sign == self.sign and wrong != self.answer and len(set(wrong)) == 3:
                return wrong


@dataclass(frozen=True)
class Sorting(_Closed):
    """Four or five different digits, or letters, to put in order."""

    items: str

    QUESTIONS = (
        "Can you sort {items}?",
        "How do you sort {items}?",
        "What is the order of {items}?",
    )

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(_items(rng))

    @classmethod
    def read(cls, question: str) -> Self | None:
        match = re.search(r"(?:sort|order of) (\w+)\?$", question)
        return cls(match[1]) if match else None

    @property
    def answer(self) -> str:
        return "".join(sorted(self.items))

    def mistake(self, rng: random.Random) -> str:
        """In falling order, or with two exchanged."""
        items = sorted(self.items, reverse=True)
        if rng.random() < 0.5:
            items.reverse()
            one, other = rng.sample(range(len(items)), 2)
            items[one], items[other] = items[other], items[one]
        return "".join(items)


@dataclass(frozen=True)
class Counting(_Closed):
    """How many of some different digits are odd, or of some different letters are vowels."""

    items: str

    QUESTIONS = ("How many {what} are in {items}?", "Can you count the {what} in {items}?")
    VOWELS, ODD = "aei", "13579"

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(_items(rng))

    @classmethod
    def read(cls, question: str) -> Self | None:
        match = re.search(r"(?:vowels|odd digits)(?: are)? in (\w+)\?$", question)
        return cls(match[1]) if match else None

    @property
    def what(self) -> str:
        return "odd digits" if self.items.isdigit() else "vowels"

    @property
    def answer(self) -> str:
        return str(sum(map(self.counts, self.items)))

    def counts(self, item: str) -> bool:
        """Whether this is one of those to count."""
        return item in (self.ODD if self.items.isdigit() else self.VOWELS)

    def mistake(self, rng: random.Random) -> str:
        """One or two off: a count that such items often have, so that no count looks wrong."""
        while True:
            other = self.draw(rng)
            off = abs(int(other.answer) - int(self.answer))
            if other.what == self.what and 1 <= off <= 2 and int(other.answer) <= len(self.items):
                return other.answer

    def question(self, rng: random.Random) -> str:
        return rng.choice(self.QUESTIONS).format(what=self.what, items=self.items)

    @classmethod
    def phrases(cls) -> list[str]:
        filled = [
            wording.format(what=what, items="{}")
            for wording in cls.QUESTIONS
            for what in ("odd digits", "vowels")
        ]
        return _pieces(*filled)


@dataclass(frozen=True)
class Format:
    """A few words to write, in a form that the client demands."""

    words: tuple[str, str]
    demand: str

    type: ClassVar[Literal["Reasoning", "Chat"]] = "Chat"
    QUESTIONS = (
        "Write about {} and {} {}.",
        "Say something on {} and {} {}.",
    )
    DEMANDS = (
        *(f"in exactly {number} words" for number in NUMBERS),
        "in capitals",
        "in small letters",
        "with ! at the end",
        "with ? at the end",
    )

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        first, second = rng.sample(WORDS, 2)
        return cls((first, second), rng.choice(cls.DEMANDS))

    @classmethod
    def read(cls, question: str) -> Self | None:
        match = re.fullmatch(r"(?:Write about|Say something on) (\w+) and (\w+) (.+)\.", question)
        return cls((match[1], match[2]), match[3]) if match and match[3] in cls.DEMANDS else None

    def question(self, rng: random.Random) -> str:
        return rng.choice(self.QUESTIONS).format(*self.words, self.demand)

    def responses(self, rng: random.Random) -> tuple[str, str]:
        right, wrong = (self._words(rng, rng.choice((3, 4, 5))) for _ in range(2))
        capitals, end = rng.random() < 0.3, rng.choice((".", "!", "?"))
        cases, ends = [capitals, capitals], [end, end]
        if self.count is not None:
            right = self._words(rng, self.count)
            wrong = self._words(
                rng, rng.choice([n for n in (2, 3, 4, 5, 6) if abs(n - self.count) == 1])
            )
        elif self.end is not None:
            ends = [self.end, rng.choice([mark for mark in ".!?" if mark != self.end])]
        else:
            cases = [self.demand == "in capitals", self.demand != "in capitals"]
        texts = [
            (" ".join(words).upper() if upper else " ".join(words)) + mark
            for words, upper, mark in zip((right, wrong), cases, ends, strict=True)
        ]
        return texts[0], texts[1]

    def is_right(self, response: str) -> bool:
        if self.count is not None:
            return len(response.split()) == self.count
        if self.end is not None:
            return response.endswith(self.end)
        return response.isupper() if self.demand == "in capitals" else response.islower()

    @classmethod
    def phrases(cls) -> list[str]:
        return [
            "Write about",
            "Say something on",
            " and",
            *(f" {demand}" for demand in cls.DEMANDS),
        ]

    @property
    def count(self) -> int | None:
        """How many words are demanded, where that is the demand."""
        return next((n for name, n in NUMBERS.items() if name in self.demand.split()), None)

    @property
    def end(self) -> str | None:
        """The mark that is demanded at the end, where that is the demand."""
        return self.demand[5] if self.demand.startswith("with") else None

    def _words(self, rng: random.Random, count: int) -> list[str]:
        others = [word for word in WORDS if word not in self.words]
        words = [*self.words, *rng.sample(others, count - 2)]
        rng.shuffle(words)
        return words


def _items(rng: random.Random) -> str:
    return "".join(rng.sample(rng.choice(("0123456789", "abcdefghij")), rng.choice((4, 5))))


def _pieces(*templates: str) -> list[str]:
    """What stands around the places of the templates."""
    return [piece for template in templates for piece in re.split(r"\{\w*\}", template) if piece]


KINDS: tuple[type[Problem], ...] = (Arithmetic, Sorting, Counting, Format)


def read_problem(question: str) -> Problem | None:
    """The problem that a question of the toy task asks; None for any other question."""
    for kind in KINDS:
        if problem := kind.read(question):
            return problem
    return None
