"""What is sampled: prompts, and how long each response is, from fixed seeds.

Lengths are forced alike in both engines, and neither is told them: nothing is sorted by length, and
a response is only known to be finished when it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.prompts import MakePrompts
from rmr1_jax.config import Sampling
from rmr1_jax.sampling.scheduler import Request

SIGMA = 1.0  # of the logarithm of a length: 8 times the mean is then its 99.5th percentile
MEAN_LENGTH = 64  # an eighth of a judge's, which keeps a run on a CPU within minutes
LONGEST_LENGTH = 8 * MEAN_LENGTH
SPREAD = f"mean {MEAN_LENGTH}, longest {LONGEST_LENGTH}"


@dataclass(frozen=True)
class Workload:
    """Prompts, each answered by a group of samples of given lengths.

    Without `stop_ids` every sample of a prompt has the length that is its request's
    `max_new_tokens`. With them (one tuple a prompt) it ends at the first of them, and `lengths` are
    what is hoped for: read them off the first run.
    """

    name: str
    title: str
    prompts: Sequence[list[int]]
    lengths: Sequence[list[int]]  # [prompt][sample]
    limit: int  # the longest response that is allowed for
    slots: int
    temperature: float = 0.0
    stop_ids: Sequence[tuple[int, ...]] = ()
    with_transformers: bool = True

    @property
    def group_size(self) -> int:
        return len(self.lengths[0])

    @property
    def tokens(self) -> int:
        """New tokens of all samples."""
        return sum(map(sum, self.lengths))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once however many samples it has."""
        return sum(map(len, self.prompts))

    def requests(self) -> list[Request]:
        """For our engine, in queue order."""
        return [
            Request(
                tokens=prompt,
                max_new_tokens=self.limit if self.stop_ids else self.lengths[index][0],
                stop_ids=self.stop_ids[index] if self.stop_ids else (),
                index=index,
                sampling=Sampling(temperature=self.temperature),
            )
            for index, prompt in enumerate(self.prompts)
        ]


def equal_lengths(make_prompts: MakePrompts) -> Workload:
    """(a) 16 rows that start and end together."""
    return Workload(
        name="a",
        title="16 rows x 128 prompt + 128 new tokens",
        prompts=make_prompts([128] * 16, 1),
        lengths=[[128]] * 16,
        limit=128,
        slots=16,
    )


def spread_lengths(make_prompts: MakePrompts, scale: float) -> Workload:
    """(b) log-normal lengths, the longest 8 times the mean."""
    count = max(round(128 * scale), 16)
    widths = np.random.default_rng(3).integers(64, 128, count, endpoint=True)
    return Workload(
        name="b",
        title=f"{count} requests, lengths log-normal ({SPREAD}), prompts of 64 to 128",
        prompts=make_prompts(widths.tolist(), 4),
        lengths=[[length] for length in log_normal_lengths(count, seed=2)],
        limit=LONGEST_LENGTH,
        slots=16,
    )


def equal_groups(make_prompts: MakePrompts, scale: float) -> Workload:
    """(c) 7 samples of 64 tokens for each prompt of 1,024."""
    count = max(round(8 * scale), 2)
    return Workload(
        name="c",
        title=f"{count} prompts of 1,024 x 7 samples x 64 new tokens",
        prompts=make_prompts([1024] * count, 5),
        lengths=[[64] * 7] * count,
        limit=64,
        slots=28,
        temperature=1.0,
    )


def spread_groups(
    make_prompts: MakePrompts, scale: float, run: Callable[[Workload], list[list[list[int]]]]
) -> Workload:
    """(c) with log-normal lengths inside each group; for the occupancy of our engine only.

    A request has one maximum for all its samples, so these end by stop ids. At a very high
    temperature samples have tokens of their own; `run` draws them all to the limit, and each prompt
    gets the stop ids that end its samples where they should: the same random numbers draw the same
    tokens again.
    """
    equal = equal_groups(make_prompts, scale)
    count, group_size = len(equal.prompts), equal.group_size
    wanted = np.reshape(log_normal_lengths(count * group_size, seed=6), (count, group_size))
    free = replace(
        equal,
        name="c_spread",
        title=f"{count} prompts of 1,024 x 7 samples, lengths log-normal ({SPREAD})",
        lengths=[[LONGEST_LENGTH] * group_size] * count,
        limit=LONGEST_LENGTH,
        temperature=1000.0,
        with_transformers=False,
    )
    samples = run(free)
    lengths = wanted.tolist()
    stop_ids = [choose_stop_ids(*group) for group in zip(samples, lengths, strict=True)]
    return replace(free, lengths=lengths, stop_ids=stop_ids)


def log_normal_lengths(
    count: int, *, mean: int = MEAN_LENGTH, longest: int = LONGEST_LENGTH, seed: int
) -> list[int]:
    """`count` lengths in random order whose sum is exactly `count * mean`.

    One is `longest`, all others are shorter: draws from a log-normal distribution, scaled alike.
    """
    draws = np.random.default_rng(seed).lognormal(0.0, SIGMA, count)
    most = int(draws.argmax())
    others = np.delete(draws, most)
    target = count * mean - longest
    if not count - 1 <= target <= (count - 1) * (longest - 1):
        raise ValueError(f"{count} lengths of mean {mean} cannot have a longest one of {longest}")
    low, high = 0.0, longest / others.min()
    for _ in range(100):
        middle = (low + high) / 2
        short = np.clip(middle * others, 1, longest - 1).sum() < target
        low, high = (middle, high) if short else (low, middle)
    exact = np.clip(high * others, 1, longest - 1)
    # Rounding the running sum keeps the total; 1e-6 is for sums that fall just short of an integer.
    whole = np.diff(np.floor(np.cumsum(exact) + 1e-6), prepend=0).astype(int)
    return np.insert(whole, most, longest).tolist()


def choose_stop_ids(samples: Sequence[list[int]], wanted: Sequence[int]) -> tuple[int, ...]:
    """Token ids, at most one a sample, that end each sample near its wanted length.

    A sample as long as wanted already needs none. Where a sample has no token that fits, it gets
    none and goes on to the limit.
    """
    ends, stops = list(wanted), []
    for own in sorted(range(len(samples)), key=lambda index: -wanted[index]):
        if wanted[own] >= len(samples[own]):
            continue
        used = {
            token
            for other, sample in enumerate(samples)
            if other != own
            for token in sample[: ends[other] - 1]
        }
        first: dict[int, int] = {}  # token -> the length at which it would end this sample
        for length, token in enumerate(samples[own], start=1):
            first.setdefault(token, length)
        fitting = {token: length for token, length in first.items() if token not in used}
        if fitting:
            best = min(fitting, key=lambda token: abs(fitting[token] - wanted[own]))
            stops.append(best)
            ends[own] = fitting[best]
    return tuple(stops)
