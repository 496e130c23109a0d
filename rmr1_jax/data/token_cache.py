"""A source tokenised once, in flat files that are mapped into memory and used again.

    cache/KEY/tokens        int32, all sequences one after the other
              offsets       int64 [N + 1], where each begins
              loss_from     int32 [N]      learning begins at this token of a sequence
              verdict       int32 [N]      the token of the verdict's letter, or -1
              ids.jsonl     the id of each sequence's example
              dropped.jsonl what could not be learnt from, and why
              counts.json   written last

KEY digests the source, the tokenizer with its chat template, the prompt and the options, so a
change of any of them makes another cache.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rmr1_jax.data.example import Example
from rmr1_jax.data.tokenize import (
    REASONS,
    Refusal,
    Tokenized,
    TokenizeOptions,
    check_template,
    tokenize_all,
)
from rmr1_jax.errors import UserError
from rmr1_jax.judging import JudgePrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
AT_A_TIME = 256  # examples handed to the tokenizer's threads
PERCENTILES = (50, 90, 99, 100)
ARRAYS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "offsets": np.int64,
    "loss_from": np.int32,
    "verdict": np.int32,
}
IDS = "ids.jsonl"
Progress = Callable[[int], None]
"""Called with the examples done."""


@dataclass(frozen=True)
class Lengths:
    """A spread of lengths in tokens."""

    mean: float
    p50: int
    p90: int
    p99: int
    max: int

    @classmethod
    def of(cls, lengths: Int[np.ndarray, " N"]) -> "Lengths":
        at = np.percentile(lengths, PERCENTILES, method="higher")
        return cls(float(lengths.mean()), *(int(value) for value in at))


@dataclass(frozen=True)
class TokenCounts:
    """What became of the examples. `prompt` and `trace` are of those kept; the header counts as
    trace where it is learnt."""

    examples: int
    kept: int
    truncated: int
    dropped: dict[str, int]
    prompt: Lengths
    trace: Lengths


class TokenSequence(NamedTuple):
    """One tokenised example; see `Tokenized`."""

    tokens: Int[np.ndarray, " T"]
    loss_from: int
    verdict: int


class TokenCache:
    """A finished cache: random access to sequences, and the arrays themselves.

    `lengths` and `loss_lengths` are tokens of each sequence, and those of them that are learnt.
    """

    def __init__(self, directory: Path) -> None:
        """Raises OSError or ValueError where a file is absent or does not fit the others."""
        self.directory, self.key = directory, directory.name
        record = json.loads((directory / "counts.json").read_text(encoding="utf-8"))
        for part in ("prompt", "trace"):
            record[part] = Lengths(**record[part])
        self.counts = TokenCounts(**record)
        self.tokens, self.offsets, self.loss_from, self.verdict = (
            np.memmap(directory / name, dtype=dtype, mode="r") for name, dtype in ARRAYS.items()
        )
        kept = self.counts.kept
        sizes = {len(self.loss_from), len(self.verdict), len(self.offsets) - 1}
        if sizes != {kept} or len(self.tokens) != self.offsets[-1]:
            raise ValueError(f"{directory}: its files do not fit each other")
        self.lengths: Int[np.ndarray, " N"] = np.diff(self.offsets).astype(np.int32)
        self.loss_lengths: Int[np.ndarray, " N"] = self.lengths - self.loss_from

    def __len__(self) -> int:
        return self.counts.kept

    def __getitem__(self, index: int) -> TokenSequence:
        start, end = self.offsets[index : index + 2]
        return TokenSequence(
            np.asarray(self.tokens[start:end]),
            int(self.loss_from[index]),
            int(self.verdict[index]),
        )

    @cached_property
    def ids(self) -> list[str]:
        """The id of each sequence's example, read when it is first asked for."""
        with (self.directory / IDS).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def __reduce__(self) -> tuple[type["TokenCache"], tuple[Path]]:
        return TokenCache, (self.directory,)


def cache_key(
    fingerprint: str,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: JudgePrompt,
    options: TokenizeOptions,
) -> str:
    """A digest of all that the tokens depend on; `fingerprint` stands for the source."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of whoever used the tokenizer last
        pipeline[state] = None
    parts = {
        "format": FORMAT,
        "source": fingerprint,
        "tokenizer": pipeline,
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "prompt": asdict(prompt),
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()[:32]


def token_cache(
    root: str | Path,
    examples: Iterable[Example],
    fingerprint: str,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: JudgePrompt,
    options: TokenizeOptions,
    *,
    progress: Progress | None = None,
) -> TokenCache:
    """The cache of a source below `root`; only where it is not there yet are `examples` read, once.

    A cache appears whole or not at all; a second process that wants the same one waits for it.
    Memory holds some hundred examples at a time, and 24 bytes for each one kept.

    Raises UserError where the template cannot render the messages, where nothing is left to learn
    from, or where the disk does not take it.
    """
    root = Path(root)
    key = cache_key(fingerprint, tokenizer, prompt, options)
    finished, part = root / key, root / f"{key}.part"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock"):
            if finished.is_dir():
                try:
                    return TokenCache(finished)
                except (OSError, ValueError, TypeError, KeyError):  # damaged: made again
                    shutil.rmtree(finished)
            shutil.rmtree(part, ignore_errors=True)  # of a killed run
            part.mkdir()
            _write(part, examples, tokenizer, prompt, options, progress)
            part.replace(finished)
            return TokenCache(finished)
    except OSError as error:
        raise UserError(
            f"{root}: the token cache cannot be written ({error.strerror or error}); "
            "free space or choose another workdir"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held until the block or the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(
    directory: Path,
    examples: Iterable[Example],
    tokenizer: "PreTrainedTokenizerBase",
    prompt: JudgePrompt,
    options: TokenizeOptions,
    progress: Progress | None,
) -> None:
    dropped: dict[str, int] = dict.fromkeys(REASONS, 0)
    total = truncated = length = 0

    with ExitStack() as stack:
        files = {name: stack.enter_context((directory / name).open("wb")) for name in ARRAYS}
        rejects, ids = (
            stack.enter_context((directory / name).open("w", encoding="utf-8"))
            for name in ("dropped.jsonl", IDS)
        )

        def put(name: str, values: Any) -> None:
            files[name].write(np.ascontiguousarray(values, ARRAYS[name]).tobytes())

        put("offsets", [0])
        for some in batched(examples, AT_A_TIME):
            asked = [(example.messages(prompt), example.trace) for example in some]
            if total == 0:
                check_template(tokenizer, asked[0][0])
            kept: list[Tokenized] = []
            results = tokenize_all(tokenizer, asked, options)
            for index, (example, result) in enumerate(zip(some, results, strict=True), total):
                if isinstance(result, Refusal):
                    dropped[result.reason] += 1
                    line = {"index": index, "id": example.id, **result._asdict()}
                    rejects.write(json.dumps(line, ensure_ascii=False) + "\n")
                else:
                    kept.append(result)
                    ids.write(json.dumps(example.id, ensure_ascii=False) + "\n")
            if kept:
                ends = length + np.cumsum([len(result.tokens) for result in kept])
                length = int(ends[-1])
                put("offsets", ends)
                put("tokens", np.concatenate([result.tokens for result in kept]))
                put("loss_from", [result.loss_from for result in kept])
                put("verdict", [result.verdict for result in kept])
                truncated += sum(result.truncated for result in kept)
            total += len(some)
            if progress is not None:
                progress(total)
    loss_from = np.fromfile(directory / "loss_from", np.int32)
    if not len(loss_from):
        raise UserError(_nothing_left(total, dropped, options))
    lengths = np.diff(np.fromfile(directory / "offsets", np.int64))
    counts = TokenCounts(
        examples=total,
        kept=len(loss_from),
        truncated=truncated,
        dropped={reason: count for reason, count in dropped.items() if count},
        prompt=Lengths.of(loss_from),
        trace=Lengths.of(lengths - loss_from),
    )
    (directory / "counts.json").write_text(json.dumps(asdict(counts), indent=1) + "\n")


def _nothing_left(total: int, dropped: dict[str, int], options: TokenizeOptions) -> str:
    if not total:
        return "there is no example to learn from; give a source that holds traces"
    why = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    fix = "give examples with traces"
    if dropped["prompt_too_long"] or dropped["too_long"]:
        fix = f"raise max_length, which is {options.max_length}"
    elif dropped["template_refuses"]:
        fix = "take a checkpoint whose chat template takes these messages"
    return f"none of {total} examples can be learnt from ({why.replace('_', ' ')}); {fix}"
