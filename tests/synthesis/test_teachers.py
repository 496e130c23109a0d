"""Teachers behind HTTP, against a real server that misbehaves."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from rmr1_jax.data.example import Example
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Message
from rmr1_jax.synthesis.budget import Budget, RateLimit
from rmr1_jax.synthesis.teacher_client import Answer, TeacherClient, ask_all
from rmr1_jax.synthesis.teachers import (
    FORMATS,
    AnthropicFormat,
    HttpTeacher,
    OpenAIFormat,
    Reply,
    Request,
)
from tests import endpoint as server
from tests.endpoint import Endpoint

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


def request(name: str = "one", user: str = "Which is better?") -> Request:
    example = Example(name, "test", "A", prompt=(Message("user", user),))
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": user}]
    return Request(f"pass1-{name}", example, messages)


def teacher(endpoint: Endpoint, kind: str = "openai", **options: Any) -> HttpTeacher:
    format = FORMATS[kind]("some-model", 100)
    return HttpTeacher(format, section="teacher1", url=endpoint.url, **options)


def ask(
    endpoint: Endpoint, kind: str = "openai", attempts: int = 3, **options: Any
) -> tuple[Answer, Budget]:
    """Ask one thing, with hardly any back-off."""

    async def run() -> tuple[Answer, Budget]:
        one, budget = teacher(endpoint, kind, **options), Budget()
        try:
            await one.check()
            asker = TeacherClient(one, budget=budget, attempts=attempts, backoff=0.001)
            return await asker.ask(request()), budget
        finally:
            await one.close()

    return asyncio.run(run())


class TestSpelling:
    def test_openai(self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_KEY", KEY)
        answer, _ = ask(endpoint, "openai", key_variable="SOME_KEY")
        assert answer == Answer(Reply("<answer>[[A]]</answer>", "stop", 11, 7), None, 1, 0)
        [sent] = endpoint.requests
        assert sent["path"] == "/v1/chat/completions"
        assert sent["headers"]["authorization"] == f"Bearer {KEY}"
        assert sent["body"] == {
            "model": "some-model",
            "messages": request().messages,
            "max_tokens": 100,
        }

    def test_anthropic_takes_the_system_message_apart(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOME_KEY", f" {KEY}\n")  # as `export KEY=$(cat file)` may give it
        answer, _ = ask(endpoint, "anthropic", key_variable="SOME_KEY")
        assert answer.reply == Reply("<answer>[[A]]</answer>", "stop", 11, 7)
        [sent] = endpoint.requests
        assert sent["path"] == "/v1/messages"
        assert sent["headers"]["x-api-key"] == KEY and sent["headers"]["anthropic-version"]
        assert sent["body"] == {
            "model": "some-model",
            "max_tokens": 100,
            "system": "Judge.",
            "messages": [{"role": "user", "content": "Which is better?"}],
        }

    @pytest.mark.parametrize("model", ["o3-2025-04-16", "openai/o4-mini", "gpt-5"])
    def test_reasoning_models_get_other_names_and_no_temperature(self, model: str) -> None:
        body = OpenAIFormat(model, 100).body(request())
        assert body["max_completion_tokens"] == 100 and "max_tokens" not in body
        with pytest.raises(UserError, match="takes no temperature"):
            OpenAIFormat(model, 100, temperature=0.5)

    def test_a_temperature_is_sent_where_it_is_given(self) -> None:
        assert OpenAIFormat("gpt-4o", 9, 0.0).body(request())["temperature"] == 0.0
        assert AnthropicFormat("claude", 9, 0.7).body(request())["temperature"] == 0.7
        assert "temperature" not in AnthropicFormat("claude", 9).body(request())

    def test_no_vendors_key_goes_to_another_endpoint(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        ask(endpoint)
        assert "authorization" not in endpoint.requests[0]["headers"]

    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    def test_a_trace_that_was_cut_off_says_so(self, endpoint: Endpoint, kind: str) -> None:
        endpoint.script.append(server.answer("<type>Ch", finish="length"))
        answer, _ = ask(endpoint, kind)
        assert answer.reply is not None and answer.reply.finish_reason == "length"

    def test_all_reasoning_and_no_text_is_a_cut_reply_of_nothing(self) -> None:
        choice = {"message": {"content": None}, "finish_reason": "length"}
        reply = OpenAIFormat("o3", 9).read({"choices": [choice]})
        assert reply == Reply("", "length", 0, 0)

    def test_a_refusal_is_a_reply(self) -> None:
        choice = {"message": {"content": None, "refusal": "I will not."}, "finish_reason": "stop"}
        assert OpenAIFormat("o3", 9).read({"choices": [choice]}).finish_reason == "refusal"
        body = {"content": [], "stop_reason": "refusal", "usage": {"input_tokens": 3}}
        assert AnthropicFormat("claude", 9).read(body) == Reply("", "refusal", 3, 0)


class TestMisbehaviour:
    @pytest.mark.parametrize("code", [408, 409, 429, 500, 503, 529])
    def test_a_status_that_may_pass_is_tried_again(self, endpoint: Endpoint, code: int) -> None:
        endpoint.script += [server.status(code), server.status(code)]
        answer, budget = ask(endpoint)
        assert answer.reply is not None and answer.attempts == 3
        assert (budget.requests, budget.tokens) == (3, 18), "what was refused cost no tokens"

    @pytest.mark.parametrize(
        "misbehave",
        [
            server.hang_up,
            server.half_a_reply,
            server.raw(b"<html>oops</html>"),
            server.raw(b"[" * 100_000),
            server.raw(b'{"choices": []}'),
            server.raw(b'{"choices": [{"message": {"content": 7}}]}'),
            server.raw(b'{"choices": [{"message": {"content": "x"}}], "usage": 7}'),
            server.raw(b'{"error": {"message": "overloaded"}}'),
            server.slow(0.5),
            server.drip,
        ],
    )
    def test_a_lost_reply_is_asked_for_again_and_counted_with_the_most_it_can_cost(
        self, endpoint: Endpoint, misbehave: Any
    ) -> None:
        endpoint.script.append(misbehave)
        answer, budget = ask(endpoint, timeout=0.2)
        assert answer.reply is not None and answer.attempts == 2
        most = request().most_prompt_tokens + 100
        assert answer.lost_tokens == most and budget.tokens == most + 18

    @pytest.mark.parametrize(
        "body",
        [
            b"{}",
            b'{"content": "text"}',
            b'{"content": [7]}',
            b'{"content": [{"type": "text"}]}',
            b'{"content": [], "usage": 7}',
        ],
    )
    def test_a_broken_message_of_anthropic(self, endpoint: Endpoint, body: bytes) -> None:
        endpoint.script.append(server.raw(body))
        answer, _ = ask(endpoint, "anthropic")
        assert answer.reply is not None and answer.attempts == 2

    def test_it_is_given_up_after_so_many_tries(self, endpoint: Endpoint) -> None:
        endpoint.script += [server.status(500)] * 3
        answer, _ = ask(endpoint, attempts=3)
        assert answer == Answer(None, "status 500", attempts=3, lost_tokens=0)

    def test_only_the_one_request_is_refused_where_its_text_is_at_fault(
        self, endpoint: Endpoint
    ) -> None:
        endpoint.script.append(server.status(400, "prompt is too long: 9 tokens > 8 maximum"))
        answer, _ = ask(endpoint)
        assert answer.attempts == 1 and "prompt is too long" in str(answer.failure)


class TestStopsAtOnce:
    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (400, r"answers 400 \(some_error: no\): asked about example 'one'"),
            (401, "answers 401 .*put the right one into SOME_KEY"),
            (403, "this key may not use this model"),
            (404, r"correct --teacher1.url or --teacher1.model \(some-model\)"),
            (307, "a redirection; give the address"),
        ],
    )
    def test_an_error_that_no_retry_mends(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, code: int, said: str
    ) -> None:
        monkeypatch.setenv("SOME_KEY", KEY)
        endpoint.script.append(server.status(code))
        with pytest.raises(UserError, match=said):
            ask(endpoint, key_variable="SOME_KEY")
        assert len(endpoint.requests) == 1

    def test_the_key_is_in_no_message(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOME_KEY", KEY)
        for code in (400, 401, 403, 404):
            endpoint.script.append(server.status(code, f"the key {KEY} is bad"))
            with pytest.raises(UserError) as error:
                ask(endpoint, key_variable="SOME_KEY")
            assert KEY not in str(error.value)

    def test_a_missing_key_is_named(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SOME_KEY", raising=False)
        with pytest.raises(UserError, match="environment variable SOME_KEY, which is not set"):
            ask(endpoint, key_variable="SOME_KEY")

    def test_a_key_that_no_header_takes_is_not_shown(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOME_KEY", "sk-one\nsk-two")
        with pytest.raises(UserError, match="SOME_KEY holds spaces") as error:
            ask(endpoint, key_variable="SOME_KEY")
        assert "sk-" not in str(error.value)

    def test_an_endpoint_that_is_not_there_is_named(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        nobody = HttpTeacher(OpenAIFormat("m", 9), section="teacher2", url=url)
        with pytest.raises(UserError, match=f"--teacher2.url: nothing can be reached at {url}"):
            asyncio.run(nobody.check())

    @pytest.mark.parametrize(
        "url",
        [
            f"http://user:{KEY}@host/v1",
            f"http://host/v1?key={KEY}",
            f"http://host/v1#{KEY}",
            f"{KEY}",
            f"ftp://{KEY}",
            f"http://host:{KEY}/v1",
        ],
    )
    def test_an_address_with_more_in_it_is_refused_unseen(self, url: str) -> None:
        with pytest.raises(UserError, match=r"--teacher1.url") as error:
            HttpTeacher(OpenAIFormat("m", 9), section="teacher1", url=url)
        assert KEY not in str(error.value)


class TestMany:
    @staticmethod
    def ask_all(
        one: HttpTeacher, count: int, budget: Budget, attempts: int = 2
    ) -> tuple[bool, dict[str, Answer]]:
        answers: dict[str, Answer] = {}

        async def run() -> bool:
            try:
                return await ask_all(
                    TeacherClient(one, budget=budget, attempts=attempts, backoff=0.001),
                    iter([request(str(n)) for n in range(count)]),
                    lambda asked, answer: answers.update({asked.example.id: answer}),
                )
            finally:
                await one.close()

        return asyncio.run(run()), answers

    def test_so_many_are_asked_at_a_time(self, endpoint: Endpoint) -> None:
        endpoint.script += [server.slow(0.02)] * 12
        lasted, answers = self.ask_all(teacher(endpoint, concurrency=3), 12, Budget())
        assert lasted and len(answers) == 12 and endpoint.most_at_a_time == 3

    def test_the_run_goes_on_after_a_failure(self, endpoint: Endpoint) -> None:
        endpoint.script += [server.status(500)] * 2
        lasted, answers = self.ask_all(teacher(endpoint, concurrency=1), 3, Budget())
        assert lasted
        assert [answer.failure for answer in answers.values()] == ["status 500", None, None]

    def test_a_long_row_of_failures_ends_it(self, endpoint: Endpoint) -> None:
        endpoint.script += [server.status(500)] * 100
        with pytest.raises(UserError, match=r"the last 32 requests failed \(status 500\)"):
            self.ask_all(teacher(endpoint, concurrency=4), 60, Budget(), attempts=1)

    @pytest.mark.parametrize("concurrency", [1, 8])
    def test_no_cap_is_exceeded(self, endpoint: Endpoint, concurrency: int) -> None:
        most = request("0").most_prompt_tokens + 100
        for budget, spent in (
            (Budget(max_requests=5), 5),
            (Budget(max_tokens=most + 4 * 18), 5),  # the sixth might exceed it
            (Budget(max_tokens=most - 1), 0),
        ):
            endpoint.requests.clear()
            lasted, answers = self.ask_all(teacher(endpoint, concurrency=concurrency), 20, budget)
            assert not lasted
            assert len(answers) == len(endpoint.requests) == budget.requests == spent

    def test_tries_count_against_the_cap(self, endpoint: Endpoint) -> None:
        endpoint.script += [server.status(500)] * 9
        budget = Budget(max_requests=2)
        lasted, answers = self.ask_all(teacher(endpoint), 1, budget, attempts=5)
        assert not lasted and len(endpoint.requests) == 2
        assert answers["0"] == Answer(None, "the budget is spent", 2, 0, spent=True)


class Clock:
    """Time that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class TestRateLimit:
    @staticmethod
    def times(limit: RateLimit, clock: Clock, sizes: list[int]) -> list[float]:
        async def run() -> list[float]:
            times = []
            for size in sizes:
                await limit.take(size)
                times.append(clock.now)
            return times

        return asyncio.run(run())

    def test_so_many_requests_in_any_minute(self) -> None:
        clock = Clock()
        limit = RateLimit(requests=2, clock=clock, sleep=clock.sleep)
        assert self.times(limit, clock, [9] * 5) == [0, 0, 60, 60, 120]

    def test_so_many_tokens_in_any_minute_and_a_larger_request_goes_alone(self) -> None:
        clock = Clock()
        limit = RateLimit(tokens=100, clock=clock, sleep=clock.sleep)
        assert self.times(limit, clock, [60, 40, 1, 500, 1]) == [0, 0, 60, 120, 180]

    def test_what_a_reply_did_not_take_makes_room(self) -> None:
        clock = Clock()
        limit = RateLimit(tokens=100, clock=clock, sleep=clock.sleep)

        async def run() -> None:
            ticket = await limit.take(90)
            limit.settle(ticket, 10)
            await limit.take(90)

        asyncio.run(run())
        assert clock.now == 0

    def test_a_reply_after_the_minute_changes_nothing(self) -> None:
        clock = Clock()
        limit = RateLimit(tokens=100, clock=clock, sleep=clock.sleep)

        async def run() -> None:
            late = await limit.take(90)
            await limit.take(90)
            limit.settle(late, 10)
            await limit.take(90)

        asyncio.run(run())
        assert clock.now == 120

    def test_a_teacher_that_asks_to_wait_is_left_alone_by_all(self, endpoint: Endpoint) -> None:
        clock = Clock()
        limit = RateLimit(clock=clock, sleep=clock.sleep)
        endpoint.script.append(server.status(429, retry_after="0.01"))

        async def run() -> None:
            one = teacher(endpoint)
            asker = TeacherClient(one, budget=Budget(), limit=limit, attempts=2, backoff=1000)
            assert (await asker.ask(request())).attempts == 2
            await one.close()

        asyncio.run(run())
        assert clock.now == pytest.approx(0.01)
