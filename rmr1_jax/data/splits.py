"""What is kept of a surveyed mixture, in which split, and where the chosen response goes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int8, UInt8, UInt64

from rmr1_jax.data.dedup import near_duplicates
from rmr1_jax.data.scan import NO_EXAMPLE, RowStats, Status
from rmr1_jax.errors import UserError

SPLITS = ("train", "validation", "distillation")
_NOWHERE = -1


class EmptyMixture(UserError):
    """No record is left."""


@dataclass(frozen=True)
class Choices:
    """How much of a mixture is taken. Shares and numbers as in `config.PrepareConfig`."""

    balance: str
    validation: float
    distillation: float
    exact_duplicates: bool
    near_duplicates: float
    counts: Mapping[int, int]
    """Source index -> records to keep of it."""


@dataclass(frozen=True)
class Plan:
    """Per row: its status, its split (an index into SPLITS, -1 for none), and the label it gets
    (1 for A, 2 for B, 0: as it is)."""

    status: UInt8[np.ndarray, " N"]
    split: Int8[np.ndarray, " N"]
    label: UInt8[np.ndarray, " N"]

    @property
    def kept(self) -> int:
        return int(np.sum(self.split != _NOWHERE))


def make_plan(facts: RowStats, choices: Choices) -> Plan:
    """Decide about every row; the same facts and choices always give the same plan.

    A duplicate counts as one even if it is contaminated or too long as well, and the earliest row
    stays. Raises EmptyMixture, and UserError where a split is larger than the mixture.
    """
    status = _without_duplicates(facts, choices)
    for source, count in choices.counts.items():
        rows = np.flatnonzero((status == Status.USABLE) & (facts["source"] == source))
        status[rows[_drawn(facts["lot"][rows], "count")[count:]]] = Status.NOT_CHOSEN
    kept = np.flatnonzero(status == Status.USABLE)
    if not len(kept):
        raise EmptyMixture(
            f"the mixture is empty: of {len(status)} records none is left; loosen the filters, "
            "leave out --against, or add a source"
        )
    split = np.full(len(status), _NOWHERE, np.int8)
    split[kept] = SPLITS.index("train")
    for name in SPLITS[1:]:
        wanted = getattr(choices, name)
        train = np.flatnonzero(split == SPLITS.index("train"))
        number = _number(name, wanted, len(train))
        split[train[_drawn(facts["lot"][train], name)[:number]]] = SPLITS.index(name)
    return Plan(status, split, _labels(facts, kept, choices.balance))


def _without_duplicates(facts: RowStats, choices: Choices) -> UInt8[np.ndarray, " N"]:
    status = np.array(facts["status"])
    examples = np.flatnonzero(~np.isin(status, NO_EXAMPLE))
    if choices.exact_duplicates:
        _, first = np.unique(facts["content"][examples], return_index=True)
        again = np.ones(len(examples), bool)
        again[first] = False
        status[examples[again]] = Status.DUPLICATE
        examples = examples[~again]
    if choices.near_duplicates:
        near = near_duplicates(facts["signature"], examples, choices.near_duplicates)
        status[examples[near]] = Status.NEAR_DUPLICATE
    return status


def repeated_ids(facts: RowStats) -> Bool[np.ndarray, " N"]:
    """Rows whose source and id an earlier row has too."""
    again = np.ones(len(facts), bool)
    again[np.unique(facts["lot"], return_index=True)[1]] = False
    return again & ~np.isin(facts["status"], NO_EXAMPLE)


def _number(name: str, wanted: float, available: int) -> int:
    share = wanted < 1 or (name == "distillation" and wanted == 1)
    number = int(wanted * available) if share else int(wanted)
    if number > available or (name == "validation" and number == available):
        raise UserError(
            f"--{name}={wanted:g} is more than the {available} records there are for it; "
            f"give a share below 1, or a smaller number"
        )
    return number


def _labels(facts: RowStats, kept: np.ndarray, balance: str) -> UInt8[np.ndarray, " N"]:
    """As published (mix_data.py), "alternate" counts the records of all sources in one go: the
    first has its chosen response as A, the second as B. Rendered prompts stay as they are."""
    labels = np.zeros(len(facts), np.uint8)
    free = kept[facts["rendered"][kept] == 0]
    if balance == "alternate":
        labels[free] = 1 + np.arange(len(free)) % 2
    elif balance == "shuffle":
        labels[free] = 1 + (_mixed(facts["lot"][free], "side") >> np.uint64(63))
    return labels


def _drawn(lots: UInt64[np.ndarray, " n"], purpose: str) -> np.ndarray:
    """Indices in a random order that is the same for the same ids and seed, and a different one
    for each purpose. An added source or record leaves the order of the others as it was."""
    return np.argsort(_mixed(lots, purpose), kind="stable")


def _mixed(lots: UInt64[np.ndarray, " n"], purpose: str) -> UInt64[np.ndarray, " n"]:
    """The finaliser of SplitMix64, salted."""
    mixed = lots + np.uint64(int.from_bytes(purpose.encode().ljust(8)[:8], "little"))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
