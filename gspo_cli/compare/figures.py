"""Line charts as SVG text. Pure: the same chart gives the same bytes.

Coordinates are units of the viewBox, which is WIDTH wide; the page scales it. Colors are CSS variables, so
that a figure follows the page's light or dark theme; color, dash and marker each distinguish the arms. Arms
have places, counted from 0 in the order of the comparison, and look the same in all figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from gspo_cli.compare.axes import Axis, drawable, tick_labels, x_axis, y_axis
from gspo_cli.compare.result import Chart, Estimate, Series
from gspo_cli.console.words import clean, number

WIDTH, PLOT_HEIGHT = 400.0, 214.0
TOP, BOTTOM, RIGHT = 28.0, 40.0, 12.0
FILE = 'xmlns="http://www.w3.org/2000/svg" width="720"'  # attributes of a separate file
FONT, LINE, GAP = 12.5, 14.5, 2.0  # text is 11 pixels high where the figure is 350 wide, as on a phone
# by name for programs that know no system font
FONTS = "Arial,Helvetica,'Liberation Sans','DejaVu Sans','Noto Sans',Roboto,'Open Sans',sans-serif"
GLYPH = 0.56 * FONT  # width of a character of a system font, slightly above the mean
LABEL, LINES = 19, 3  # characters per line of a label, and lines
SWATCH = 20.0
MARKERS = 6  # along a curve, beside the one at its end
# Okabe and Ito's colors, darkened or lightened until lines have a contrast of 3 with the background
LIGHT = ("#0072b2", "#c65000", "#008a64", "#a8508a", "#7d5c00", "#4d4d4d")
DARK = ("#56b4e9", "#f0883e", "#2bc498", "#e08fc0", "#e0c04c", "#c0c0c0")
GROUND, GROUND_DARK = ("#ffffff", "#1c2024"), ("#14171a", "#e6e8ea")  # background and text
PAINTED = re.compile(r'(fill|stroke)="var\(--arm-(\d)\)"')
DASHES = ("", "6 3", "2 2.5", "9 3 2 3", "12 4", "1 4", "5 2 1 2 1 2")


@dataclass(frozen=True)
class Point:
    """A point of a curve that can be drawn, with its index in the series."""

    index: int
    x: float
    value: float
    low: float | None
    high: float | None


def palette() -> str:
    """CSS of the arms' colors, light and dark, and of text and axes."""
    return (
        f":root{{{_variables(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
        f"{_ink('currentColor', 'system-ui,sans-serif')}"
    )


def _ink(color: str, fonts: str) -> str:
    return (
        f".chart text{{fill:{color};font-family:{fonts}}}"
        f".chart .grid{{stroke:{color};opacity:.16}}.chart .axis{{stroke:{color};opacity:.55}}"
    )


def light_chart(chart: Chart, arms: Sequence[str]) -> str:
    """The chart as a separate file in light colors, without the CSS that only browsers know."""
    body = PAINTED.sub(lambda found: f'{found[1]}="{LIGHT[int(found[2])]}"', line_chart(chart, arms))
    start, end = body.split(">", 1)
    ground = f'<rect width="100%" height="100%" fill="{GROUND[0]}"/>'
    return f"{start} {FILE}><style>{_ink(GROUND[1], FONTS)}</style>{ground}{end}"


def line_chart(chart: Chart, arms: Sequence[str], alone: bool = False) -> str:
    """The chart as an svg element, with `alone` as a separate file with background and colors. `arms` are in
    the order of their places. A chart without values shows a line of text."""
    shown = [series for series in chart.series if any(drawable(v, chart.log_y) for v in series.value)]
    labels = {series.arm_name: label_lines(series.arm_name) for series in shown}
    longest = max((len(line) for lines in labels.values() for line in lines), default=0)
    heights = [LINE * len(labels[series.arm_name]) + GAP for series in shown]
    bottom = TOP + max(PLOT_HEIGHT, sum(heights))
    height = bottom + BOTTOM
    numbers = y_axis(chart, shown, bottom, TOP)
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
    """A sample of an arm's line, for tables."""
    line = _line(1, 6, 27, 6, place)
    return f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{line}{_marker(14, 6, place)}</svg>'


def label_lines(name: str) -> list[str]:
    """An arm's name in short lines, cut with … where it is too long; tables have the whole name."""
    lines = [""]
    for piece in re.findall(r"\s?[^\s=]+=?|=", clean(name)):  # settings may break after their =
        if len(lines[-1] + piece) > LABEL and lines[-1]:
            lines.append("")
        lines[-1] = (lines[-1] + piece).lstrip()
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1] + " …"]
    return [line if len(line) <= LABEL else line[: LABEL - 1] + "…" for line in lines]


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Centers of boxes near the wanted ones that do not overlap and lie between `low` and `high`, if there is
    room for all."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    centers = list(wanted)
    edge = low
    for i in order:
        centers[i] = max(centers[i], edge + heights[i] / 2)
        edge = centers[i] + heights[i] / 2
    edge = high
    for i in reversed(order):
        centers[i] = min(centers[i], edge - heights[i] / 2)
        edge = centers[i] - heights[i] / 2
    return centers


def notes(chart: Chart) -> list[str]:
    """Notes on how to read the figure, as sentences."""
    found = [chart.note] if chart.note else []
    known = {s.arm_name: any(drawable(v, log=False) for v in s.value) for s in chart.series}
    found += [f"{name}: not measured." for name, drawn in known.items() if not drawn]
    if not chart.log_y:
        return found
    finite = [v for s in chart.series for v in s.value if v is not None and math.isfinite(v)]
    if any(v <= 0 for v in finite):
        found.append("Values of 0 cannot be shown on the logarithmic axis and are left out.")
    pairs = [pair for s in chart.series for pair in zip(s.value, s.low, strict=True)]
    if any(drawable(v, log=True) and low is not None and low <= 0 for v, low in pairs):
        found.append("Intervals that reach 0 extend to the bottom of the axis.")
    return found


def _frame(chart: Chart, across: Axis, numbers: Axis, ticks: Sequence[str]) -> str:
    """Grid, axes, ticks and the axes' labels; the label of y is horizontal above its axis."""
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
    """The interval as a shaded area; on a logarithmic axis one that reaches 0 extends to the bottom."""
    parts = []
    for run in _stretches(series, numbers.log):
        upper, lower = [], []
        for point in run:
            if point.low is not None and point.high is not None:
                upper.append((across.at(point.x), numbers.at(point.high)))
                lower.append((across.at(point.x), _foot(point.low, numbers)))
        if len(upper) > 1:
            parts.append(f"{_path([*upper, *reversed(lower)])}Z")
    color = _color(place)
    return f'<path d="{"".join(parts)}" fill="{color}" fill-opacity=".16"/>' if parts else ""


def _foot(value: float, axis: Axis) -> float:
    return axis.start if axis.log and value <= 0 else axis.at(value)


def _curve(series: Series, across: Axis, numbers: Axis, place: int) -> str:
    """The line, broken where values are missing, with markers."""
    runs = list(_stretches(series, numbers.log))
    known = [point for run in runs for point in run]
    every = max(1, math.ceil(len(known) / MARKERS))
    marked = {*known[::every], known[-1], *(run[0] for run in runs if len(run) == 1)}
    at = {point: (across.at(point.x), numbers.at(point.value)) for point in known}
    line = "".join(_path([at[point] for point in run]) for run in runs if len(run) > 1)
    path = f'<path d="{line}" fill="none" {_stroke(place)}/>' if line else ""
    return path + "".join(_marker(*at[point], place) for point in sorted(marked, key=lambda each: each.index))


def _stretches(series: Series, log: bool) -> Iterator[list[Point]]:
    """Unbroken rows of points that can be drawn."""
    run: list[Point] = []
    for i, value in enumerate(series.value):
        if value is not None and drawable(value, log):
            run.append(Point(i, series.x[i], value, series.low[i], series.high[i]))
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
    """Names at the ends of their lines, pushed apart, each with a sample of its line."""
    ends = [_ends(series, numbers.log)[1] for series in shown]
    wanted = [numbers.at(end.value) for end in ends]
    centers = spread(wanted, heights, numbers.end, numbers.start)
    parts = []
    for series, end, from_y, center in zip(shown, ends, wanted, centers, strict=True):
        lines, x = labels[series.arm_name], across.end + 6
        place, from_x = places[series.arm_name], across.at(end.x)
        parts.append(
            f'<path class="axis" fill="none" d="M{from_x + 4:.1f} {from_y:.1f}L{x:.1f} {center:.1f}"/>'
        )
        parts += [_line(x, center, x + SWATCH - 4, center, place), _marker(x + 8, center, place)]
        first = center - LINE * (len(lines) - 1) / 2 + 4
        parts += [_text(x + SWATCH, first + LINE * i, line) for i, line in enumerate(lines)]
    return parts


def _svg(chart: Chart, body: str, height: float, shown: Sequence[Series], alone: bool) -> str:
    """The svg element, with a title and a description."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in chart.key)
    ids = f"figure-{name}-title figure-{name}-text"
    style = ground = ""
    space = f'viewBox="0 0 {WIDTH:g} {height:g}"'
    if alone:
        space = f"{FILE} {space}"
        light, dark = (f"svg{{background:{a};color:{b};--ground:{a}}}" for a, b in (GROUND, GROUND_DARK))
        style = f"<style>{palette()}{light}@media screen and (prefers-color-scheme:dark){{{dark}}}</style>"
        ground = '<rect width="100%" height="100%" fill="var(--ground)"/>'
    title, text = ids.split()
    return (
        f'<svg class="chart" role="img" aria-labelledby="{ids}" font-size="{FONT}" {space}>{style}'
        f'<title id="{title}">{escape(clean(chart.title))}</title>'
        f'<desc id="{text}">{escape(clean(description(chart, shown)))}</desc>{ground}{body}</svg>'
    )


def description(chart: Chart, shown: Sequence[Series]) -> str:
    """Where each curve begins and ends, in words."""
    sentences = [f"{chart.y_label} over {chart.x_label}."]
    for series in shown:
        first, last = _ends(series, chart.log_y)
        end = Estimate(last.value, last.low, last.high)
        sentences.append(
            f"{series.arm_name}: {number(first.value)} at {number(first.x)}, {end} at {number(last.x)}."
        )
    return " ".join(sentences)


def _ends(series: Series, log: bool) -> tuple[Point, Point]:
    """The first and the last point of a curve that has some."""
    known = [point for run in _stretches(series, log) for point in run]
    return known[0], known[-1]


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A line through the points in absolute coordinates, without repeated points."""
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
    return f'<path d="{shapes[place % len(shapes)]}" fill="{_color(place)}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, place: int) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" fill="none" {_stroke(place)}/>'


def _stroke(place: int) -> str:
    dash = DASHES[place % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_color(place)}" stroke-width="1.9" stroke-linejoin="round"{dashes}'


def _color(place: int) -> str:
    return f"var(--arm-{place % len(LIGHT)})"


def _variables(colors: Sequence[str]) -> str:
    return "".join(f"--arm-{place}:{color};" for place, color in enumerate(colors))


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(clean(text))}</text>'


def _cut(text: str, room: float) -> str:
    most = int(room / GLYPH)
    return text if len(text) <= most else text[: most - 1] + "…"
