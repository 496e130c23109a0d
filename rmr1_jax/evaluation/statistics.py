"""How sure a score is: the bootstrap over prompts, plain means, and the exact McNemar test."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from rmr1_jax.evaluation.benchmark import Table

REPLICATES = 1000


@dataclass(frozen=True)
class Score:
    """A number of a report, as a fraction."""

    value: float | None
    """None where nothing it is made of was judged."""
    n: int
    """How many judged items it is made of; in plain means, how many judgements."""
    complete: bool
    """Whether all that the benchmark asks for was judged."""
    stderr: float | None
    """Standard deviation over the bootstrap's replicates; None of a single item."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def resamples(
    strata: Int[np.ndarray, " prompts"], replicates: int, seed: int
) -> Iterator[Float[np.ndarray, " prompts"]]:
    """How often each prompt is drawn, with replacement and within its stratum, once a replicate.

    The same strata and seed give the same draws, which is what pairs the scores of two runs. Strata
    of one prompt each are drawn together: alone, such a prompt would seem to be certain.
    """
    _, stratum, size = np.unique(strata, return_inverse=True, return_counts=True)
    strata = np.where(size[stratum] == 1, -1, stratum)
    order = np.argsort(strata, kind="stable")
    _, first, sizes = np.unique(strata[order], return_index=True, return_counts=True)
    first, sizes = np.repeat(first, sizes), np.repeat(sizes, sizes)
    random = np.random.default_rng(seed)
    weights = np.empty(len(strata))
    for _ in range(replicates):
        drawn = first + (random.random(len(strata)) * sizes).astype(np.int64)
        weights[order] = np.bincount(drawn, minlength=len(strata))
        yield weights.copy()


def replicate_values(
    table: "Table", replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Float[np.ndarray, " replicates"]]:
    """Each score on each of the bootstrap's replicates; NaN where it drew nothing of the score."""
    rows = [table.values(weights) for weights in resamples(table.strata, replicates, seed)]
    return {name: np.array([row[name] for row in rows]) for name in table.support()}


def bootstrap(table: "Table", replicates: int = REPLICATES, seed: int = 0) -> dict[str, float]:
    """Standard error of each score, were other prompts asked of the same strata.

    All judgements of a prompt stay together, since they are no independent evidence. NaN where
    fewer than two replicates have a value.
    """
    return {
        name: _spread(values) for name, values in replicate_values(table, replicates, seed).items()
    }


def scores(table: "Table", replicates: int = REPLICATES, seed: int = 0) -> dict[str, Score]:
    """Value, support and standard error of each score of a table."""
    values = table.values(np.ones(len(table.strata)))
    errors = bootstrap(table, replicates, seed)
    return {
        name: Score(number(values[name]), n, complete, number(errors[name]) if n > 1 else None)
        for name, (n, complete) in table.support().items()
    }


def number(value: float) -> float | None:
    """A plain float for JSON; None for NaN and the infinities, which JSON has not."""
    value = float(value)
    return value if math.isfinite(value) else None


class Means:
    """A table of plain means over judgements: each column is a score, NaN what it leaves out.

    `clusters` names the prompt of each judgement. All prompts are one stratum. A score is complete
    if `complete` says so.
    """

    def __init__(
        self,
        clusters: Sequence[Hashable],
        columns: Mapping[str, Float[np.ndarray, " judgements"]],
        complete: bool = True,
    ) -> None:
        places: dict[Hashable, int] = {}
        prompt = np.array([places.setdefault(each, len(places)) for each in clusters], np.int64)
        self.strata = np.zeros(len(places), np.int64)
        self._names = list(columns)
        self._complete = complete
        self._n = [int(np.isfinite(column).sum()) for column in columns.values()]
        shape = (len(places), len(columns))
        self._sums, self._counts = np.zeros(shape), np.zeros(shape)
        for j, column in enumerate(columns.values()):
            there = np.isfinite(column)
            np.add.at(self._sums[:, j], prompt[there], column[there])
            np.add.at(self._counts[:, j], prompt[there], 1)

    def values(self, weights: Float[np.ndarray, " prompts"]) -> dict[str, float]:
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a score without judgements
            means = (weights @ self._sums) / (weights @ self._counts)
        return dict(zip(self._names, means.tolist(), strict=True))

    def support(self) -> dict[str, tuple[int, bool]]:
        return {name: (n, self._complete) for name, n in zip(self._names, self._n, strict=True)}

    def details(self) -> dict[str, Any]:
        return {}


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test, from how many items only one of two judges got right.

    Under the null hypothesis each of these is a fair coin. It takes the items for independent;
    where several share a prompt, the bootstrap's interval is the more careful one.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    tail, term = 0, 1
    for i in range(fewer + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n)


def _spread(values: Float[np.ndarray, " replicates"]) -> float:
    there = values[np.isfinite(values)]
    return float(np.std(there, ddof=1)) if len(there) > 1 else math.nan
