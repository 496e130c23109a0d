"""Asking a teacher many things: again where it fails, within limits, several at a time."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.budget import Budget, BudgetSpent, RateLimit
from rmr1_jax.synthesis.teachers import ExampleRefused, Reply, Request, Teacher, TryAgain

LONGEST_BACKOFF = 60.0  # seconds
# An endpoint that went away fails every request; each would be tried for a minute, to no end.
FAILURES_IN_A_ROW = 32


@dataclass(frozen=True)
class Answer:
    """How asking one request ended: with a reply, or with the reason why there is none.

    Args:
      attempts: requests that were sent.
      lost_tokens: the most that attempts can have cost whose reply did not arrive whole.
      spent: it ended because the budget did.
    """

    reply: Reply | None
    failure: str | None
    attempts: int
    lost_tokens: int
    spent: bool = False


class TeacherClient:
    """One teacher, asked patiently.

    Args:
      attempts: tries of one request before it is given up.
      backoff: seconds before the second try; it doubles from try to try, up to a minute. A teacher
        that names a time is waited for.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        budget: Budget,
        limit: RateLimit | None = None,
        attempts: int = 6,
        backoff: float = 1.0,
    ) -> None:
        self.teacher, self._budget, self._limit = teacher, budget, limit or RateLimit()
        self._attempts = attempts
        self._backoff = wait_exponential(backoff, LONGEST_BACKOFF) + wait_random(0, backoff)

    async def ask(self, request: Request) -> Answer:
        """Raises UserError where the teacher says that no request can work."""
        most = request.most_prompt_tokens + self.teacher.max_new_tokens
        sent = lost = 0
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self._attempts),
                wait=self._wait,
                retry=retry_if_exception_type(TryAgain),
                reraise=True,
                sleep=asyncio.sleep,
            ):
                with attempt:
                    await self._budget.reserve(most)
                    cost = 0
                    try:
                        ticket = await self._limit.take(most)
                        sent, cost = sent + 1, most
                        try:
                            reply = await self.teacher.ask(request)
                            cost = reply.prompt_tokens + reply.completion_tokens
                        except TryAgain as error:
                            cost = most if error.may_have_cost else 0
                            lost += cost
                            raise
                        except (ExampleRefused, UserError):
                            cost = 0
                            raise
                        finally:
                            self._limit.settle(ticket, cost)
                    finally:
                        self._budget.settle(most, cost)
                    return Answer(reply, None, sent, lost)
        except TryAgain as error:
            return Answer(None, str(error), sent, lost)
        except ExampleRefused as error:
            return Answer(None, f"refused: {error}", sent, lost)
        except BudgetSpent:
            return Answer(None, "the budget is spent", sent, lost, spent=True)
        raise AssertionError("tenacity ends with a result or an exception")

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TryAgain) and error.after is not None:
            self._limit.pause(error.after)
            return error.after
        return self._backoff(state)


async def ask_all(
    asker: TeacherClient,
    requests: Iterator[Request],
    on_answer: Callable[[Request, Answer], None],
) -> bool:
    """Ask everything, `teacher.concurrency` at a time; `on_answer` is called as answers come.

    Returns whether the budget lasted; if not, `requests` is not consumed to its end. Answers under
    way at that moment are waited for.

    Raises UserError where no request can work, and where nothing but failures comes back.
    """
    within_budget, failures = True, 0

    async def work() -> None:
        nonlocal within_budget, failures
        while within_budget and (request := next(requests, None)) is not None:
            answer = await asker.ask(request)
            if answer.spent:
                within_budget = False
            if answer.attempts:
                on_answer(request, answer)
            failed = answer.failure is not None and not answer.spent
            failures = failures + 1 if failed else 0
            if failures == FAILURES_IN_A_ROW:
                raise UserError(
                    f"{asker.teacher.name}: the last {failures} requests failed "
                    f"({answer.failure}); mend that and run the same command again"
                )

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(asker.teacher.concurrency):
                group.create_task(work())
    except BaseExceptionGroup as several:
        # Say what the user can mend, if one of them can be mended.
        mendable = [error for error in several.exceptions if isinstance(error, UserError)]
        raise (mendable or several.exceptions)[0] from None
    return within_budget
