"""A judge without a model, so that the stage around it can be tested in milliseconds."""

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rmr1_jax.config import SamplingOptions
from rmr1_jax.judging import Preference, chain_of_rubrics, parse
from rmr1_jax.main import main
from tests.stages.tiny_grpo import write_model, write_pairs


@dataclass(frozen=True)
class Judgement:
    verdict: Any
    problem: Any
    type: Any
    rubric: str | None
    solution: str | None
    evaluation: str | None
    trace: str
    prompt_tokens: int
    trace_tokens: int
    finish_reason: Any
    logprob: float | None
    confidence: float | None = None
    forced: bool = False


@dataclass(frozen=True)
class Progress:
    tokens: int
    running: int


@dataclass
class FakeJudge:
    """Chooses by a hash of the pair, and of the random stream if it samples.

    Runs `slots` pairs at a time and finishes them in any order. A response that holds "slow" is
    finished last; one that holds "none", "both", "truncated" or "too long" has that problem.
    """

    slots: int = 4
    prompt: Any = field(default_factory=chain_of_rubrics)
    prompt_source: str = "the default"
    loads: list[dict[str, Any]] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)  # ids, as they were asked for
    interrupt_after: int | None = None
    max_context: int = 4096
    asked: list[dict[str, Any]] = field(default_factory=list)  # how `judge` was called

    def prompt_tokens(self, preference: Preference) -> list[int]:
        """As many as the pair has characters, about."""
        if "too long" in preference.response_a:
            return [0] * 9000
        return [0] * (len(preference.response_a) + len(preference.response_b))

    def judge(
        self,
        preferences: Iterable[Preference],
        options: SamplingOptions,
        *,
        samples: int = 1,
        indices: Iterable[int] | None = None,
        budget: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[tuple[int, list[Judgement]]]:
        self.asked.append({"samples": samples, "budget": budget, "options": options})
        queue, tokens = enumerate(zip(preferences, indices or count(), strict=False)), 0
        shuffle = random.Random(0)
        running: list[tuple[int, tuple[Preference, int]]] = []
        while True:
            running += islice(queue, self.slots - len(running))
            if not running:
                return
            fast = [item for item in running if "slow" not in item[1][0].response_a] or running
            running.remove(item := shuffle.choice(fast))
            position, (preference, index) = item
            if self.interrupt_after is not None and len(self.judged) == self.interrupt_after:
                raise KeyboardInterrupt
            self.judged.append(preference.id)
            group = [self.one(preference, options, index, n) for n in range(samples)]
            tokens += sum(judgement.trace_tokens for judgement in group)
            if on_progress:
                on_progress(Progress(tokens, len(running)))
            yield position, group

    def stream(
        self, preference: Preference, options: SamplingOptions
    ) -> Generator[str, None, Judgement]:
        judgement = self.one(preference, options, 0, 0)
        yield from judgement.trace.split(" ")
        return judgement

    def one(
        self, preference: Preference, options: SamplingOptions, index: int, sample: int
    ) -> Judgement:
        text = f"{preference.context} {preference.response_a} {preference.response_b}"
        if options.temperature > 0:
            text += f" {options.seed} {index} {sample}"
        side = "AB"[hashlib.sha256(text.encode()).digest()[0] % 2]
        answer = f"<answer>[[{side}]]</answer>"
        if "none" in preference.response_a:
            answer = ""
        if "both" in preference.response_a:
            answer = "[[A]] [[B]]"
        trace = f"<type>Chat</type><rubric>r {sample}</rubric><eval>é</eval>{answer}"
        parsed = parse(trace)
        judgement = Judgement(
            verdict=parsed.verdict,
            problem=parsed.problem,
            type=parsed.type,
            rubric=parsed.rubric,
            solution=parsed.solution,
            evaluation=parsed.evaluation,
            trace=trace,
            prompt_tokens=100,
            trace_tokens=10,
            finish_reason="stop",
            logprob=-1.5,
        )
        if "truncated" in preference.response_a:
            return replace(judgement, verdict=None, problem="truncated", finish_reason="length")
        if "too long" in preference.response_a:
            return Judgement(
                None, "prompt_too_long", None, None, None, None, "", 9000, 0, None, None
            )
        return judgement


@pytest.fixture
def fake_judge(monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    """Stands where the stage imports its judge from; `Judge.load` gives this very judge."""
    judge = FakeJudge()

    class Judge:
        @classmethod
        def load(cls, path: str, **options: Any) -> FakeJudge:
            judge.loads.append({"path": path, **options})
            return judge

    module = ModuleType("rmr1_jax.sampling.judge")
    vars(module).update(Judge=Judge, Judgement=Judgement, Progress=Progress)
    monkeypatch.setitem(sys.modules, "rmr1_jax.sampling.judge", module)
    return judge


@dataclass
class JudgeStage:
    """`--stage=judge` from one input to one output, as the command line runs it."""

    folder: Path

    def __post_init__(self) -> None:
        self.model, self.input = self.folder / "model", self.folder / "pairs.jsonl"
        self.output = self.folder / "verdicts.jsonl"
        self.info = self.folder / "verdicts.jsonl.run.json"
        self.rejects_file = self.folder / "verdicts.rejects.jsonl"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")

    @staticmethod
    def pair(number: int, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"pair {number}",
            "question": f"Question {number}?",
            "response_a": f"yes {number}",
            "response_b": f"no {number}",
            **fields,
        }

    def run(self, pairs: Sequence[dict[str, Any] | str] | None = None, *options: str) -> int:
        """Write the pairs, if given, and judge the input. Returns the exit status."""
        if pairs is not None:
            lines = [line if isinstance(line, str) else json.dumps(line) for line in pairs]
            self.input.write_text("".join(f"{line}\n" for line in lines))
        files = [f"--input={self.input}", f"--output={self.output}"]
        return main(["--stage=judge", f"--model={self.model}", *files, *options])

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def ids(self) -> list[str]:
        return [record["id"] for record in self.records()]

    def rejects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.rejects_file.read_text().splitlines()]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """Keeps `main` from changing the whole process, and runs from reporting to anyone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmr1_jax.main.quiet_libraries", lambda: None)
        patch.setattr("rmr1_jax.main.keep_compiled_programs", lambda: None)
        patch.delenv("WANDB_MODE", raising=False)
        patch.delenv("WANDB_API_KEY", raising=False)
        yield


@pytest.fixture(scope="session")
def programs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled programs are kept for the other runs of a test session."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def compiled_once(programs_dir: Path) -> Iterator[None]:
    """What several runs of a module have in common is compiled by the first."""
    with changed(
        jax_compilation_cache_dir=str(programs_dir), jax_persistent_cache_min_compile_time_secs=0.0
    ):
        compilation_cache.reset_cache()
        yield
    compilation_cache.reset_cache()


@contextmanager
def changed(**settings: Any) -> Iterator[None]:
    """Settings of jax, for a while."""
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture
def stage(tmp_path: Path, fake_judge: FakeJudge, alone: None) -> JudgeStage:
    return JudgeStage(tmp_path)


@pytest.fixture
def asked_to_stop_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str], None]:
    """(class, method) -> this process is sent SIGTERM whenever that begins."""

    def patch(owner: type, method: str) -> None:
        own = getattr(owner, method)

        def signalled(*given: Any, **named: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return own(*given, **named)

        monkeypatch.setattr(owner, method, signalled)

    return patch


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random judge of the toy task, as a Hugging Face checkpoint."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen labelled pairs."""
    return write_pairs(tmp_path_factory.mktemp("tiny") / "pairs.jsonl")
