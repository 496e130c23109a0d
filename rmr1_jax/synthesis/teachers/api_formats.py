"""How the two vendors' APIs spell a request and a reply; the same in HTTP and in batch files."""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.teachers.protocol import Reply, Request

# Models that count their hidden reasoning against `max_completion_tokens`, know no `max_tokens`
# and refuse a temperature.
_REASONING_MODEL = re.compile(r"(?:.*/)?(?:o\d|gpt-5)")
# What an endpoint says (error code, or part of the message) where only this request is at fault.
_ONE_REQUEST = re.compile(
    r"context_length_exceeded|maximum context length|prompt is too long|invalid_prompt|"
    r"content_policy|content_filter",
    re.IGNORECASE,
)


class BrokenReply(Exception):
    """A body that is not what the API promises."""


class Format(Protocol):
    """One vendor's API."""

    kind: ClassVar[str]
    url: ClassVar[str]
    path: ClassVar[str]
    key_variable: ClassVar[str]
    batch_requests: ClassVar[int]
    batch_bytes: ClassVar[int]

    @property
    def model(self) -> str: ...

    @property
    def max_new_tokens(self) -> int: ...

    def headers(self, key: str | None) -> dict[str, str]: ...

    def body(self, request: Request) -> dict[str, Any]: ...

    def read(self, body: object) -> Reply:
        """Raises BrokenReply."""

    def batch_entry(self, request: Request) -> dict[str, Any]:
        """One request as a line of a batch file."""

    def read_batch_entry(self, entry: dict[str, Any]) -> Reply | str:
        """The reply of one line of a result file, or why there is none. Raises BrokenReply."""


@dataclass(frozen=True)
class OpenAIFormat:
    """`/chat/completions`, as OpenAI, vLLM, SGLang, Ollama and others serve it.

    Batches: at most 50,000 requests and 200 MB a file (OpenAI's Batch API reference).
    """

    kind: ClassVar[str] = "openai"
    url: ClassVar[str] = "https://api.openai.com/v1"
    path: ClassVar[str] = "/chat/completions"
    key_variable: ClassVar[str] = "OPENAI_API_KEY"
    batch_requests: ClassVar[int] = 50_000
    batch_bytes: ClassVar[int] = 200_000_000
    model: str
    max_new_tokens: int
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and _REASONING_MODEL.match(self.model):
            raise UserError(f"{self.model} takes no temperature; leave it out")

    def headers(self, key: str | None) -> dict[str, str]:
        return {} if key is None else {"authorization": f"Bearer {key}"}

    def body(self, request: Request) -> dict[str, Any]:
        reasons = _REASONING_MODEL.match(self.model)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.messages,
            "max_completion_tokens" if reasons else "max_tokens": self.max_new_tokens,
        }
        return body | ({} if self.temperature is None else {"temperature": self.temperature})

    def read(self, body: Any) -> Reply:
        try:
            choice = body["choices"][0]
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise BrokenReply("no choices[0].message in the reply") from error
        if not isinstance(text, str) and not (text is None and _ended(choice, refusal)):
            raise BrokenReply("no text in choices[0].message.content")
        finish = "refusal" if refusal else str(choice.get("finish_reason") or "stop")
        prompt, completion = _usage(body, ("prompt_tokens",), "completion_tokens")
        return Reply(text or "", finish, prompt, completion)

    def batch_entry(self, request: Request) -> dict[str, Any]:
        return {
            "custom_id": request.key,
            "method": "POST",
            "url": f"/v1{self.path}",
            "body": self.body(request),
        }

    def read_batch_entry(self, entry: dict[str, Any]) -> Reply | str:
        response, error = entry.get("response"), entry.get("error")
        if isinstance(response, dict) and response.get("status_code") == 200:
            return self.read(response.get("body"))
        if isinstance(response, dict):
            return f"status {response.get('status_code')}: {error_message(response.get('body'))}"
        if error is None:
            raise BrokenReply("neither a response nor an error")
        return error_message({"error": error})


@dataclass(frozen=True)
class AnthropicFormat:
    """`/messages` of Anthropic's API; the system message is a field of its own.

    Batches: at most 100,000 requests and 256 MB (Anthropic's Message Batches guide).
    """

    kind: ClassVar[str] = "anthropic"
    url: ClassVar[str] = "https://api.anthropic.com/v1"
    path: ClassVar[str] = "/messages"
    key_variable: ClassVar[str] = "ANTHROPIC_API_KEY"
    batch_requests: ClassVar[int] = 100_000
    batch_bytes: ClassVar[int] = 256_000_000
    model: str
    max_new_tokens: int
    temperature: float | None = None

    def headers(self, key: str | None) -> dict[str, str]:
        version = {"anthropic-version": "2023-06-01"}
        return version if key is None else version | {"x-api-key": key}

    def body(self, request: Request) -> dict[str, Any]:
        system = "\n\n".join(m["content"] for m in request.messages if m["role"] == "system")
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_new_tokens}
        if system:
            body["system"] = system
        if self.temperature is not None:
            body["temperature"] = self.temperature
        body["messages"] = [m for m in request.messages if m["role"] != "system"]
        return body

    def read(self, body: object) -> Reply:
        blocks = body.get("content") if isinstance(body, dict) else None
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise BrokenReply("no list of content blocks in the reply")
        texts = [block.get("text") for block in blocks if block.get("type") == "text"]
        if not all(isinstance(text, str) for text in texts):
            raise BrokenReply("a text block without text")
        reason = body["stop_reason"] if isinstance(body, dict) and "stop_reason" in body else None
        words = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", None: "stop"}
        prompt, completion = _usage(
            body,
            ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
            "output_tokens",
        )
        text = "".join(text for text in texts if isinstance(text, str))
        return Reply(text, words.get(reason, str(reason)), prompt, completion)

    def batch_entry(self, request: Request) -> dict[str, Any]:
        return {"custom_id": request.key, "params": self.body(request)}

    def read_batch_entry(self, entry: dict[str, Any]) -> Reply | str:
        result = entry.get("result")
        if not isinstance(result, dict) or not isinstance(result.get("type"), str):
            raise BrokenReply("no result with a type")
        if result["type"] == "succeeded":
            return self.read(result.get("message"))
        if result["type"] == "errored":
            error = result.get("error")
            return error_message(error if isinstance(error, dict) else {"error": error})
        return result["type"]  # canceled or expired


FORMATS: dict[str, type[OpenAIFormat] | type[AnthropicFormat]] = {
    "openai": OpenAIFormat,
    "anthropic": AnthropicFormat,
}


def error_message(body: object) -> str:
    """What an error body says, code and message, on one short line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        parts = [error.get(name) for name in ("code", "type", "message")]
        error = ": ".join(str(part) for part in parts if isinstance(part, str) and part)
    return " ".join(str(error or "no reason given").split())[:300]


def only_this_request(message: str) -> bool:
    """Whether an error is about the text that was asked, so that others may well be answered."""
    return _ONE_REQUEST.search(message) is not None


def _ended(choice: dict[str, Any], refusal: object) -> bool:
    # Reasoning models that spend all tokens on thinking, and refusals, come without a text.
    return bool(refusal) or choice.get("finish_reason") in ("length", "content_filter")


def _usage(body: object, prompt: tuple[str, ...], completion: str) -> tuple[int, int]:
    """(prompt, completion) tokens. Some small servers do not count, which makes both 0."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if usage is None:
        return 0, 0
    if not isinstance(usage, dict):
        raise BrokenReply("usage is no object")

    def count(name: str) -> int:
        value = usage.get(name)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
            raise BrokenReply(f"usage.{name} is no number of tokens")
        return math.ceil(value)

    return sum(map(count, prompt)), count(completion)
