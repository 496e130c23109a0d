"""What `--stage=evaluate` is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rmr1_jax.config.checks import at_least, check_choices, one_of
from rmr1_jax.config.judge_config import JudgeOptions
from rmr1_jax.errors import UserError

BENCHMARKS = ("rewardbench", "rm_bench", "rmb", "preferences")


@dataclass(frozen=True)
class EvaluateConfig(JudgeOptions):
    """Measure a judge on RewardBench, RM-Bench, RMB or labelled pairs of your own: a record of
    every judgement, scores with errors, and a report to read."""

    output: str = ""
    """The directory for records, scores.json and report.html. Rerun the command to resume it."""
    benchmarks: str = "rewardbench,rm_bench,rmb"
    """Which to judge, separated by commas: rewardbench, rm_bench, rmb, preferences."""
    rewardbench: str = ""
    """A JSONL, JSON or Parquet file with the fields of allenai/reward-bench. Empty: the hub."""
    rm_bench: str = ""
    """total_dataset.json, or a part of it. Empty: the hub."""
    rmb: str = ""
    """The directory that holds Pairwise_set and BoN_set, or a part of them. Empty: a copy on the
    hub."""
    preferences: str = ""
    """Labelled pairs, in any layout that `rmr1 prepare` reads."""
    limit: int | None = None
    """Judge about this many pairs of each benchmark, evenly spread over it. None: all."""
    order: str = "published"
    """Which response is A: published (drawn once per pair with RandomState(0)), both (each pair in
    both orders), or seed=N (other draws)."""
    rule: Literal["published", "rewardbench"] = "published"
    """What a judgement without a verdict is worth: published (0) or rewardbench (0.5)."""
    max_new_tokens: int = 50_000
    """The longest trace, in tokens. The published default means: as long as the context allows."""
    budget: int | None = None
    """Close a trace after this many tokens and ask once more for the verdict alone."""
    score_only: bool = False
    """Judge nothing: score the records in --output, whoever made them."""
    import_logs: str = ""
    """Judge nothing: turn published logs of RM-R1 (a directory or file) into records in --output,
    and score these."""
    compare: tuple[str, ...] = ()
    """Judge nothing: compare the records of these directories, pair by pair, in --output."""
    report_samples: int = 1000
    """Judgements of each benchmark that can be read in report.html; all are in the records."""

    @property
    def chosen(self) -> list[str]:
        """The benchmarks by name."""
        return [name.strip() for name in self.benchmarks.split(",") if name.strip()]

    def check(self) -> None:
        """Refuse what cannot work, before anything is read. Raises UserError."""
        check_choices(self)
        if not self.output:
            raise UserError("--stage=evaluate needs --output=DIRECTORY: where the results go")
        if Path(self.output).exists() and not Path(self.output).is_dir():
            raise UserError(f"--output={self.output}: is a file; name a directory")
        at_least("report_samples", self.report_samples, 0)
        ways = [name for name in ("score_only", "import_logs", "compare") if getattr(self, name)]
        if len(ways) > 1:
            raise UserError(f"--{ways[0]} and --{ways[1]} exclude each other; choose one")
        if ways:
            self._check_without_judging(ways[0])
            return
        self.check_judge("evaluate")
        if not self.chosen:
            raise UserError(f"--benchmarks is empty; choose some of {', '.join(BENCHMARKS)}")
        for name in self.chosen:
            one_of("benchmarks", name, BENCHMARKS)
        if len(set(self.chosen)) < len(self.chosen):
            raise UserError(f"--benchmarks={self.benchmarks}: names one twice")
        for name in BENCHMARKS:
            if getattr(self, name) and name not in self.chosen:
                raise UserError(
                    f"--{name} is given, but --benchmarks={self.benchmarks} leaves {name} out; "
                    "add it there"
                )
        if "preferences" in self.chosen and not self.preferences:
            raise UserError("the benchmark preferences needs --preferences=FILE: labelled pairs")
        if self.limit is not None:
            at_least("limit", self.limit, 1)
        if self.budget is not None:
            at_least("budget", self.budget, 1)

    def _check_without_judging(self, way: str) -> None:
        if self.model:
            raise UserError(f"--{way} judges nothing; leave out --model")
        if way == "compare":
            if len(self.compare) < 2:
                raise UserError("--compare needs two or more directories of results")
            for directory in self.compare:
                if not (Path(directory) / "records").is_dir():
                    raise UserError(
                        f"--compare {directory}: holds no records; name an --output of this stage"
                    )
        if way == "import_logs" and not Path(self.import_logs).exists():
            raise UserError(f"--import_logs={self.import_logs}: there is no such file or directory")
