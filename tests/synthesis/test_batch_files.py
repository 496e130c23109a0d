"""Files for the vendors' batch APIs, and their results."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.data.example import Example
from rmr1_jax.data.preference_file import RejectsFile
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message, Preference, chain_of_rubrics
from rmr1_jax.synthesis.batch_files import BatchFiles, read_results, under_way, write_requests
from rmr1_jax.synthesis.budget import Budget
from rmr1_jax.synthesis.reply_cache import ReplyCache
from rmr1_jax.synthesis.teachers import AnthropicFormat, OpenAIFormat
from rmr1_jax.synthesis.two_pass import Synthesis
from tests.endpoint import whole_reply

RIGHT = "<type>Reasoning</type><solution>4</solution><eval>A is right</eval><answer>[[A]]</answer>"
WRONG = RIGHT.replace("[[A]]", "[[B]]")


class Log:
    """A log without the stage around it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def append(self, record: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class Distillation:
    """Anthropic in pass 1, OpenAI in pass 2, and a vendor who answers as told."""

    def __init__(self, folder: Path, count: int = 6) -> None:
        self.folder, self.log = folder, Log(folder / "replies.jsonl")
        self.first = BatchFiles(folder, 1, AnthropicFormat("claude", 100))
        self.second = BatchFiles(folder, 2, OpenAIFormat("o3", 100))
        self.examples = [
            Example(str(n), "test", "A", Preference(str(n), (Message("user", "2+2?"),), "4", "5"))
            for n in range(count)
        ]
        self.rejects = RejectsFile(folder / "rejects.jsonl")

    @property
    def synthesis(self) -> Synthesis:
        """As a new run finds it."""
        return Synthesis(
            self.examples,
            chain_of_rubrics(),
            ReplyCache(self.log),
            teachers={1: ["claude"], 2: ["o3"]},
            names={1: "claude", 2: "o3"},
        )

    def write(self, files: BatchFiles, budget: Budget | None = None, **limits: int) -> list[str]:
        written = write_requests(files, self.synthesis, budget or Budget(), **limits)
        return [path.name for path in written.files]

    def read(self, files: BatchFiles) -> tuple[int, int, int, int]:
        read = read_results(files, self.synthesis, "a teacher", self.rejects)
        return read.replies, read.errors, read.known, read.broken

    def results(self, name: str, lines: Sequence[Any]) -> None:
        text = "".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
        )
        (self.folder / name).write_text(text)

    def statuses(self) -> list[str]:
        return [outcome.status for outcome in self.synthesis.outcomes()]


def requests(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def succeeded(request: dict[str, Any], text: str) -> dict[str, Any]:
    """The line of a result file, in the vendor's format that the request is in."""
    if "params" in request:
        result = {"type": "succeeded", "message": whole_reply("/v1/messages", text)}
        return {"custom_id": request["custom_id"], "result": result}
    body = whole_reply("/v1/chat/completions", text)
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}


@pytest.fixture
def distillation(tmp_path: Path) -> Iterator[Distillation]:
    yield Distillation(tmp_path)


class TestRequests:
    def test_anthropic(self, distillation: Distillation) -> None:
        assert distillation.write(distillation.first) == ["pass1.anthropic.jsonl"]
        lines = requests(distillation.folder / "pass1.anthropic.jsonl")
        assert len({line["custom_id"] for line in lines}) == 6
        # Anthropic's rule for a custom_id: up to 64 letters, digits, hyphens and underscores.
        assert all(
            len(line["custom_id"]) <= 64 and line["custom_id"].replace("-", "").isalnum()
            for line in lines
        )
        assert set(lines[0]) == {"custom_id", "params"}
        params = lines[0]["params"]
        assert (params["model"], params["max_tokens"]) == ("claude", 100)
        assert params["system"] == chain_of_rubrics().system
        assert [message["role"] for message in params["messages"]] == ["user"]

    def test_openai(self, tmp_path: Path) -> None:
        distillation = Distillation(tmp_path)
        files = BatchFiles(tmp_path, 1, OpenAIFormat("o3", 100))
        distillation.write(files)
        line = requests(tmp_path / "pass1.openai.jsonl")[0]
        assert set(line) == {"custom_id", "method", "url", "body"}
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        assert line["body"]["max_completion_tokens"] == 100

    def test_split_by_number(self, distillation: Distillation) -> None:
        names = distillation.write(distillation.first, most_requests=4)
        assert names == ["pass1.anthropic.jsonl", "pass1.anthropic.2.jsonl"]
        assert [len(requests(distillation.folder / name)) for name in names] == [4, 2]

    def test_split_by_size(self, distillation: Distillation) -> None:
        names = distillation.write(distillation.first, most_bytes=8000)
        sizes = [(distillation.folder / name).stat().st_size for name in names]
        assert len(names) > 1 and max(sizes) <= 8000
        assert sum(len(requests(distillation.folder / name)) for name in names) == 6

    def test_what_is_under_way_is_not_written_again(self, distillation: Distillation) -> None:
        distillation.write(distillation.first)
        assert distillation.write(distillation.first) == []
        (distillation.folder / "pass1.anthropic.jsonl").unlink()  # it was never sent
        assert distillation.write(distillation.first) == ["pass1.anthropic.jsonl"]

    def test_no_more_than_the_budget_allows(self, distillation: Distillation) -> None:
        distillation.write(distillation.first, Budget(max_requests=4))
        assert len(requests(distillation.folder / "pass1.anthropic.jsonl")) == 4
        # Those under way count.
        assert distillation.write(distillation.first, Budget(max_requests=4)) == []
        distillation.write(distillation.first, Budget(max_requests=5))
        assert len(requests(distillation.folder / "pass1.anthropic.2.jsonl")) == 1

    def test_a_damaged_request_file_is_named(self, distillation: Distillation) -> None:
        (distillation.folder / "pass1.anthropic.jsonl").write_text('{"custom_id": "x"}\n{"cus\n')
        with pytest.raises(UserError, match=r"pass1\.anthropic\.jsonl, line 2: is no request"):
            distillation.write(distillation.first)


class TestResults:
    def test_both_passes_in_any_order(self, distillation: Distillation) -> None:
        distillation.write(distillation.first)
        asked = requests(distillation.folder / "pass1.anthropic.jsonl")
        lines = [succeeded(r, WRONG if n < 2 else RIGHT) for n, r in enumerate(asked)]
        distillation.results("pass1.anthropic.results.jsonl", lines[::-1])
        assert distillation.read(distillation.first) == (6, 0, 0, 0)
        assert distillation.statuses() == ["open"] * 2 + ["accepted"] * 4

        assert distillation.write(distillation.second) == ["pass2.openai.jsonl"]
        asked = requests(distillation.folder / "pass2.openai.jsonl")
        assert all(WRONG in line["body"]["messages"][-1]["content"] for line in asked)
        distillation.results("pass2.openai.results.jsonl", [succeeded(r, RIGHT) for r in asked])
        assert distillation.read(distillation.second) == (2, 0, 0, 0)
        assert distillation.statuses() == ["accepted"] * 6

    def test_reading_twice_changes_nothing(self, distillation: Distillation) -> None:
        distillation.write(distillation.first)
        one, two, *_ = requests(distillation.folder / "pass1.anthropic.jsonl")
        expired = {"custom_id": two["custom_id"], "result": {"type": "expired"}}
        distillation.results("pass1.anthropic.results.jsonl", [succeeded(one, RIGHT), expired])
        assert distillation.read(distillation.first) == (1, 1, 0, 0)
        log = distillation.log.path.read_bytes()
        assert distillation.read(distillation.first) == (0, 0, 2, 0)
        assert distillation.log.path.read_bytes() == log

    @pytest.mark.parametrize(
        ("result", "reason"),
        [
            ({"type": "expired"}, "expired"),
            ({"type": "canceled"}, "canceled"),
            (
                {"type": "errored", "error": {"error": {"type": "api_error", "message": "oops"}}},
                "api_error: oops",
            ),
        ],
    )
    def test_errors_of_anthropic_are_asked_again_by_the_next_write(
        self, distillation: Distillation, result: dict[str, Any], reason: str
    ) -> None:
        distillation.write(distillation.first)
        failed = requests(distillation.folder / "pass1.anthropic.jsonl")[3]["custom_id"]
        distillation.results(
            "pass1.anthropic.results.jsonl", [{"custom_id": failed, "result": result}]
        )
        assert distillation.read(distillation.first) == (0, 1, 0, 0)
        assert distillation.synthesis.report().failed == {reason: 1}
        for again in (2, 3):
            name = f"pass1.anthropic.{again}.jsonl"
            assert distillation.write(distillation.first) == [name]
            [line] = requests(distillation.folder / name)
            assert line["custom_id"] == failed
            assert distillation.write(distillation.first) == [], "it is under way again"
            distillation.results(
                f"pass1.anthropic.results-{again}.jsonl", [{"custom_id": failed, "result": result}]
            )
            distillation.read(distillation.first)

    @pytest.mark.parametrize(
        ("response", "error", "reason"),
        [
            (None, {"code": "batch_expired", "message": "late"}, "batch_expired: late"),
            (
                {"status_code": 500, "body": {"error": {"message": "oops"}}},
                None,
                "status 500: oops",
            ),
        ],
    )
    def test_errors_of_openai(self, tmp_path: Path, response: Any, error: Any, reason: str) -> None:
        distillation = Distillation(tmp_path)
        files = BatchFiles(tmp_path, 1, OpenAIFormat("gpt-4o", 100))
        distillation.write(files)
        key = requests(tmp_path / "pass1.openai.jsonl")[0]["custom_id"]
        entry = {"custom_id": key, "response": response, "error": error}
        distillation.results("pass1.openai.results-errors.jsonl", [entry])
        assert distillation.read(files) == (0, 1, 0, 0)
        assert distillation.synthesis.report().failed == {reason: 1}

    def test_lines_that_are_no_results_of_ours_are_rejected(
        self, distillation: Distillation
    ) -> None:
        distillation.write(distillation.first)
        one, two, three, *_ = requests(distillation.folder / "pass1.anthropic.jsonl")
        broken = succeeded(two, RIGHT)
        broken["result"]["message"] = {}
        lines = [
            "half a li",
            "[]",
            {"custom_id": "of-another-run", "result": {"type": "expired"}},
            broken,
            {"custom_id": three["custom_id"]},
            "",
            succeeded(one, RIGHT),
        ]
        distillation.results("pass1.anthropic.results.jsonl", lines)
        assert distillation.read(distillation.first) == (1, 0, 0, 5)
        rejects = [json.loads(line) for line in distillation.rejects.path.open()]
        assert [reject["line"] for reject in rejects] == [1, 2, 3, 4, 5]
        assert all(reject["reason"].startswith("pass1.anthropic.results") for reject in rejects)
        assert len(under_way(distillation.first, distillation.synthesis.replies)) == 5
