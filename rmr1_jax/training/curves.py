"""A run as a picture, drawn from its metrics: what it learnt by, and how often it judged right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rmr1_jax.training.metrics import read_metrics

CURVES = "curves.png"
ACCURACY, CONSISTENT = "validation/verdict_accuracy", "validation/consistent"
MANY = 30  # a curve of this many points is shown by its running mean, over a tenth of them

Records = Sequence[Mapping[str, Any]]
Style = dict[str, Any]  # matplotlib's, of a curve or of a panel
# Title, settings of the axes, and (number, label, style) of each curve.
Panel = tuple[str, Style, tuple[tuple[str, str, Style], ...]]

TRAINING: Style = {"color": "0.45"}
HELD_OUT: Style = {"color": "C0", "marker": "o", "ms": 4}  # measured now and then
CONSISTENCY: Style = {"color": "C2", "marker": "s", "ms": 4}
SHARE, POSITIVE = {"ylim": (-0.02, 1.02)}, {"ylim": (0, None)}
JUDGED = (
    (ACCURACY, "held out, both orders", HELD_OUT),
    (CONSISTENT, "same winner in both orders", CONSISTENCY),
)
SFT_PANELS: tuple[Panel, ...] = (
    (
        "negative log-likelihood (nats a token)",
        {"yscale": "log"},
        (("loss", "training", TRAINING), ("validation/loss", "held out", HELD_OUT)),
    ),
    (
        "judged right",
        SHARE,
        (
            *JUDGED,
            (f"{ACCURACY}_given", "as given", {"color": "C1", "ls": ":", "marker": "."}),
            (f"{ACCURACY}_swapped", "swapped", {"color": "C3", "ls": "--", "marker": "."}),
        ),
    ),
)
GRPO_PANELS: tuple[Panel, ...] = (
    ("judged right", SHARE, (("accuracy", "while training", TRAINING), *JUDGED)),
    ("reward, mean of a step", {}, (("reward", "", TRAINING),)),
    (
        "tokens a trace",
        POSITIVE,
        (
            ("response_tokens", "while training", TRAINING),
            ("validation/trace_tokens", "held out", HELD_OUT),
        ),
    ),
    (
        "share of groups or traces",
        SHARE,
        (
            ("zero_signal", "groups without signal", {"color": "C4"}),
            ("truncated", "traces cut off", {"color": "C1"}),
            ("no_verdict", "traces without verdict", {"color": "C3"}),
        ),
    ),
    ("KL to the reference (nats a token)", POSITIVE, (("kl", "", TRAINING),)),
    ("entropy (nats a token)", POSITIVE, (("entropy", "", TRAINING),)),
    (
        "share of tokens clipped",
        POSITIVE,
        (
            ("clipped_low", "ratio below its bound", {"color": "C0"}),
            ("clipped_high", "ratio above its bound", {"color": "C1"}),
        ),
    ),
    (
        "sampler against trainer, log-probability",
        {"yscale": "log"},
        (
            ("mismatch_max", "largest difference", {"color": "C1"}),
            ("mismatch_mean", "mean difference", {"color": "C0"}),
            ("mismatch_outside", "share of ratios outside 0.9 to 1.1", {"color": "C3"}),
        ),
    ),
)
# What a GRPO step spends its seconds on, in order.
PARTS = ("reshard", "rollout", "reward", "logprobs", "update", "save")


def draw_curves(workdir: str | Path, title: str = "") -> Path | None:
    """Draw a run's metrics as `curves.png` in its directory; None if there is nothing to draw yet.

    A panel for which no record has a number is left out.
    """
    records = [
        record | {"no_verdict": 1 - record["format"]} if is_number(record.get("format")) else record
        for record in read_metrics(workdir)
    ]
    rewarded = any("reward" in record for record in records)
    panels = [
        panel
        for panel in (GRPO_PANELS if rewarded else SFT_PANELS)
        if any(series(records, name) for name, *_ in panel[2])
    ]
    if not panels:
        return None
    stepped = [record for record in records if is_number(record.get("seconds"))]
    spent = seconds_by_part(stepped) if rewarded else {}
    figure, grid = new_figure(len(panels) + bool(spent))
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel, records)
    if spent:
        totals = sorted(map(sum, zip(*spent.values(), strict=True)))
        steps = [record["step"] for record in stepped]
        grid[-1].stackplot(steps, *spent.values(), labels=spent, alpha=0.8, lw=0)
        # The few steps that compiled may leave the picture. The rest is room for the legend.
        grid[-1].set_ylim(0, 1.35 * totals[-1 - len(totals) // 20])
        grid[-1].set_title("seconds a step", fontsize="medium", loc="left")
        grid[-1].legend(frameon=False, fontsize="small", ncols=2, loc="upper left")
    for axes in grid:
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
    stage = "reinforcement learning" if rewarded else "supervised fine-tuning"
    figure.suptitle(title or f"{Path(workdir).name}: {stage}")
    path = Path(workdir) / CURVES
    figure.savefig(path)
    return path


def draw_stages(runs: Sequence[tuple[str, str | Path]], out: str | Path, title: str) -> Path | None:
    """Draw one stage of training after the other: held-out accuracy over minutes of training.

    Args:
      runs: name and working directory of each stage, in order. The model before training is a
        validation at step 0 of the first one.
      out: the picture. None is returned where no stage has a validation yet.

    Minutes are of steps alone, without validations and saving.
    """
    end, spans, points = 0.0, [], []
    for name, workdir in runs:
        records, begin = read_metrics(workdir), end
        minutes = [begin + seconds / 60 for seconds in elapsed(records)]
        points.append([(m, r) for m, r in zip(minutes, records, strict=True) if ACCURACY in r])
        end = max([begin, *minutes])
        spans.append((name, begin, end))
    if not any(points):
        return None
    figure, [axes] = new_figure(1, size=(9, 5))
    for number, (name, begin, until) in enumerate(spans):
        if begin == until:
            continue
        axes.axvspan(begin, until, color=f"C{number}", alpha=0.08, lw=0)
        axes.text((begin + until) / 2, 1.08, name, ha="center", color="0.3")
        ends = [*points[number][:1], *points[number][-1:]][number > 0 :]
        for minute, record in dict(ends).items():
            axes.annotate(
                f"{record[ACCURACY]:.1%}",
                (minute, record[ACCURACY]),
                (6, 7) if minute == begin else (-4, 7),
                textcoords="offset points",
                ha="left" if minute == begin else "right",
                color="C0",
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
                zorder=3,
            )
    for key, label, style in JUDGED:
        drawn = [(minute, record[key]) for stage in points for minute, record in stage]
        axes.plot(*zip(*drawn, strict=True), label=label, clip_on=False, **style)
    axes.axhline(0.5, color="0.8", lw=1, zorder=0)
    axes.set(xlabel="minutes of training", ylabel="share of held-out judgements")
    axes.set(ylim=(0, 1.07), xlim=(0, end or None))
    axes.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    figure.savefig(out)
    return Path(out)


def new_figure(panels: int, size: tuple[float, float] | None = None) -> tuple[Any, list[Any]]:
    """A figure, and the axes of its panels in rows of up to three."""
    from matplotlib.figure import Figure  # here: it takes a while to import

    columns = min(panels, 2 if panels <= 2 else 3)
    rows = -(-panels // columns)
    width, height = (5.0, 4.0) if rows == 1 else (4.6, 3.1)
    figure = Figure(figsize=size or (width * columns, height * rows), dpi=120, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[panels:]:
        unused.remove()
    for axes in grid[:panels]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid[:panels]


def draw_panel(axes: Any, panel: Panel, records: Records) -> None:
    title, settings, curves = panel
    for name, label, style in curves:
        points = series(records, name)
        if settings.get("yscale") == "log":
            points = [(step, value) for step, value in points if value > 0]
        if not points:
            continue
        steps, values = [step for step, _ in points], [value for _, value in points]
        if "marker" not in style and len(points) >= MANY:
            axes.plot(steps, values, **style, alpha=0.3, lw=0.8)
            values = running_mean(values, len(values) // 20)
        axes.plot(steps, values, **style, label=label)
    axes.set_title(title, fontsize="medium", loc="left")
    axes.set(**settings)
    if any(label for _, label, _ in curves) and axes.lines:
        axes.legend(frameon=False, fontsize="small")


def seconds_by_part(records: Records) -> dict[str, list[float]]:
    """What each record's step spent on each part; parts below a hundredth are left out."""
    spent = {
        part: [float(record.get(f"seconds_{part}") or 0) for record in records] for part in PARTS
    }
    least = 0.01 * sum(map(sum, spent.values()))
    return {part: seconds for part, seconds in spent.items() if sum(seconds) > least}


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


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Each value's mean with so many before it and after it."""
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
