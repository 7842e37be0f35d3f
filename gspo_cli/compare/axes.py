"""Axes of figures: their ranges, round ticks, and the coordinates of values. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gspo_cli.compare.result import Chart, Series
from gspo_cli.console.words import number


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    log: bool = False

    def at(self, value: float) -> float:
        """The coordinate of a value; a value outside is put on the edge."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        part = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + part * (self.end - self.start)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, ends included: at least 2
    and at most `most`. Requires low < high by more than rounding, and most >= 5."""
    exact = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(exact))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten (with their doubles and fives where the range is short) that lie in [low, high]."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0, 2.0, 5.0), (1.0,)):
        found = [float(f"{factor}e{power}") for power in decades for factor in factors]
        found = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Short numbers, with more digits where short ones would be equal."""
    short = [number(tick).replace(".0k", "k").replace(".0M", "M").replace(".0B", "B") for tick in ticks]
    return short if len(set(short)) == len(short) else [f"{tick:.9g}" for tick in ticks]


def y_axis(chart: Chart, shown: Sequence[Series], bottom: float, top: float) -> Axis:
    """From the lowest to the highest of values and intervals, widened to ticks; from 0 where it is close."""
    rows = [values for series in shown for values in (series.value, series.low, series.high)]
    values = [v for row in rows for v in row if v is not None and drawable(v, chart.log_y)]
    low, high = min(values, default=0.1), max(values, default=1.0)
    if chart.log_y:
        low, high = (low / 2, high * 2) if high < 1.5 * low else (low, high)
        steps = log_ticks(low / 10, high * 10, most=999)
        low = max(step for step in steps if step <= low * (1 + 1e-9))
        high = min(step for step in steps if step >= high * (1 - 1e-9))
        return Axis(low, high, bottom, top, log_ticks(low, high), log=True)
    low = 0.0 if 0 < low < 0.35 * high else low
    low, high = _widened(low, high)
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    low = ticks[0] - (step if low < ticks[0] - 0.01 * step else 0.0)
    high = ticks[-1] + (step if high > ticks[-1] + 0.01 * step else 0.0)
    count = round((high - low) / step)
    places = [low + i * step for i in range(count + 1)]
    return Axis(low, high, bottom, top, [float(f"{tick:.12g}") + 0.0 for tick in places])


def x_axis(chart: Chart, shown: Sequence[Series], left: float, right: float) -> Axis:
    """All x that have a value; with fewer ticks than the y axis, as their labels are side by side."""
    values = [x for s in shown for x, v in zip(s.x, s.value, strict=True) if drawable(v, chart.log_y)]
    low, high = _widened(min(values, default=0.0), max(values, default=1.0))
    return Axis(low, high, left, right, nice_ticks(low, high, most=5))


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is not a single point. Around 0 it extends upward only: most metrics cannot be
    negative."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    if low == 0:
        return 0.0, 1.0
    half = 0.1 * abs(low) or 0.5
    return low - half, high + half


def drawable(value: float | None, log: bool) -> bool:
    """Whether there is something to draw."""
    return value is not None and math.isfinite(value) and (value > 0 or not log)
