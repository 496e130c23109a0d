"""`--stage=judge`: a file of pairs in, a file of verdicts out; or one pair on the terminal."""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rmr1_jax.config import JudgeConfig, JudgeOptions, SamplingOptions
from rmr1_jax.data.preference_file import RejectsFile, read_preferences
from rmr1_jax.distributed.rendezvous import is_one_of_several
from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.judgement_record import Tally, judgement_record
from rmr1_jax.evaluation.judging_progress import JudgingProgress
from rmr1_jax.io.record_log import GO_ON, RecordLog
from rmr1_jax.judging import Preference, preference_from_record

if TYPE_CHECKING:  # the judge brings jax, which nothing before the model needs
    from rmr1_jax.sampling.judge import Judge, Judgement, Progress

# Pairs given to the judge whose records are not written yet. One slow trace holds back the records
# of all pairs after it, and this bounds what waits in memory.
MAX_UNWRITTEN = 8192

WHY_NO_VERDICT = {
    "none": "the trace names neither response",
    "both": "the trace names both responses",
    "truncated": "the trace was cut at --max_new_tokens",
    "prompt_too_long": "the prompt does not fit the context",
    None: "the samples tie, or the two orders disagree",
}


def run(config: JudgeConfig) -> int:
    """Returns the exit status: 1 if a line was rejected or a prompt was too long, else 0."""
    config.check()
    if config.question:
        if is_one_of_several():
            raise UserError("one pair is judged in one process; give several --input=PAIRS.jsonl")
        return judge_one_pair(config)
    return judge_file(config)


def judge_file(config: JudgeConfig) -> int:
    """Judge the pairs of `config.input` that `config.output` does not hold yet."""
    if Path(config.input).is_fifo():
        raise UserError(
            f"{config.input}: is a pipe, and the input is read twice; save it to a file"
        )
    rejects = RejectsFile(rejects_path(config.output))
    if rejects.path.resolve() == Path(config.input).resolve():
        raise UserError(
            f"{config.input}: is where rejected lines go with --output={config.output}; rename it"
        )
    settings, tally = run_settings(config), Tally()
    preferences = read_preferences(config.input, rejects=rejects)
    with RecordLog(Path(config.output)) if _writes() else nullcontext() as log:

        def begin() -> tuple[int, int]:
            nonlocal tally
            assert log is not None
            log.check_settings(settings)
            # All of the input is read before the model is, which finds every reject again. What an
            # earlier run rejected may have been mended since.
            rejects.path.unlink(missing_ok=True)
            total, tally = compare_with_input(log, preferences)
            return log.count, total

        done, total = _first_decides(begin, config.output)
        speed = ""
        if done < total:
            progress = judge_rest(config, settings, log, done, total, tally)
            speed = f"; {progress.tokens:,} tokens, {progress.tokens_per_second:,.0f} tokens/s"
        if log:
            print(f"{tally}{speed}; written to {log.path}")
    if rejects.count:
        lines = "line is no pair" if rejects.count == 1 else "lines are no pairs"
        print(f"{rejects.count} {lines}: see {rejects.path}", file=sys.stderr)
    return int(
        _first_decides(
            lambda: 1 if rejects.count or tally.problems["prompt_too_long"] else 0, config.output
        )
    )


def judge_rest(
    config: JudgeConfig,
    settings: dict[str, object],
    log: RecordLog | None,
    done: int,
    total: int,
    tally: Tally,
) -> JudgingProgress:
    """Judge the pairs after the first `done` and append their records, where there is a log."""
    judge = load_judge(config)
    if is_one_of_several():
        from rmr1_jax.distributed.hosts import assert_same_on_all_hosts

        assert_same_on_all_hosts(Path(config.input).read_bytes(), about=config.input)

    def note() -> None:
        assert log is not None
        made_with = settings | {"prompt_sha256": judge.prompt.sha256}
        log.check_settings(made_with)
        if done == 0:
            log.write_run_info({"settings": made_with, "prompt_source": judge.prompt_source})
        else:
            print(f"{done} of {total} pairs are judged already", file=sys.stderr)

    _first_decides(note, config.output)
    rest = itertools.islice(
        read_preferences(config.input, rejects=lambda line, reason, text: None), done, total
    )
    console = Console(stderr=True, quiet=log is None)
    written = done
    try:
        with JudgingProgress(total=total, done=done, console=console) as progress:
            for preference, orders in in_input_order(
                judge,
                rest,
                config,
                samples=config.votes,
                swap=config.swap,
                first_index=done,
                on_progress=lambda now: progress.tokens_written(now.tokens),
            ):
                record = judgement_record(preference, *orders)
                if log:
                    log.append(record)
                written += 1
                tally.add(record)
                progress.pair_done()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{log.count if log else written} of {total} pairs are in {config.output}; {GO_ON}"
        ) from None
    return progress


def _writes() -> bool:
    """Whether this process writes the records."""
    if not is_one_of_several():
        return True
    from rmr1_jax.distributed.hosts import is_first

    return is_first()


def _first_decides[T](decide: Callable[[], T], about: object) -> T:
    """`broadcast_from_primary`, without jax where this process is alone."""
    if not is_one_of_several():
        return decide()
    from rmr1_jax.distributed.hosts import broadcast_from_primary

    return broadcast_from_primary(decide, about)


def in_input_order(
    judge: "Judge",
    preferences: Iterable[Preference],
    options: SamplingOptions,
    *,
    samples: int,
    swap: bool,
    first_index: int,
    on_progress: "Callable[[Progress], None] | None" = None,
    max_unwritten: int = MAX_UNWRITTEN,
) -> Iterator[tuple[Preference, list[list["Judgement"]]]]:
    """Each preference with its judgements ([as given] or [as given, swapped]), in input order.

    At most `max_unwritten` preferences are with the judge or wait for an earlier one. At that bound
    the judge is given no more, finishes what it has, and is asked anew.

    Args:
      first_index: position of the first preference in the whole input, so that a run that goes on
        after a kill draws the same random numbers as one that was never killed.
    """
    orders = 2 if swap else 1
    source = iter(preferences)
    index = first_index * orders
    while (head := next(source, None)) is not None:
        asked: deque[Preference] = deque()
        answers: dict[int, list[Judgement]] = {}
        requests = _requests(itertools.chain([head], source), asked, swap, max_unwritten)
        position = 0  # of asked[0] in the requests
        for answered, judgements in judge.judge(
            requests,
            options,
            samples=samples,
            indices=itertools.count(index),
            on_progress=on_progress,
        ):
            answers[answered] = judgements
            while asked and all(position + order in answers for order in range(orders)):
                yield asked.popleft(), [answers.pop(position + order) for order in range(orders)]
                position += orders
        if asked:
            raise RuntimeError(f"the judge left {len(asked)} preferences without a judgement")
        index += position


def _requests(
    source: Iterator[Preference], asked: deque[Preference], swap: bool, max_unwritten: int
) -> Iterator[Preference]:
    """What the judge reads: pairs, each put on `asked` first, and swapped ones after them."""
    while len(asked) < max_unwritten and (preference := next(source, None)) is not None:
        asked.append(preference)
        yield preference
        if swap:
            yield preference.swapped()


def compare_with_input(log: RecordLog, preferences: Iterable[Preference]) -> tuple[int, Tally]:
    """(number of pairs in the input, counts over the records so far).

    Raises UserError unless the records are about the first pairs of the input.
    """
    advice = "the input has changed; choose another --output, or delete this one to start again"
    earlier, tally, total = log.records(), Tally(), 0
    for preference in preferences:
        total += 1
        record = next(earlier, None)
        if record is None:
            continue
        if record["id"] != preference.id:
            raise UserError(
                f"{log.path}, line {total}: is about pair {record['id']!r}, but the input has "
                f"{preference.id!r} in its place: {advice}"
            )
        tally.add(record)
    if next(earlier, None) is not None:
        raise UserError(f"{log.path}: has {log.count} records for {total} pairs: {advice}")
    return total, tally


def judge_one_pair(config: JudgeConfig) -> int:
    """Judge the pair of the command line; the trace is printed as it is written."""
    preference = preference_from_record(
        {
            "question": config.question,
            "response_a": config.response_a,
            "response_b": config.response_b,
        },
        default_id="pair",
    )
    judge = load_judge(config)
    orders = []
    for heading, pair in (
        ("As given", preference),
        *([("Swapped", preference.swapped())] if config.swap else []),
    ):
        if config.swap:
            print(f"--- {heading}")
        orders.append(_judge_aloud(judge, pair, config))
    record = judgement_record(preference, *orders)
    if record["verdict"] is None:
        print(f"Verdict: none ({WHY_NO_VERDICT[record['problem']]})")
    else:
        print(f"Verdict: {record['verdict']}")
    return 1 if record["problem"] == "prompt_too_long" else 0


def _judge_aloud(judge: "Judge", preference: Preference, config: JudgeConfig) -> list["Judgement"]:
    if config.votes > 1:
        _, judgements = next(iter(judge.judge([preference], config, samples=config.votes)))
        for judgement in judgements:
            print(judgement.trace.strip(), end="\n---\n")
        return judgements
    pieces = judge.stream(preference, config)
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print()
            return [end.value]


def load_judge(config: JudgeOptions) -> "Judge":
    """Load the model and say which prompt it is asked with."""
    from rmr1_jax.distributed.hosts import log_primary
    from rmr1_jax.sampling.judge import Judge

    judge = Judge.load(
        config.model,
        prompt=config.prompt or None,
        mesh=config.mesh,
        dtype=config.dtype,
        max_num_seqs=config.max_num_seqs,
        max_context=config.max_context,
    )
    prompt = judge.prompt
    log_primary(f"Prompt: {prompt.style}, SHA-256 {prompt.sha256} ({judge.prompt_source})")
    return judge


def rejects_path(output: str) -> Path:
    """`verdicts.jsonl` -> `verdicts.rejects.jsonl`."""
    return Path(output).with_name(Path(output).stem + ".rejects.jsonl")


def run_settings(config: JudgeConfig) -> dict[str, object]:
    """What makes two runs write the same records."""
    return {
        **judge_settings(config),
        "input": str(Path(config.input).resolve()),
        "swap": config.swap,
    }


def judge_settings(config: JudgeOptions) -> dict[str, object]:
    """What makes two judges write the same traces; slots and mesh do not matter."""
    from rmr1_jax.models.checkpoint import default_dtype, fingerprint

    model = Path(config.model)
    sampling = [field.name for field in fields(SamplingOptions)]
    return {
        "model": str(model.resolve()),
        "model_sha256": fingerprint(model) if model.exists() else "",
        "dtype": config.dtype or default_dtype(),
        **{name: getattr(config, name) for name in [*sampling, "votes", "max_context"]},
    }
