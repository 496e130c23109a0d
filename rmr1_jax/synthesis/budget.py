"""What asking may cost, in all and per minute."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

WINDOW = 60.0  # seconds that a rate limit counts over


class BudgetSpent(Exception):
    """One more attempt could exceed the cap."""


class Budget:
    """Caps on requests and tokens, over all runs.

    An attempt reserves the most it can cost before it is sent, and settles with what it did cost.
    So the caps are never exceeded, however many attempts are under way. An attempt that does not
    fit waits for those under way, which may turn out cheaper than reserved.

    Args:
      max_requests, max_tokens: the caps, None for none.
      requests, tokens: what earlier runs spent.
    """

    def __init__(
        self,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        *,
        requests: int = 0,
        tokens: int = 0,
    ) -> None:
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self.requests, self.tokens = requests, tokens
        self._reserved = self._under_way = 0
        self._settled = asyncio.Event()

    def fits(self, tokens: int) -> bool:
        """Whether one more request of at most so many tokens stays within the caps."""
        requests = self.requests + self._under_way + 1
        tokens += self.tokens + self._reserved
        return (self._max_requests is None or requests <= self._max_requests) and (
            self._max_tokens is None or tokens <= self._max_tokens
        )

    async def reserve(self, tokens: int) -> None:
        """Raises BudgetSpent if it does not fit and nothing is under way that could make room."""
        while not self.fits(tokens):
            if not self._under_way:
                raise BudgetSpent
            await self._settled.wait()
        self._under_way += 1
        self._reserved += tokens

    def settle(self, reserved: int, spent: int) -> None:
        self._under_way -= 1
        self._reserved -= reserved
        self.spend(spent)
        self._settled.set()  # wakes those who wait now; later ones wait for the next
        self._settled = asyncio.Event()

    def spend(self, tokens: int) -> None:
        """Count one request that cost so many tokens."""
        self.requests += 1
        self.tokens += tokens


@dataclass
class Ticket:
    """One attempt in the window of a rate limit."""

    time: float
    tokens: int
    in_window: bool = True


class RateLimit:
    """At most so many requests and tokens in any minute, first come, first served.

    An attempt counts with the most it can take until its reply says what it did take. One that is
    larger than the limit itself goes alone.

    Args:
      requests, tokens: the limits per minute, None for none.
      clock, sleep: for tests.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests, self._tokens = requests, tokens
        self._clock, self._sleep = clock, sleep
        self._window: deque[Ticket] = deque()
        self._tokens_in_window = 0
        self._not_before = 0.0
        self._turn = asyncio.Lock()

    async def take(self, tokens: int) -> Ticket:
        """Wait until an attempt of at most so many tokens may go."""
        if self._tokens is not None:
            tokens = min(tokens, self._tokens)
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                # A reply in the meantime may make room.
                await self._sleep(min(wait, 0.25))
            ticket = Ticket(self._clock(), tokens)
            self._window.append(ticket)
            self._tokens_in_window += tokens
            return ticket

    def settle(self, ticket: Ticket, tokens: int) -> None:
        """Correct what an attempt counts with."""
        if ticket.in_window:
            self._tokens_in_window += tokens - ticket.tokens
            ticket.tokens = tokens

    def pause(self, seconds: float) -> None:
        """Let nothing go for so long: the teacher asked for it."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def _wait(self, tokens: int) -> float:
        now = self._clock()
        while self._window and self._window[0].time <= now - WINDOW:
            ticket = self._window.popleft()
            ticket.in_window = False
            self._tokens_in_window -= ticket.tokens
        full = self._requests is not None and len(self._window) >= self._requests
        full |= self._tokens is not None and self._tokens_in_window + tokens > self._tokens
        expiry = self._window[0].time + WINDOW - now if full and self._window else 0.0
        return max(self._not_before - now, expiry)
