"""Small pictures for pages: where points, ticks and error bars stand."""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 16, 14, 38
LABEL = 14  # height of a line of text


class Point(NamedTuple):
    """`y` in points of 100; `error` is one standard error of it."""

    x: float
    y: float
    error: float | None = None
    label: str = ""


class Drawn(NamedTuple):
    """A point in pixels, with the ends of its error bar and the height of its label."""

    x: float
    y: float
    top: float
    bottom: float
    label: str
    label_y: float
    tip: str


class Plot(NamedTuple):
    """Points of y over x. Ticks are (place in pixels, text)."""

    x_title: str
    points: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: bool
    """Whether the points are one curve."""

    @property
    def path(self) -> str:
        return " ".join(f"{point.x},{point.y}" for point in self.points)


def plot(points: Sequence[Point], x_title: str, *, line: bool = False) -> Plot:
    """Scale to fit; the axes start where the data do, and the ticks say where that is."""
    low = min(point.y - (point.error or 0) for point in points)
    high = max(point.y + (point.error or 0) for point in points)
    middle, span = (low + high) / 2, max(high - low, 8.0) * 1.1
    y_low, y_high = max(0.0, middle - span / 2), min(100.0, middle + span / 2)
    xs = [point.x for point in points]
    # Points that hardly differ in x shall not look far apart.
    x_span = 1.16 * max(max(xs) - min(xs), 0.2 * max(map(abs, xs)), 1.0)
    x_middle = (min(xs) + max(xs)) / 2
    x_low, x_high = x_middle - x_span / 2, x_middle + x_span / 2

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        y = min(max(y, y_low), y_high)
        return round(TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    drawn: list[Drawn] = []
    below: float = TOP - LABEL
    for point in sorted(points, key=lambda point: -point.y):  # labels from the top down, apart
        error = point.error or 0
        below = max(down(point.y) - 7, below + LABEL)
        name = point.label or f"{point.x:,g}"
        tip = f"{name}: {point.y:.1f}" + (f" ± {error:.1f}" if error else "")
        ends = down(point.y + error), down(point.y - error)
        drawn.append(Drawn(across(point.x), down(point.y), *ends, point.label, below, tip))
    drawn.sort()
    x_ticks = [(across(x), f"{x:,g}") for x in ticks(x_low, x_high, least=1)]
    y_ticks = [(down(y), f"{y:g}") for y in ticks(y_low, y_high)]
    return Plot(x_title, drawn, x_ticks, y_ticks, line)


def ticks(low: float, high: float, least: float = 0.0, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most `most` of them, at least `least` apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(next(m * power for m in (1, 2, 5, 10) if m * power >= rough), least)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
