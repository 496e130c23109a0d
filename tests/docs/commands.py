"""The commands of README.md and docs/, as they can be typed."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmr1_jax.config import take_option

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
SHELL = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
MAIN = ["python", "-m", "rmr1_jax.main"]
SHORT = "rmr1"


@dataclass(frozen=True)
class Command:
    """One command: where it stands, and its words without what is set before them."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"

    @property
    def is_stage(self) -> bool:
        return self.words[0] == SHORT or [*self.words[:3]] == MAIN

    @property
    def stage(self) -> str:
        if self.words[0] == SHORT:
            return self.words[1] if len(self.words) > 1 else ""
        return take_option(self.words[3:], "stage")[0] or ""

    @property
    def arguments(self) -> list[str]:
        if self.words[0] == SHORT:
            return [*self.words[2:]]
        return take_option(self.words[3:], "stage")[1]

    @property
    def options(self) -> frozenset[str]:
        """The names of what is given."""
        given = [word for word in self.words if word.startswith("--")]
        return frozenset(word.removeprefix("--").partition("=")[0] for word in given)


def commands() -> Iterator[Command]:
    """Every command of every page, in order."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in SHELL.finditer(text):
            first = text.count("\n", 0, block.start(1)) + 1
            yield from _of_block(block[1], f"{page.relative_to(REPOSITORY)}:{first}")


def _of_block(block: str, where: str) -> Iterator[Command]:
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", ";")), len(words))
            one, words = words[:end], words[end + 1 :]
            while one and VARIABLE.match(one[0]):
                one.pop(0)
            if one:
                yield Command(where, tuple(one))
