"""Line charts as SVG text: pure, the same chart gives the same bytes.

Coordinates are units of the viewBox, WIDTH wide; the page scales them. Colours are CSS variables, so that a
figure follows the page from light to dark; colour, dash and marker each tell the arms apart. Arms have
places, counted from 0 in the order of the comparison, and keep their looks in all figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from gspo_cli.compare.result import Chart, Series
from gspo_cli.console.words import clean, number

WIDTH, PLOT_HEIGHT = 400.0, 214.0
TOP, BOTTOM, RIGHT = 28.0, 40.0, 12.0
FONT, LINE, GAP = 12.5, 14.5, 2.0  # text is 11 pixels high where the figure is 350 wide, as on a phone
GLYPH = 0.56 * FONT  # width of a character of a system font, a little above the mean
LABEL, LINES = 19, 3  # characters of a label's line, and lines
SWATCH = 20.0
MARKERS = 6  # along a curve, beside the one at its end
# Okabe and Ito's colours, darkened or lightened until lines have a contrast of 3 with the ground
LIGHT = ("#0072b2", "#c65000", "#008a64", "#a8508a", "#7d5c00", "#4d4d4d")
DARK = ("#56b4e9", "#f0883e", "#2bc498", "#e08fc0", "#e0c04c", "#c0c0c0")
GROUND, GROUND_DARK = ("#ffffff", "#1c2024"), ("#14171a", "#e6e8ea")  # ground and text
DASHES = ("", "6 3", "2 2.5", "9 3 2 3", "12 4", "1 4", "5 2 1 2 1 2")


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` put on coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    log: bool = False

    def at(self, value: float) -> float:
        """The coordinate of a value; what lies outside is put on the edge."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        part = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + part * (self.end - self.start)


def palette() -> str:
    """CSS of the arms' colours, light and dark."""
    return (
        f":root{{{_variables(LIGHT)}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
        ".chart text{fill:currentColor;font-family:system-ui,sans-serif}"
        ".chart .grid{stroke:currentColor;opacity:.16}"
        ".chart .axis{stroke:currentColor;opacity:.55}"
    )


def line_chart(chart: Chart, arms: Sequence[str], alone: bool = False) -> str:
    """The chart as an svg element, `alone` as a file of its own with ground and colours. `arms` gives the
    places. A chart that holds no value is a line of text."""
    shown = [series for series in chart.series if any(_known(v, chart.log_y) for v in series.value)]
    labels = {series.arm_name: label_lines(series.arm_name) for series in shown}
    longest = max((len(line) for lines in labels.values() for line in lines), default=0)
    heights = [LINE * len(labels[series.arm_name]) + GAP for series in shown]
    bottom = TOP + max(PLOT_HEIGHT, sum(heights))
    height = bottom + BOTTOM
    numbers = y_axis(chart, shown, bottom)
    ticks = tick_labels(numbers.ticks)
    left = 10 + GLYPH * max((len(tick) for tick in ticks), default=0)
    right = WIDTH - RIGHT - (SWATCH + 6 + GLYPH * longest if shown else 0.0)
    across = x_axis(chart, shown, left, right)
    parts = [_frame(chart, across, numbers, ticks)]
    if not shown:
        parts.append(_text((left + right) / 2, (TOP + bottom) / 2, "not measured", "middle"))
    places = {name: place for place, name in enumerate(arms)}
    parts += [_band(series, across, numbers, places[series.arm_name]) for series in shown]
    parts += [_curve(series, across, numbers, places[series.arm_name]) for series in shown]
    parts += _labels(shown, labels, heights, across, numbers, places)
    return _svg(chart, "".join(parts), height, shown, alone)


def swatch(place: int) -> str:
    """A piece of an arm's line, for keys and tables."""
    line = _line(1, 6, 27, 6, place)
    return f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{line}{_marker(14, 6, place)}</svg>'


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, ends included: 2 at
    least, and `most` at most. Needs low < high by more than rounding, and most >= 5."""
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
    """Short numbers, with more digits where short ones would be the same."""
    short = [number(tick).replace(".0k", "k").replace(".0M", "M").replace(".0B", "B") for tick in ticks]
    return short if len(set(short)) == len(short) else [f"{tick:.9g}" for tick in ticks]


def label_lines(name: str) -> list[str]:
    """An arm's name in short lines, cut with … where it is too long for them; keys have it whole."""
    lines = [""]
    for piece in re.findall(r"\s?[^\s=]+=?|=", clean(name)):  # settings may break after their =
        if len(lines[-1] + piece) > LABEL and lines[-1]:
            lines.append("")
        lines[-1] = (lines[-1] + piece).lstrip()
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1] + " …"]
    return [line if len(line) <= LABEL else line[: LABEL - 1] + "…" for line in lines]


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Centres of boxes near the wanted ones that do not overlap and lie from `low` to `high`, where there is
    room for all."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    centres = list(wanted)
    edge = low
    for i in order:
        centres[i] = max(centres[i], edge + heights[i] / 2)
        edge = centres[i] + heights[i] / 2
    edge = high
    for i in reversed(order):
        centres[i] = min(centres[i], edge - heights[i] / 2)
        edge = centres[i] - heights[i] / 2
    return centres


def notes(chart: Chart) -> list[str]:
    """What a reader has to be told of the drawing."""
    said = [chart.note] if chart.note else []
    known = {s.arm_name: any(_known(v, log=False) for v in s.value) for s in chart.series}
    said += [f"{name}: not measured." for name, drawn in known.items() if not drawn]
    if not chart.log_y:
        return said
    finite = [v for s in chart.series for v in s.value if v is not None and math.isfinite(v)]
    if any(v <= 0 for v in finite):
        said.append("Values of 0 have no place on the logarithmic axis and are left out.")
    pairs = [pair for s in chart.series for pair in zip(s.value, s.low, strict=True)]
    if any(_known(v, log=True) and low is not None and low <= 0 for v, low in pairs):
        said.append("Intervals that reach 0 go down to the foot of the axis.")
    return said


def y_axis(chart: Chart, shown: Sequence[Series], bottom: float) -> Axis:
    """From the lowest to the highest of values and intervals, widened to ticks; from 0 where that is near."""
    rows = [values for series in shown for values in (series.value, series.low, series.high)]
    values = [v for row in rows for v in row if v is not None and _known(v, chart.log_y)]
    low, high = min(values, default=0.1), max(values, default=1.0)
    if chart.log_y:
        low, high = (low / 2, high * 2) if high < 1.5 * low else (low, high)
        steps = log_ticks(low / 10, high * 10, most=999)
        low = max(step for step in steps if step <= low * (1 + 1e-9))
        high = min(step for step in steps if step >= high * (1 - 1e-9))
        return Axis(low, high, bottom, TOP, log_ticks(low, high), log=True)
    low = 0.0 if 0 < low < 0.35 * high else low
    low, high = _widened(low, high)
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    low = ticks[0] - (step if low < ticks[0] - 0.01 * step else 0.0)
    high = ticks[-1] + (step if high > ticks[-1] + 0.01 * step else 0.0)
    count = round((high - low) / step)
    places = [low + i * step for i in range(count + 1)]
    return Axis(low, high, bottom, TOP, [float(f"{tick:.12g}") + 0.0 for tick in places])


def x_axis(chart: Chart, shown: Sequence[Series], left: float, right: float) -> Axis:
    """All x that have a value; fewer ticks than the other axis, for their labels lie side by side."""
    values = [x for s in shown for x, v in zip(s.x, s.value, strict=True) if _known(v, chart.log_y)]
    low, high = _widened(min(values, default=0.0), max(values, default=1.0))
    return Axis(low, high, left, right, nice_ticks(low, high, most=5))


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is no point. Where all is 0 it goes up alone: most metrics cannot be negative."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    if low == 0:
        return 0.0, 1.0
    half = 0.1 * abs(low) or 0.5
    return low - half, high + half


def _known(value: float | None, log: bool) -> bool:
    """Whether there is something to draw."""
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def _frame(chart: Chart, across: Axis, numbers: Axis, ticks: Sequence[str]) -> str:
    """Grid, axes, ticks and the axes' labels; the one of y lies flat above its axis."""
    left, right, bottom, top = across.start, across.end, numbers.start, numbers.end
    parts = []
    for tick, label in zip(numbers.ticks, ticks, strict=True):
        y = numbers.at(tick)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(_text(left - 6, y + 4, label, "end"))
    for tick, label in zip(across.ticks, tick_labels(across.ticks), strict=True):
        x = across.at(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom:.1f}v4"/>')
        parts.append(_text(x, bottom + 17, label, "middle"))
    parts.append(f'<path class="axis" fill="none" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    parts.append(_text(2, top - 14, _cut(chart.y_label, WIDTH)))
    parts.append(_text(right, bottom + 33, _cut(chart.x_label, right), "end"))
    return "".join(parts)


def _band(series: Series, across: Axis, numbers: Axis, place: int) -> str:
    """The interval as a shade; on a logarithmic axis one that reaches 0 goes to the foot."""
    parts = []
    for run in _stretches(series, numbers.log):
        known = [i for i in run if series.low[i] is not None and series.high[i] is not None]
        if len(known) < 2:
            continue
        upper = [(across.at(series.x[i]), numbers.at(series.high[i])) for i in known]
        lower = [(across.at(series.x[i]), _foot(series.low[i], numbers)) for i in reversed(known)]
        parts.append(f"{_path([*upper, *lower])}Z")
    colour = _colour(place)
    return f'<path d="{"".join(parts)}" fill="{colour}" fill-opacity=".16"/>' if parts else ""


def _foot(value: float, axis: Axis) -> float:
    return axis.start if axis.log and value <= 0 else axis.at(value)


def _curve(series: Series, across: Axis, numbers: Axis, place: int) -> str:
    """The line, broken where values are missing, with markers."""
    runs = list(_stretches(series, numbers.log))
    known = [i for run in runs for i in run]
    every = max(1, math.ceil(len(known) / MARKERS))
    marked = {*known[::every], known[-1], *(run[0] for run in runs if len(run) == 1)}
    place_of = {i: (across.at(series.x[i]), numbers.at(series.value[i])) for i in known}
    line = "".join(_path([place_of[i] for i in run]) for run in runs if len(run) > 1)
    path = f'<path d="{line}" fill="none" {_stroke(place)}/>' if line else ""
    return path + "".join(_marker(*place_of[i], place) for i in sorted(marked))


def _stretches(series: Series, log: bool) -> Iterator[list[int]]:
    """Indices of values in a row that can be drawn."""
    run: list[int] = []
    for i, value in enumerate(series.value):
        if _known(value, log):
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _labels(
    shown: Sequence[Series],
    labels: Mapping[str, Sequence[str]],
    heights: Sequence[float],
    across: Axis,
    numbers: Axis,
    places: Mapping[str, int],
) -> list[str]:
    """Names at the ends of their lines, pushed apart, each with a piece of its line."""
    ends = [[i for run in _stretches(series, numbers.log) for i in run][-1] for series in shown]
    wanted = [numbers.at(series.value[i]) for series, i in zip(shown, ends, strict=True)]
    centres = spread(wanted, heights, numbers.end, numbers.start)
    parts = []
    for series, end, from_y, centre in zip(shown, ends, wanted, centres, strict=True):
        lines, x = labels[series.arm_name], across.end + 6
        place, from_x = places[series.arm_name], across.at(series.x[end])
        parts.append(
            f'<path class="axis" fill="none" d="M{from_x + 4:.1f} {from_y:.1f}L{x:.1f} {centre:.1f}"/>'
        )
        parts += [_line(x, centre, x + SWATCH - 4, centre, place), _marker(x + 8, centre, place)]
        first = centre - LINE * (len(lines) - 1) / 2 + 4
        parts += [_text(x + SWATCH, first + LINE * i, line) for i, line in enumerate(lines)]
    return parts


def _svg(chart: Chart, body: str, height: float, shown: Sequence[Series], alone: bool) -> str:
    """The element, with its title and what it shows in words."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in chart.key)
    ids = f"figure-{name}-title figure-{name}-text"
    style = ground = ""
    space = f'viewBox="0 0 {WIDTH:g} {height:g}"'
    if alone:
        space = f'xmlns="http://www.w3.org/2000/svg" width="720" {space}'
        style = (
            f"<style>{palette()}svg{{background:{GROUND[0]};color:{GROUND[1]};--ground:{GROUND[0]}}}"
            f"@media(prefers-color-scheme:dark){{svg{{background:{GROUND_DARK[0]};color:{GROUND_DARK[1]};"
            f"--ground:{GROUND_DARK[0]}}}}}</style>"
        )
        ground = '<rect width="100%" height="100%" fill="var(--ground)"/>'
    title, text = ids.split()
    return (
        f'<svg class="chart" role="img" aria-labelledby="{ids}" font-size="{FONT}" {space}>{style}'
        f'<title id="{title}">{escape(clean(chart.title))}</title>'
        f'<desc id="{text}">{escape(clean(description(chart, shown)))}</desc>{ground}{body}</svg>'
    )


def description(chart: Chart, shown: Sequence[Series]) -> str:
    """Where each curve begins and ends."""
    said = [f"{chart.y_label} over {chart.x_label}."]
    for series in shown:
        ends = [i for run in _stretches(series, chart.log_y) for i in run]
        (first, last), (a, b) = (
            [array[i] for i in (ends[0], ends[-1])] for array in (series.x, series.value)
        )
        interval = ""
        if series.low[ends[-1]] is not None and series.high[ends[-1]] is not None:
            interval = f" [{number(series.low[ends[-1]])}, {number(series.high[ends[-1]])}]"
        said.append(
            f"{series.arm_name}: {number(a)} at {number(first)}, {number(b)}{interval} at {number(last)}."
        )
    return " ".join(said)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Absolute line through the points, those that fall on the one before left out."""
    written = [f"{x:.1f} {y:.1f}" for x, y in points]
    kept = written[:1] + [after for before, after in pairwise(written) if after != before]
    return "M" + "L".join(kept)


def _marker(x: float, y: float, place: int) -> str:
    """Circle, square, diamond, triangles and a cross, by place."""
    shapes = (
        f"M{x - 3:.1f} {y:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
        f"M{x - 2.8:.1f} {y - 2.8:.1f}h5.6v5.6h-5.6z",
        f"M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z",
        f"M{x:.1f} {y - 3.6:.1f}l3.8 6.4h-7.6z",
        f"M{x:.1f} {y + 3.6:.1f}l3.8 -6.4h-7.6z",
        f"M{x - 1.2:.1f} {y - 4:.1f}h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",
    )
    return f'<path d="{shapes[place % len(shapes)]}" fill="{_colour(place)}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, place: int) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" fill="none" {_stroke(place)}/>'


def _stroke(place: int) -> str:
    dash = DASHES[place % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_colour(place)}" stroke-width="1.9" stroke-linejoin="round"{dashes}'


def _colour(place: int) -> str:
    return f"var(--arm-{place % len(LIGHT)})"


def _variables(colours: Sequence[str]) -> str:
    return "".join(f"--arm-{place}:{colour};" for place, colour in enumerate(colours))


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(clean(text))}</text>'


def _cut(text: str, room: float) -> str:
    most = int(room / GLYPH)
    return text if len(text) <= most else text[: most - 1] + "…"
