"""Teachers behind an HTTP endpoint: one attempt at a time, and what each kind of failure means."""

import asyncio
import email.utils
import os
import re
import time
from urllib.parse import urlsplit

import httpx

from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.teachers.api_formats import (
    BrokenReply,
    Format,
    error_message,
    only_this_request,
)
from rmr1_jax.synthesis.teachers.protocol import ExampleRefused, Reply, Request, TryAgain

LONGEST_WAIT = 3600.0  # seconds; a Retry-After beyond it is taken for this


class HttpTeacher:
    """Asks an endpoint in one vendor's format.

    The key is read from the environment, goes into one header, and is taken out of whatever an
    endpoint says in return before that is shown.

    Args:
      format: the vendor's spelling, the model and how it is sampled.
      section: what its options begin with, for error messages.
      url: the endpoint; by default the vendor's.
      key_variable: the variable that holds the key. Empty: the vendor's at the vendor's endpoint,
        and no key at another, so that a key goes only where it was meant to.
      timeout: seconds for one whole reply.
    """

    def __init__(
        self,
        format: Format,
        *,
        section: str,
        url: str = "",
        key_variable: str = "",
        timeout: float = 600.0,
        concurrency: int = 8,
    ) -> None:
        self.name, self.max_new_tokens = format.model, format.max_new_tokens
        self.concurrency = concurrency
        self._format, self._section, self._timeout = format, section, timeout
        self._url = (url or format.url).rstrip("/")
        self._key_variable = key_variable or ("" if url else format.key_variable)
        self._key: str | None = None
        self._client: httpx.AsyncClient | None = None
        check_url(url, f"--{section}.url")

    async def check(self) -> None:
        """The key is there and the endpoint can be reached; no key is sent."""
        if self._key_variable:
            self._key = _key(self._key_variable, self._section)
        try:
            # Any answer will do, and so will none in time from who took the connection.
            await self._connection().get(self._url, timeout=httpx.Timeout(10.0))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise UserError(
                f"--{self._section}.url: nothing can be reached at {self._url} "
                f"({self._clean(str(error)) or type(error).__name__}); "
                "start the server or correct the address"
            ) from None
        except httpx.RequestError:
            pass

    async def ask(self, request: Request) -> Reply:
        try:
            async with asyncio.timeout(self._timeout):  # httpx bounds single reads only
                response = await self._connection().post(
                    self._url + self._format.path,
                    json=self._format.body(request),
                    headers=self._format.headers(self._key),
                )
        except TimeoutError:
            raise TryAgain(f"no reply in {self._timeout:g} s", may_have_cost=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TryAgain(f"no connection ({self._clean(str(error))})") from None
        except httpx.RequestError as error:
            name = type(error).__name__
            raise TryAgain(f"connection broke ({name})", may_have_cost=True) from None
        if response.status_code != 200:
            raise self._refusal(response, request)
        try:
            return self._format.read(response.json())
        except (ValueError, RecursionError):
            raise TryAgain("the reply is not JSON", may_have_cost=True) from None
        except BrokenReply as error:
            raise TryAgain(f"the reply is broken: {error}", may_have_cost=True) from None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _connection(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, 30.0)),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            )
        return self._client

    def _refusal(self, response: httpx.Response, request: Request) -> Exception:
        status = response.status_code
        try:
            said = error_message(response.json())
        except (ValueError, RecursionError):
            said = " ".join(response.text.split())[:300] or "no reason given"
        said = self._clean(said)
        if status in (408, 409, 429) or status >= 500:
            return TryAgain(f"status {status}", after=_retry_after(response.headers))
        if status == 413 or (status in (400, 422) and only_this_request(said)):
            return ExampleRefused(f"status {status}: {said}")
        where = f"--{self._section}: {self._url + self._format.path} answers {status}"
        if status == 401:
            # What the endpoint says is left out: vendors repeat parts of the key in it.
            variable = self._key_variable or f"the variable that --{self._section}.key_variable"
            return UserError(
                f"{where} (the key is missing or wrong); put the right one into {variable}"
                + ("" if self._key_variable else " names")
            )
        if 300 <= status < 400:
            return UserError(f"{where}, a redirection; give the address that it leads to")
        fix = {
            403: "this key may not use this model; use another key or model",
            404: f"correct --{self._section}.url or --{self._section}.model ({self.name})",
        }.get(status, f"asked about example {request.example.id!r}; change what it objects to")
        return UserError(f"{where} ({said}): {fix}, and run the same command again")

    def _clean(self, text: str) -> str:
        if self._key is not None and len(self._key) >= 8:  # a shorter one is no secret
            text = text.replace(self._key, "[key]")
        return text


def check_url(url: str, option: str) -> None:
    """Refuse what is no plain http address. Raises UserError, which never shows the address.

    A password or a token in an address would get into the settings of a run and into its messages.
    """
    if not url:
        return
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        valid = False
    if not valid:
        raise UserError(f"{option} is no address like http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"{option} holds more than an address (a user, password, query or fragment); "
            "give the key in an environment variable that key_variable names"
        )


def _key(variable: str, section: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"--{section} needs a key in the environment variable {variable}, which is not set; "
            f"set it, or name another with --{section}.key_variable"
        )
    # httpx would show a key that no header takes in its error message.
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"the environment variable {variable} holds spaces or other odd characters")
    return key


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, from a number or a date; None where there is no sense in it."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None
