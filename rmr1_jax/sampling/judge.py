"""The Judge: a checkpoint, its tokenizer and its prompt, with a scheduler to sample."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmr1_jax.config import SamplingOptions
from rmr1_jax.config.mesh_config import parse_mesh
from rmr1_jax.distributed.mesh import check_mesh, make_mesh
from rmr1_jax.distributed.sharding_rules import DECODING_RULES, axis_sizes, even_rules, shardings
from rmr1_jax.judging import JudgePrompt, Message, Preference, load_prompt
from rmr1_jax.models.checkpoint import (
    default_dtype,
    load_config,
    load_model,
    load_tokenizer,
    prompt_of,
)
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.transformer import Params, logical_axes, parameter_shapes
from rmr1_jax.sampling.budget_forcing import CUT_AT_ONCE, FORCED_TOKENS, Judged, force_verdicts
from rmr1_jax.sampling.decode_loop import unstack_layers
from rmr1_jax.sampling.judgement import Judgement, Reader, too_long
from rmr1_jax.sampling.request_queue import common_length, worth_sharing
from rmr1_jax.sampling.scheduler import Request, Sample, Scheduler, Work

__all__ = ["Judge", "Judgement", "Progress", "SamplingOptions", "choose_prompt"]

# The assistant tag of the R1-distilled chat templates: such models get the reasoning prompt.
R1_ASSISTANT_TAG = "<｜Assistant｜>"  # noqa: RUF001
STREAM_STEPS = 8
GREEDY = SamplingOptions()


@dataclass(frozen=True)
class Progress:
    """The progress of a `judge` call."""

    tokens: int
    running: int


class Judge:
    """Judges preferences. Make one with `Judge.load`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Params,
        tokenizer: Any,
        prompt: JudgePrompt,
        *,
        prompt_source: str = "given",
        stop_ids: Sequence[int] = (),
        mesh: Mesh | None = None,
        slots: int = 16,
        max_context: int | None = None,
    ):
        self.config, self.weights, self.tokenizer, self.mesh = config, weights, tokenizer, mesh
        self.prompt, self.prompt_source = prompt, prompt_source
        self.reader = Reader(tokenizer)
        self.stop_ids = tuple(sorted({*stop_ids, tokenizer.eos_token_id} - {None}))
        self.slots = slots
        self.max_context = min(max_context or config.max_position, config.max_position)
        self._schedulers: dict[tuple[int, int, int], Scheduler] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        prompt: str | None = None,
        mesh: str = "",
        dtype: str = "",
        max_num_seqs: int | None = None,
        max_context: int | None = None,
    ) -> "Judge":
        """Read a Hugging Face directory, a converted (Orbax) directory or a GGUF file.

        Args:
          path: the checkpoint.
          prompt: "chain_of_rubrics", "reasoning" or a file (`judging.load_prompt`); by default the
            one that the checkpoint's config names, else the one for its chat template.
          mesh: for example "data=2,tensor=4"; by default all devices split the slots.
          dtype: compute dtype; by default float32 on CPU, bfloat16 elsewhere.
          max_num_seqs: traces sampled at a time; by default 16 on CPU, 64 elsewhere.
          max_context: the most tokens of prompt and trace; by default the model's.
        """
        path = Path(path)
        config = load_config(path)
        tokenizer, stop_ids = load_tokenizer(path)
        judge_prompt, source = choose_prompt(prompt, prompt_of(path), tokenizer)
        device_mesh, sharding = _mesh_and_shardings(config, mesh)
        compute = jnp.dtype(dtype or default_dtype())
        _, params = load_model(path, dtype=compute.name, shardings=sharding)
        weights = jax.jit(partial(unstack_layers, config, dtype=compute))(params)
        return cls(
            config,
            weights,
            tokenizer,
            judge_prompt,
            prompt_source=source,
            stop_ids=stop_ids,
            mesh=device_mesh,
            slots=max_num_seqs or (16 if jax.default_backend() == "cpu" else 64),
            max_context=max_context,
        )

    def replace_weights(self, weights: Params) -> None:
        """Use other weights with the same shapes and shardings. Nothing compiles again."""
        self.weights = weights
        for scheduler in self._schedulers.values():
            scheduler.programs.weights = weights

    def judge(
        self,
        preferences: Iterable[Preference | Sequence[Mapping[str, str]]],
        options: SamplingOptions = GREEDY,
        *,
        samples: int = 1,
        indices: Iterable[int] | None = None,
        budget: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[tuple[int, list[Judgement]]]:
        """Yield (position, one `Judgement` per sample) in the order in which they finish.

        The tokens that all prompts begin with are computed once per call, and the rest of a prompt
        once for all its samples.

        Args:
          preferences: read lazily; chat messages that ask for a judgement are accepted too.
          options: how to sample.
          samples: traces per preference.
          indices: the index of each preference in the random stream; by default its position.
          budget: a trace without a verdict after this many tokens (or `max_new_tokens`, if fewer)
            is closed and asked for its verdict: `budget_forcing.CLOSING` is appended, and at most 8
            tokens are decoded greedily ("budget forcing", s1: Simple test-time scaling, arXiv
            2501.19393, §3.1). If the context has no room for that, the trace stays truncated.
          on_progress: called every few dozen steps.
        """
        scheduler = self._scheduler(samples, self.slots, 64)
        source = iter(preferences)
        first = list(itertools.islice(source, 1))
        prefix = self.shared_prefix() if first and isinstance(first[0], Preference) else []
        indices = itertools.count() if indices is None else iter(indices)
        asked: dict[int, tuple[int, list[int]]] = {}  # request -> (position, prompt)
        refused: list[tuple[int, int]] = []  # (position, prompt tokens)
        cut: list[Judged] = []
        works: list[Work] = []

        def requests() -> Iterator[Request]:
            sent = itertools.count()
            for position, preference in enumerate(itertools.chain(first, source)):
                if (index := next(indices, None)) is None:
                    raise ValueError(f"there is no index for preference {position}")
                tokens = self.prompt_tokens(preference)
                if len(tokens) >= self.max_context:
                    refused.append((position, len(tokens)))
                    continue
                asked[next(sent)] = position, tokens
                yield self._request(tokens, options, index)

        def report(work: Work) -> None:
            if not any(work is known for known in works):
                works.append(work)
            if on_progress:
                tokens = sum(each.live_row_steps for each in works)
                on_progress(Progress(tokens, sum(each.running for each in works)))

        def continue_greedily(prompts: list[list[int]]) -> Iterator[tuple[int, list[Sample]]]:
            # Most of this is prefill, one prompt at a time, so a few slots are enough.
            greedy = SamplingOptions(max_new_tokens=FORCED_TOKENS)
            return self._scheduler(1, max(self.slots // 4, 1), FORCED_TOKENS).generate(
                [self._request(prompt, greedy, 0) for prompt in prompts],
                max_new_tokens=FORCED_TOKENS,
                after_chunk=report,
                prefix=prefix,
            )

        def settled(at_least: int) -> Iterator[tuple[int, list[Judgement]]]:
            while refused:
                position, prompt_tokens = refused.pop()
                yield position, [too_long(prompt_tokens)] * samples
            if len(cut) >= at_least:
                yield from force_verdicts(
                    cut,
                    continue_greedily,
                    style=self.prompt.style,
                    reader=self.reader,
                    max_context=self.max_context,
                )
                cut.clear()

        if budget is not None:
            options = replace(options, max_new_tokens=min(options.max_new_tokens, budget))
        longest = min(options.max_new_tokens, self.max_context)
        for number, written in scheduler.generate(
            requests(), max_new_tokens=longest, after_chunk=report, prefix=prefix
        ):
            position, tokens = asked.pop(number)
            found = [self.reader.judgement(sample, len(tokens)) for sample in written]
            judged = Judged(position, tokens, written, found)
            if budget is not None and judged.is_cut:
                cut.append(judged)
            else:
                yield position, found
            yield from settled(CUT_AT_ONCE)
        yield from settled(1)

    def stream(
        self, preference: Preference, options: SamplingOptions = GREEDY
    ) -> Generator[str, None, Judgement]:
        """Yield the trace in pieces as it grows. The generator returns the `Judgement`."""
        tokens = self.prompt_tokens(preference)
        if len(tokens) >= self.max_context:
            return too_long(len(tokens))
        shown = 0
        for sample in self._scheduler(1, 1, STREAM_STEPS).stream(self._request(tokens, options, 0)):
            text = self.reader.text(sample.tokens)
            # An incomplete character decodes to U+FFFD: wait for the rest of its bytes.
            if sample.finish_reason is None:
                text = text.rstrip("\ufffd")
            yield text[shown:]
            shown = max(shown, len(text))
        return self.reader.judgement(sample, len(tokens))

    def compare(self, question: str, a: str, b: str, **options: Any) -> Judgement:
        """Judge one pair. `options` are those of `SamplingOptions`."""
        preference = Preference("pair", (Message("user", question),), a, b, None)
        [(_, [judgement])] = self.judge([preference], SamplingOptions(**options))
        return judgement

    def prompt_tokens(self, preference: Preference | Sequence[Mapping[str, str]]) -> list[int]:
        """The token ids of the whole prompt in the model's chat template."""
        messages: Sequence[Mapping[str, str]] = (
            self.prompt.messages(preference) if isinstance(preference, Preference) else preference
        )
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.reader.encode(text)

    def shared_prefix(self) -> list[int]:
        """The tokens that all prompts begin with, or none if they are too few to be worth it."""
        one, other = (
            self.prompt_tokens(Preference("", (Message("user", text),), text, text))
            for text in ("Why?", "1 + 1")
        )
        return worth_sharing(one[: common_length(one, other)])

    def _request(self, tokens: list[int], options: SamplingOptions, index: int) -> Request:
        return Request(
            tokens=tokens,
            max_new_tokens=min(options.max_new_tokens, self.max_context - len(tokens)),
            stop_ids=self.stop_ids,
            compare_ids=self.reader.compare_ids or (0, 0),
            seed=options.seed,
            index=index,
            sampling=options,
        )

    def _scheduler(self, samples: int, slots: int, chunk_steps: int) -> Scheduler:
        key = samples, slots, chunk_steps
        if key not in self._schedulers:
            self._schedulers[key] = Scheduler(
                self.config,
                self.weights,
                slots=slots,
                group_size=samples,
                mesh=self.mesh,
                chunk_steps=chunk_steps,
            )
        return self._schedulers[key]


def choose_prompt(
    given: str | None, from_checkpoint: str | None, tokenizer: Any
) -> tuple[JudgePrompt, str]:
    """The prompt and the reason: as given, as the checkpoint's config names it, or by template.

    The checkpoint's path never matters. The original chose by a substring of the path, and judged a
    renamed checkpoint with the wrong prompt (spec §8.1, 10).
    """
    if given:
        return load_prompt(given), "as asked for"
    if from_checkpoint:
        return load_prompt(from_checkpoint), "named by the checkpoint's config"
    if R1_ASSISTANT_TAG in (tokenizer.chat_template or ""):
        return load_prompt("reasoning"), "the chat template is that of R1-distilled models"
    return load_prompt("chain_of_rubrics"), "the default for instruct models"


def _mesh_and_shardings(config: ModelConfig, mesh: str) -> tuple[Mesh | None, Any]:
    """The device mesh and the shardings of the parameters, or None and None on one device."""
    axes, shapes = logical_axes(config), parameter_shapes(config)
    sizes = axis_sizes(axes, shapes)
    shape = check_mesh(
        parse_mesh(mesh), num_devices=jax.device_count(), sizes=sizes, rules=DECODING_RULES
    )
    if jax.device_count() == 1:
        return None, None
    device_mesh = make_mesh(shape)
    rules = even_rules(DECODING_RULES, sizes, device_mesh.shape)
    return device_mesh, shardings(axes, device_mesh, rules)
