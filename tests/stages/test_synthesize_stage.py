"""`--stage=synthesize` from the command line, with real HTTP servers for teachers."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rmr1_jax.judging import Preference, chain_of_rubrics
from rmr1_jax.main import main
from rmr1_jax.toy_task import TOY_PROMPT, toy_preferences
from tests import endpoint as server
from tests.endpoint import Endpoint

KEY = "sk-very-secret-0123456789"


def trace(side: str) -> str:
    return (
        "<type>Reasoning</type>\n<solution>so</solution>\n"
        f"<eval>{side} is right</eval>\n<answer>[[{side}]]</answer>"
    )


def number_of(body: dict[str, Any]) -> int:
    """Which pair a request is about."""
    match = re.search(r"Question (\d+)\?", body["messages"][-1]["content"])
    assert match is not None
    return int(match[1])


@dataclass
class Stage:
    """Teacher 1 speaks Anthropic's API, is wrong about every third pair; teacher 2 OpenAI's."""

    folder: Path
    one: Endpoint
    two: Endpoint

    def __post_init__(self) -> None:
        self.input, self.output = self.folder / "pairs.jsonl", self.folder / "out"
        self.one.text = lambda body: trace("AB"[(number_of(body) + (number_of(body) % 3 == 0)) % 2])
        self.two.text = lambda body: trace("AB"[number_of(body) % 2])

    @staticmethod
    def pair(number: int, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"pair {number}",
            "question": f"Question {number}?",
            "response_a": "yes",
            "response_b": "no",
            "label": "AB"[number % 2],
            **fields,
        }

    def run(self, pairs: Sequence[Any] | int | None = None, *options: str) -> int:
        if isinstance(pairs, int):
            pairs = [self.pair(number) for number in range(pairs)]
        if pairs is not None:
            lines = [pair if isinstance(pair, str) else json.dumps(pair) for pair in pairs]
            self.input.write_text("".join(f"{line}\n" for line in lines))
        return main(
            [
                "--stage=synthesize",
                f"--input={self.input}",
                f"--output={self.output}",
                "--teacher1.kind=anthropic",
                "--teacher1.model=claude",
                f"--teacher1.url={self.one.url}",
                "--teacher1.key_variable=ONE_KEY",
                "--teacher2.kind=openai",
                "--teacher2.model=o3",
                f"--teacher2.url={self.two.url}",
                "--teacher2.key_variable=TWO_KEY",
                *options,
            ]
        )

    @property
    def asked(self) -> tuple[int, int]:
        return len(self.one.requests), len(self.two.requests)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / name).read_text().splitlines()]

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.output / "report.json").read_text())
        return report


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr("rmr1_jax.main.quiet_libraries", lambda: None)
    monkeypatch.setattr("rmr1_jax.main.keep_compiled_programs", lambda: None)
    monkeypatch.setattr("rmr1_jax.synthesis.passes.BACKOFF", 0.001)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # nothing pulls the plug here
    monkeypatch.setenv("ONE_KEY", f"{KEY}-one")
    monkeypatch.setenv("TWO_KEY", f"{KEY}-two")
    with Endpoint() as one, Endpoint() as two:
        yield Stage(tmp_path, one, two)


class TestTwoPasses:
    def test_traces_come_in_the_order_of_the_input_and_the_layout_of_the_released_set(
        self, stage: Stage
    ) -> None:
        stage.one.script += [server.slow(0.1)]  # the first is finished last
        assert stage.run(7) == 0
        assert stage.asked == (7, 3)
        lines = stage.lines("traces.jsonl")
        assert [line["id"] for line in lines] == [f"pair {n}" for n in range(7)]
        assert [line["pass"] for line in lines] == [2, 1, 1, 2, 1, 1, 2]
        assert [line["teacher"] for line in lines[:2]] == ["o3", "claude"]
        assert [line["ground_truth"] for line in lines[:2]] == ["model_a", "model_b"]
        assert [line["winner"] for line in lines[:2]] == [trace("A"), trace("B")]
        assert all(line["source"] == "pairs" for line in lines)
        system, user = lines[0]["context_messages"]
        assert system == {"role": "system", "content": chain_of_rubrics().system}
        assert user["role"] == "user" and user["content"].startswith("[Client Question]\n")
        assert "verdict" not in user["content"], "what teacher 2 was told stays out"

    def test_teacher_2_is_told_the_verdict_and_the_wrong_trace(self, stage: Stage) -> None:
        stage.run(1)
        system, user = stage.two.requests[0]["body"]["messages"]
        assert system["content"] == stage.one.requests[0]["body"]["system"]
        assert user["content"].startswith(stage.one.requests[0]["body"]["messages"][0]["content"])
        assert "[[A]]" in user["content"] and trace("B") in user["content"]

    def test_everything_is_counted_and_nothing_disappears(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage.two.text = lambda body: {
            0: trace("A"),
            3: trace("A"),
            6: trace("A").replace("</eval>", "The correct verdict was given.</eval>"),
        }[number_of(body)]
        assert stage.run(7) == 1
        report = stage.report()
        assert report["pairs"] == 7 and report["traces"] == 5
        assert report["accepted"] == {"pass1": 4, "pass2": 1}
        assert report["rejected_in_pass1"] == {"wrong verdict": 3}
        assert report["rejected"] == {
            "wrong verdict": 1,
            "mentions a verdict that was given": 1,
        }
        assert report["spend"]["pass2"] == {
            "teacher": "o3",
            "requests": 3,
            "replies": 3,
            "retries": 0,
            "failures": 0,
            "prompt_tokens": 33,
            "completion_tokens": 21,
            "lost_tokens": 0,
        }
        rejects = stage.lines("rejects.jsonl")
        assert [(line["id"], line["status"]) for line in rejects] == [
            ("pair 3", "rejected"),
            ("pair 6", "rejected"),
        ]
        assert rejects[0]["text"] == trace("A")
        shown = capsys.readouterr()
        assert "accepted in pass 1" in shown.out and "refused: wrong verdict" in shown.out
        assert "2 rejected: see" in shown.err

    def test_a_trace_that_was_cut_off_goes_to_teacher_2(self, stage: Stage) -> None:
        stage.one.script.append(server.answer(trace("B"), finish="length"))
        assert stage.run([stage.pair(1)]) == 0
        assert stage.report()["rejected_in_pass1"] == {"cut off at max_new_tokens": 1}
        assert stage.lines("traces.jsonl")[0]["pass"] == 2


class TestGoesOn:
    def test_after_a_kill_at_any_byte_only_what_is_missing_is_asked(self, stage: Stage) -> None:
        stage.run(4, "--teacher1.concurrency=1", "--teacher2.concurrency=1")
        traces = (stage.output / "traces.jsonl").read_bytes()
        log = stage.output / "replies.jsonl"
        whole = log.read_bytes()
        for kept in range(0, len(whole), 97):
            stage.one.requests.clear()
            stage.two.requests.clear()
            log.write_bytes(whole[:kept])
            missing = whole.count(b"\n") - whole[:kept].count(b"\n")
            assert stage.run() == 0
            assert sum(stage.asked) == missing, f"after a kill at byte {kept}"
            assert (stage.output / "traces.jsonl").read_bytes() == traces

    def test_a_finished_run_asks_nothing_and_needs_no_key(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage.run(4)
        asked = stage.asked
        monkeypatch.delenv("ONE_KEY")
        monkeypatch.delenv("TWO_KEY")
        assert stage.run() == 0 and stage.asked == asked

    def test_more_pairs_are_asked_when_the_limit_is_raised(self, stage: Stage) -> None:
        stage.run(6, "--limit=2")
        assert stage.asked == (2, 1) and len(stage.lines("traces.jsonl")) == 2
        stage.run(None, "--limit=5", "--teacher1.concurrency=2", "--max_requests=1000")
        assert stage.asked == (5, 2) and len(stage.lines("traces.jsonl")) == 5

    def test_a_pair_that_changed_is_asked_anew(self, stage: Stage) -> None:
        stage.run(3)
        stage.run([stage.pair(0), stage.pair(1, response_a="perhaps"), stage.pair(2)])
        assert stage.asked == (4, 1)

    @pytest.mark.parametrize(
        ("option", "difference"),
        [
            ("--teacher1.model=opus", "teacher1.model: 'claude' there, 'opus' now"),
            ("--teacher2.temperature=0", "teacher2.temperature: None there, 0.0 now"),
            ("--prompt=reasoning", "prompt_sha256: "),
        ],
    )
    def test_other_settings_are_refused_with_the_difference(
        self,
        stage: Stage,
        capsys: pytest.CaptureFixture[str],
        option: str,
        difference: str,
    ) -> None:
        plain = "--teacher2.model=gpt-4o"  # it takes a temperature
        stage.run(3, plain)
        before = {path: path.read_bytes() for path in stage.output.iterdir()}
        assert stage.run(None, plain, option) == 2
        assert difference in capsys.readouterr().err
        assert {path: path.read_bytes() for path in stage.output.iterdir()} == before

    def test_a_damaged_log_is_named(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        stage.run(3)
        log = stage.output / "replies.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(lines[0] + b'{"key": "pass1-x", "pass": 3}\n' + lines[1])
        assert stage.run() == 2
        assert "replies.jsonl, line 2: is no record of this stage" in capsys.readouterr().err

    def test_an_interrupt_keeps_what_was_answered(
        self, stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(handler: Any, body: dict[str, Any]) -> None:
            signalled.set()
            os.kill(os.getpid(), 2)
            server.slow(0.2)(handler, body)

        signalled = threading.Event()
        stage.one.script += [server.answer(trace("A")), server.answer(trace("B")), interrupt]
        assert stage.run(5, "--teacher1.concurrency=1") == 130
        assert signalled.is_set() and "2 replies are in" in capsys.readouterr().err
        assert not (stage.output / "traces.jsonl").exists(), "nobody takes a part for the whole"
        assert stage.run() == 0 and len(stage.one.requests) == 3 + 3


class TestTrouble:
    def test_a_failed_pair_is_counted_and_the_next_run_asks_it_alone(self, stage: Stage) -> None:
        stage.one.script += [server.status(500)] * 2
        options = ("--teacher1.attempts=2", "--teacher1.concurrency=1")
        assert stage.run([stage.pair(1), stage.pair(2)], *options) == 1
        assert stage.report()["failed"] == {"status 500": 1}
        assert [line["id"] for line in stage.lines("rejects.jsonl")] == ["pair 1"]
        assert stage.run(None, *options) == 0
        assert len(stage.one.requests) == 4 and stage.lines("rejects.jsonl") == []
        assert stage.report()["spend"]["pass1"]["requests"] == 4
        assert stage.report()["spend"]["pass1"]["retries"] == 1

    def test_a_wrong_key_stops_at_once(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage.one.script += [server.status(401)] * 20
        assert stage.run(20, "--teacher1.concurrency=1") == 2
        assert len(stage.one.requests) == 1
        assert "put the right one into ONE_KEY" in capsys.readouterr().err

    def test_the_cap_holds_over_runs_and_says_how_to_go_on(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stage.run(7, "--max_requests=5") == 1
        assert sum(stage.asked) == 5
        assert "raise the cap and run the same command again" in capsys.readouterr().err
        assert stage.report()["open"] == 4 and "max_requests=5" in stage.report()["stopped"]
        assert stage.run(None, "--max_requests=5") == 1 and sum(stage.asked) == 5
        assert stage.run(None, "--max_requests=10") == 0 and stage.asked == (7, 3)

    def test_the_keys_are_in_nothing_that_was_written_or_printed(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        troubles = (429, 500, 403)
        stage.one.script += [server.status(code, f"{KEY}-one is busy") for code in troubles]
        stage.run(3, "--debug", "--teacher1.concurrency=1")
        stage.two.script += [server.status(400, f"{KEY}-two", x=KEY), server.hang_up]
        stage.run(None, "--debug")
        stage.run(None, "--debug")
        assert stage.report()["traces"] == 3
        shown = capsys.readouterr()
        assert "Traceback" in shown.err and KEY not in shown.out + shown.err
        for path in stage.output.rglob("*"):
            assert KEY.encode() not in path.read_bytes(), path.name
        # ...though they were sent.
        assert stage.one.requests[0]["headers"]["x-api-key"] == f"{KEY}-one"
        assert stage.two.requests[0]["headers"]["authorization"] == f"Bearer {KEY}-two"


class TestBatches:
    def test_the_same_traces_as_asking_directly(self, stage: Stage, tmp_path: Path) -> None:
        stage.run(7)
        directly = stage.lines("traces.jsonl")
        stage.output = tmp_path / "batches"
        assert stage.run(None, "--batch=write") == 0
        self.answer(stage, "pass1.anthropic", stage.one)
        assert stage.run(None, "--batch=read") == 0
        assert stage.report()["accepted"] == {"pass1": 4, "pass2": 0}
        assert stage.run(None, "--batch=write") == 0
        self.answer(stage, "pass2.openai", stage.two)
        assert stage.run(None, "--batch=read") == 0
        assert stage.lines("traces.jsonl") == directly
        assert stage.asked == (7, 3), "nothing more was asked directly"

    @staticmethod
    def answer(stage: Stage, stem: str, endpoint: Endpoint) -> None:
        lines = []
        for request in stage.lines(f"{stem}.jsonl"):
            anthropic = "params" in request
            path = "/messages" if anthropic else "/chat/completions"
            body = request["params" if anthropic else "body"]
            reply = server.whole_reply(path, endpoint.text(body))
            lines.append(
                {"custom_id": request["custom_id"]}
                | (
                    {"result": {"type": "succeeded", "message": reply}}
                    if anthropic
                    else {"response": {"status_code": 200, "body": reply}, "error": None}
                )
            )
        results = stage.output / f"{stem}.results.jsonl"
        results.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))

    def test_asking_directly_what_is_under_way_is_refused(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage.run(3, "--batch=write")
        assert stage.run() == 2 and stage.asked == (0, 0)
        assert "3 requests have no result yet" in capsys.readouterr().err

    def test_other_settings_than_the_request_files_were_written_with_are_refused(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage.run(3, "--batch=write")
        assert stage.run(None, "--batch=write", "--teacher1.model=opus") == 2
        assert "teacher1.model: 'claude' there, 'opus' now" in capsys.readouterr().err
        assert not (stage.output / "pass1.anthropic.2.jsonl").exists()

    def test_a_missing_result_file_is_named(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage.run(3, "--batch=write")
        assert stage.run(None, "--batch=read") == 2
        error = capsys.readouterr().err
        assert "pass1.anthropic.results.jsonl or pass2.openai.results.jsonl" in error

    def test_a_cap_bounds_what_is_written(self, stage: Stage) -> None:
        assert stage.run(3, "--batch=write", "--max_requests=2") == 1
        assert len(stage.lines("pass1.anthropic.jsonl")) == 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("pairs", "options", "error"),
        [
            ([], (), "holds no records"),
            ([{"id": 1}], (), "holds no pairs"),
            ([Stage.pair(0), Stage.pair(1, label=None)], (), "1 of 2 pairs have no label .*pair 1"),
            (2, ("--input=nowhere.jsonl",), "nowhere.jsonl: cannot be read"),
            (2, ("--teacher1.key_variable=NO_KEY",), "variable NO_KEY, which is not set"),
            (2, ("--teacher2.key_variable=NO_KEY",), "variable NO_KEY, which is not set"),
            (2, ("--teacher2.url=http://127.0.0.1:1/v1",), "--teacher2.url: nothing can be"),
            (2, (f"--teacher1.url=http://{KEY}@host/v1",), "--teacher1.url holds more than"),
            (2, (f"--teacher1.key_variable={KEY}",), "must be the name of an environment"),
            (2, ("--teacher2.temperature=1",), "--teacher2.temperature: o3 takes no temperature"),
            (2, ("--teacher1.kind=local", "--teacher1.url="), "model=claude: there is no such"),
            (2, ("--teacher1.model=",), "--teacher1.kind=anthropic needs --teacher1.model"),
            (2, ("--batch=send",), "--batch=send is unknown"),
        ],
    )
    def test_is_refused_before_anything_is_asked(
        self,
        stage: Stage,
        capsys: pytest.CaptureFixture[str],
        pairs: Any,
        options: tuple[str, ...],
        error: str,
    ) -> None:
        assert stage.run(pairs, *options) == 2
        assert stage.asked == (0, 0)
        shown = capsys.readouterr().err
        assert re.search(error, shown) and KEY not in shown
        assert not (stage.output / "traces.jsonl").exists()

    def test_lines_that_are_no_pairs_are_rejected_and_the_rest_is_asked(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stage.run([stage.pair(1), "{half a line", stage.pair(2)]) == 1
        assert stage.asked == (2, 0) and stage.report()["input_rejects"] == 1
        assert [line["line"] for line in stage.lines("input.rejects.jsonl")] == [2]
        assert "input.rejects.jsonl" in capsys.readouterr().err


class TestProgram:
    @staticmethod
    def record(pair: Preference) -> dict[str, Any]:
        return {
            "id": pair.id,
            "question": pair.context[0].content,
            "response_a": pair.response_a,
            "response_b": pair.response_b,
            "label": pair.label,
        }

    def test_teaches_the_toy_task_with_its_short_prompt(self, stage: Stage) -> None:
        stage.input.write_text(
            "".join(json.dumps(self.record(pair)) + "\n" for pair in toy_preferences(40, 5))
        )
        files = [f"--input={stage.input}", f"--output={stage.output}"]
        assert main(["--stage=synthesize", *files]) == 0
        lines = stage.lines("traces.jsonl")
        assert len(lines) == 40 and {line["pass"] for line in lines} == {1, 2}
        assert lines[0]["context_messages"][0]["content"] == TOY_PROMPT.system

    def test_knows_no_other_task(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        stage.input.write_text(json.dumps(stage.pair(1)))
        files = [f"--input={stage.input}", f"--output={stage.output}"]
        assert main(["--stage=synthesize", *files]) == 2
        assert "kind=program judges pairs of the toy task only" in capsys.readouterr().err

    def test_with_no_option_the_task_is_made_first(
        self, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from rmr1_jax.data.example import Example
        from rmr1_jax.data.preference_store import StoreWriter

        def prepare(config: Any) -> int:
            made.append(config.output)
            with StoreWriter(config.output, "toy_task") as writer:
                split = writer.split("distillation")
                for pair in toy_preferences(20, 7):
                    split.append(Example(pair.id, "toy_task", pair.label, pair))
                writer.finish({})
            return 0

        made: list[str] = []
        module = ModuleType("rmr1_jax.stages.prepare_stage")
        vars(module)["run"] = prepare
        monkeypatch.setitem(sys.modules, "rmr1_jax.stages.prepare_stage", module)
        monkeypatch.chdir(tmp_path)
        assert main(["--stage=synthesize"]) == 0
        assert main(["--stage=synthesize", "--limit=10"]) == 0
        assert made == ["data/toy_task"]
        lines = (tmp_path / "data/toy_task_traces/traces.jsonl").read_text().splitlines()
        assert len(lines) == 10 and json.loads(lines[0])["source"] == "toy_task"


class TestLocal:
    @staticmethod
    def judge(monkeypatch: pytest.MonkeyPatch, say: Callable[[str], Any]) -> list[str]:
        """Put a judge that answers chat messages in the place of the real one."""
        loaded: list[str] = []

        class Judge:
            @classmethod
            def load(cls, path: str) -> "Judge":
                loaded.append(path)
                return cls()

            def judge(
                self, messages: Iterable[Any], options: Any, *, indices: Iterable[int]
            ) -> Iterator[tuple[int, list[Any]]]:
                asked = list(enumerate(messages))
                for position, [*_, user] in reversed(asked):
                    text = say(user["content"])
                    yield (
                        position,
                        [
                            SimpleNamespace(
                                trace=text or "",
                                problem=None if text else "prompt_too_long",
                                finish_reason="stop",
                                prompt_tokens=3,
                                trace_tokens=5,
                            )
                        ],
                    )

        module = ModuleType("rmr1_jax.sampling.judge")
        vars(module).update(Judge=Judge)
        monkeypatch.setitem(sys.modules, "rmr1_jax.sampling.judge", module)
        return loaded

    def run(self, stage: Stage) -> int:
        local = ["--teacher1.kind=local", f"--teacher1.model={stage.folder}", "--teacher1.url="]
        return stage.run(5, *local)

    def test_a_checkpoint_teaches_pass_1(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = self.judge(monkeypatch, lambda text: trace("A"))
        assert self.run(stage) == 0
        assert loaded == [str(stage.folder)] and stage.asked == (0, 2)
        assert stage.report()["accepted"] == {"pass1": 3, "pass2": 2}
        assert stage.report()["spend"]["pass1"]["completion_tokens"] == 25
        assert stage.lines("traces.jsonl")[0]["teacher"] == str(stage.folder)

    def test_a_prompt_that_does_not_fit_is_counted(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.judge(monkeypatch, lambda text: None if "Question 2?" in text else trace("A"))
        assert self.run(stage) == 1
        [reason] = stage.report()["failed"]
        assert "the prompt's 3 tokens do not fit" in reason

    def test_an_error_of_the_engine_is_everybodys(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(text: str) -> str:
            raise RuntimeError("out of memory")

        self.judge(monkeypatch, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            self.run(stage)
