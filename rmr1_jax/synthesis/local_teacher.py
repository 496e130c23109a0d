"""A local checkpoint as a teacher: requests that come one by one go to the engine together."""

import asyncio
import itertools
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import TYPE_CHECKING

from rmr1_jax.config import SamplingOptions
from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.teachers import ExampleRefused, Reply, Request

if TYPE_CHECKING:
    from rmr1_jax.sampling.judge import Judgement

# More than the engine's slots, so that it never waits for the next request.
CONCURRENCY = 512
# How long the engine may stand still to see whether there is more to ask.
PATIENCE = 0.05  # seconds

Asked = tuple[Request, Future[Reply]]


class LocalTeacher:
    """Writes traces with a checkpoint and our own engine, in a thread of its own.

    The model is read with the first request and given back by `close`. Temperature None is greedy.
    """

    concurrency = CONCURRENCY

    def __init__(
        self, path: str, *, section: str, max_new_tokens: int, temperature: float | None
    ) -> None:
        self.name, self.max_new_tokens = path, max_new_tokens
        self._section, self._temperature = section, temperature or 0.0
        self._asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def check(self) -> None:
        if not Path(self.name).exists():
            raise UserError(
                f"--{self._section}.model={self.name}: there is no such directory or file; "
                "name a checkpoint on this machine"
            )

    async def ask(self, request: Request) -> Reply:
        if self._thread is None:
            # A daemon: an interrupted run does not wait for the traces under way.
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        future: Future[Reply] = Future()
        self._asked.put((request, future))
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        if self._thread is not None:
            self._asked.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _work(self) -> None:
        under_way: dict[int, Future[Reply]] = {}
        try:
            self._answer(under_way)
        except Exception as error:  # whatever it is, those who wait must hear of it
            for future in under_way.values():
                _settle(future, error)
            while (asked := self._asked.get()) is not None:
                _settle(asked[1], error)

    def _answer(self, under_way: dict[int, Future[Reply]]) -> None:
        from rmr1_jax.sampling.judge import Judge

        options = SamplingOptions(max_new_tokens=self.max_new_tokens, temperature=self._temperature)
        judge, first_index = None, 0
        while (first := self._asked.get()) is not None:
            under_way[0] = first[1]
            judge = judge or Judge.load(self.name)
            count = 1

            def messages(first: Asked = first) -> Iterator[list[dict[str, str]]]:
                nonlocal count
                yield first[0].messages
                while (asked := self._next()) is not None:
                    under_way[count] = asked[1]
                    count += 1
                    yield asked[0].messages

            indices = itertools.count(first_index)
            for position, [judgement] in judge.judge(messages(), options, indices=indices):
                _settle(under_way.pop(position), _reply(judgement))
            first_index += count

    def _next(self) -> Asked | None:
        try:
            asked = self._asked.get(timeout=PATIENCE)
        except queue.Empty:
            return None
        if asked is None:
            self._asked.put(None)  # for `_answer`, which ends with it
        return asked


def _reply(judgement: "Judgement") -> Reply | ExampleRefused:
    if judgement.problem == "prompt_too_long":
        return ExampleRefused(
            f"the prompt's {judgement.prompt_tokens} tokens do not fit the model's context"
        )
    return Reply(
        judgement.trace,
        judgement.finish_reason or "stop",
        judgement.prompt_tokens,
        judgement.trace_tokens,
    )


def _settle(future: Future[Reply], outcome: Reply | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass  # whoever asked is gone
