"""A run as a picture: the loss it learnt by, and how often it judged right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmr1_jax.training.metrics import read_metrics

CURVES = "curves.png"


def draw_curves(workdir: str | Path, title: str) -> Path | None:
    """Draw `metrics.jsonl` as `curves.png`; None where there is nothing to draw yet."""
    records = read_metrics(workdir)
    if not series(records, "loss"):
        return None
    import matplotlib  # here: it takes a while to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = series(records, "validation/verdict_accuracy")
    figure, panels = pyplot.subplots(
        1, 2 if judged else 1, figsize=(10 if judged else 6, 4), squeeze=False, dpi=120
    )
    loss = panels[0][0]
    loss.plot(*zip(*series(records, "loss"), strict=True), color="0.6", label="training")
    if validated := series(records, "validation/loss"):
        loss.plot(*zip(*validated, strict=True), marker="o", color="C0", label="held out")
    loss.set(xlabel="step", ylabel="negative log-likelihood (nats a token)", yscale="log")
    loss.legend(frameon=False)
    if judged:
        verdict = panels[0][1]
        for name, label, style in (
            ("validation/verdict_accuracy", "verdicts right, both orders", "o-"),
            ("validation/verdict_accuracy_given", "as given", ":"),
            ("validation/verdict_accuracy_swapped", "swapped", "--"),
            ("validation/consistent", "same winner in both orders", "s-"),
        ):
            verdict.plot(*zip(*series(records, name), strict=True), style, label=label, ms=4)
        verdict.axhline(0.5, color="0.8", lw=1, zorder=0)
        verdict.set(xlabel="step", ylabel="share of held-out judgements", ylim=(0, 1.02))
        verdict.legend(frameon=False, loc="lower right")
    for panel in panels[0]:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    path = Path(workdir) / CURVES
    figure.savefig(path)
    pyplot.close(figure)
    return path


def series(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever a record has a number of this name."""
    return [
        (record["step"], record[name])
        for record in records
        if isinstance(record.get(name), int | float)
    ]
