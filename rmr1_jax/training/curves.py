"""A run as a picture: what it learnt by, and how often it judged right."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rmr1_jax.training.metrics import read_metrics

CURVES = "curves.png"
ACCURACY, CONSISTENT = "validation/verdict_accuracy", "validation/consistent"
# From so many points on a curve is shown by its running mean, over a tenth of them.
MANY = 30

Records = Sequence[Mapping[str, Any]]
Timed = Sequence[tuple[float, Mapping[str, Any]]]  # records, and the minute of each
Curve = tuple[str, str, dict[str, Any]]  # the number's name, its label, and how it is drawn

TRAINING, HELD_OUT, CONSISTENCY = {"color": "0.45"}, {"color": "C0"}, {"color": "C2"}
MEASURED: dict[str, Any] = {"marker": "o", "ms": 4}  # now and then, not at every step


@dataclass(frozen=True)
class Panel:
    """A small picture of several curves; `axes` are matplotlib's settings of it."""

    title: str
    curves: tuple[Curve, ...]
    axes: dict[str, Any] = field(default_factory=dict)


SHARE = {"ylim": (-0.02, 1.02)}
GRPO_PANELS = (
    Panel(
        "judged right",
        (
            ("accuracy", "while training", TRAINING),
            (ACCURACY, "held out, both orders", HELD_OUT | MEASURED),
            (CONSISTENT, "same winner in both orders", CONSISTENCY | MEASURED | {"marker": "s"}),
        ),
        SHARE,
    ),
    Panel("reward, mean of a step", (("reward", "", TRAINING),)),
    Panel(
        "tokens a trace",
        (
            ("response_tokens", "while training", TRAINING),
            ("validation/trace_tokens", "held out", HELD_OUT | MEASURED),
        ),
        {"ylim": (0, None)},
    ),
    Panel(
        "share of groups or traces",
        (
            ("zero_signal", "groups without signal", {"color": "C4"}),
            ("truncated", "traces cut off", {"color": "C1"}),
            ("no_verdict", "traces without verdict", {"color": "C3"}),
        ),
        SHARE,
    ),
    Panel("KL to the reference (nats a token)", (("kl", "", TRAINING),), {"ylim": (0, None)}),
    Panel("entropy (nats a token)", (("entropy", "", TRAINING),), {"ylim": (0, None)}),
    Panel(
        "share of tokens clipped",
        (
            ("clipped_low", "ratio below its bound", {"color": "C0"}),
            ("clipped_high", "ratio above its bound", {"color": "C1"}),
        ),
        {"ylim": (0, None)},
    ),
    Panel(
        "sampler against trainer, log-probability",
        (
            ("mismatch_max", "largest difference", {"color": "C1"}),
            ("mismatch_mean", "mean difference", {"color": "C0"}),
            ("mismatch_outside", "share of ratios outside 0.9 to 1.1", {"color": "C3"}),
        ),
        {"yscale": "log"},
    ),
)
# What a step spends its seconds on, in the order it does.
PARTS = {
    "reshard": "reshard",
    "rollout": "rollout",
    "reward": "reward",
    "logprobs": "log-probabilities",
    "update": "update",
    "save": "save",
}


def draw_curves(workdir: str | Path, title: str) -> Path | None:
    """Draw supervised fine-tuning's `metrics.jsonl` as `curves.png`; None if there is none yet."""
    records = read_metrics(workdir)
    if not series(records, "loss"):
        return None
    judged = series(records, ACCURACY)
    path = Path(workdir) / CURVES
    with picture(path, title, panels=2 if judged else 1, columns=2) as panels:
        loss = panels[0]
        loss.plot(*zip(*series(records, "loss"), strict=True), color="0.6", label="training")
        if validated := series(records, "validation/loss"):
            loss.plot(*zip(*validated, strict=True), marker="o", color="C0", label="held out")
        loss.set(xlabel="step", ylabel="negative log-likelihood (nats a token)", yscale="log")
        loss.legend(frameon=False)
        if judged:
            verdict = panels[1]
            for name, label, style in (
                (ACCURACY, "verdicts right, both orders", "o-"),
                (f"{ACCURACY}_given", "as given", ":"),
                (f"{ACCURACY}_swapped", "swapped", "--"),
                (CONSISTENT, "same winner in both orders", "s-"),
            ):
                verdict.plot(*zip(*series(records, name), strict=True), style, label=label, ms=4)
            verdict.axhline(0.5, color="0.8", lw=1, zorder=0)
            verdict.set(xlabel="step", ylabel="share of held-out judgements", ylim=(0, 1.02))
            verdict.legend(frameon=False, loc="lower right")
    return path


def draw_grpo_curves(workdir: str | Path, title: str) -> Path | None:
    """Draw a GRPO run's `metrics.jsonl` as `curves.png`; None where there is nothing to draw yet.

    A panel for which no record has a number is left out.
    """
    records = [
        record | {"no_verdict": 1 - record["format"]} if is_number(record.get("format")) else record
        for record in read_metrics(workdir)
    ]
    shown = [
        panel for panel in GRPO_PANELS if any(series(records, name) for name, *_ in panel.curves)
    ]
    if not shown:
        return None
    timed = any(seconds > 0 for part in PARTS for _, seconds in series(records, f"seconds_{part}"))
    path = Path(workdir) / CURVES
    with picture(path, title, panels=len(shown) + timed, columns=3) as panels:
        for axes, panel in zip(panels, shown, strict=False):
            draw_panel(axes, panel, records)
        if timed:
            draw_seconds(panels[-1], records)
        for axes in panels:
            axes.set_xlabel("step")
            axes.xaxis.get_major_locator().set_params(integer=True)
    return path


def draw_stages(runs: Sequence[tuple[str, str | Path]], out: str | Path, title: str) -> Path | None:
    """Draw one stage of training after the other: held-out accuracy over minutes of training.

    Args:
      runs: name and working directory of each stage, in order. The model before training is a
        validation at step 0 of the first one.
      out: the picture. None is returned where no stage has a validation yet.

    Minutes are of steps alone, without validations and saving.
    """
    stages: list[tuple[str, float, float, Timed]] = []
    end = 0.0
    for name, workdir in runs:
        records = read_metrics(workdir)
        begin = end
        timed: Timed = [
            (begin + seconds / 60, record)
            for seconds, record in zip(elapsed(records), records, strict=True)
        ]
        end = max([begin, *(minute for minute, _ in timed)])
        stages.append((name, begin, end, timed))
    if not any(over_time(timed, ACCURACY) for *_, timed in stages):
        return None
    path = Path(out)
    with picture(path, title, panels=1, columns=1, size=(9, 5)) as [axes]:
        for number, (name, begin, end, timed) in enumerate(stages):
            if begin == end:
                continue
            axes.axvspan(begin, end, color=f"C{number}", alpha=0.08, lw=0)
            axes.annotate(
                name,
                ((begin + end) / 2, 1),
                (0, 5),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                color="0.3",
            )
            judged = over_time(timed, ACCURACY)
            first = judged[:1] if number == 0 else []
            for minute, accuracy in {*first, *judged[-1:]}:
                axes.annotate(
                    f"{accuracy:.1%}",
                    (minute, accuracy),
                    (6, 7) if minute == begin else (-4, 7),
                    textcoords="offset points",
                    ha="left" if minute == begin else "right",
                    color="C0",
                    bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
                    zorder=3,
                )
        for key, label, style in (
            (ACCURACY, "verdicts right, both orders", HELD_OUT | MEASURED),
            (CONSISTENT, "same winner in both orders", CONSISTENCY | MEASURED | {"marker": "s"}),
        ):
            points = [point for *_, timed in stages for point in over_time(timed, key)]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, clip_on=False, **style)
        axes.axhline(0.5, color="0.8", lw=1, zorder=0)
        axes.set(xlabel="minutes of training", ylabel="share of held-out judgements")
        axes.set(ylim=(0, 1.07), xlim=(0, end or None))
        axes.legend(frameon=False, loc="lower right")
    return path


def over_time(timed: Timed, key: str) -> list[tuple[float, float]]:
    """(minute, value) wherever a record has a number of this name."""
    return [(minute, record[key]) for minute, record in timed if is_number(record.get(key))]


def elapsed(records: Records) -> list[float]:
    """Seconds of training at each record. Steps between two records took what the later one did."""
    total, step, out = 0.0, 0, []
    for record in records:
        seconds = record.get("seconds")
        total += (record["step"] - step) * seconds if is_number(seconds) else 0.0
        step = record["step"]
        out.append(total)
    return out


def series(records: Records, name: str) -> list[tuple[int, float]]:
    """(step, value) wherever a record has a number of this name."""
    return [(record["step"], record[name]) for record in records if is_number(record.get(name))]


def is_number(value: object) -> bool:
    return isinstance(value, int | float)


def draw_panel(axes: Any, panel: Panel, records: Records) -> None:
    labelled = False
    for name, label, style in panel.curves:
        points = series(records, name)
        if panel.axes.get("yscale") == "log":
            points = [(step, value) for step, value in points if value > 0]
        if not points:
            continue
        steps, values = [step for step, _ in points], [value for _, value in points]
        if "marker" not in style and len(points) >= MANY:
            axes.plot(steps, values, **style, alpha=0.3, lw=0.8)
            values = running_mean(values, len(values) // 20)
        axes.plot(steps, values, **style, label=label)
        labelled |= bool(label)
    axes.set_title(panel.title, fontsize="medium", loc="left")
    axes.set(**panel.axes)
    if labelled:
        axes.legend(frameon=False, fontsize="small")


def draw_seconds(axes: Any, records: Records) -> None:
    """What each step spent its seconds on, one part upon the other; what is hardly seen is not."""
    steps = [step for step, _ in series(records, "seconds")]
    by_part = {part: dict(series(records, f"seconds_{part}")) for part in PARTS}
    least = 0.01 * sum(sum(seconds.values()) for seconds in by_part.values())
    spent = {
        PARTS[part]: [seconds.get(step, 0.0) for step in steps]
        for part, seconds in by_part.items()
        if sum(seconds.values()) > least
    }
    axes.stackplot(steps, *spent.values(), labels=spent.keys(), alpha=0.8, lw=0)
    axes.set_title("seconds a step", fontsize="medium", loc="left")
    # Of many steps, the few that compiled may leave the picture. The rest is room for the legend.
    totals = sorted(map(sum, zip(*spent.values(), strict=True)))
    axes.set_ylim(0, 1.35 * totals[-1 - len(totals) // 20])
    axes.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Each value's mean with so many before it and after it."""
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


@contextmanager
def picture(
    path: Path, title: str, *, panels: int, columns: int, size: tuple[float, float] | None = None
) -> Iterator[list[Any]]:
    """Axes to draw on, in rows of up to so many columns; saved at the end."""
    import matplotlib  # here: it takes a while to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(columns, panels)
    rows = -(-panels // columns)
    width, height = (6, 4) if columns == 1 else (5, 4) if columns == 2 else (4.6, 3.1)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=size or (width * columns, height * rows), squeeze=False, dpi=120
    )
    try:
        axes = list(grid.flat)
        for unused in axes[panels:]:
            unused.remove()
        yield axes[:panels]
        for one in axes[:panels]:
            one.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title)
        figure.tight_layout()
        figure.savefig(path)
    finally:
        pyplot.close(figure)
