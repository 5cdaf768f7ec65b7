"""Charts as inline SVG that follow the page's light or dark colours.

Three forms are enough for a training report: lines over a log or linear x axis (loss), rows of dots with intervals
(scores), and horizontal bars (funnels, shares of time). Colours are CSS variables `--s1` ... `--s5` of the page, text
is `currentColor`, and each chart carries a `<title>` and a `<desc>` for screen readers. All numbers are also given in a
table beside the chart, so nobody depends on the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: Its name in the legend.
        points: `(x, y)` pairs, x ascending.
        faint: Draw it thin and pale (a raw curve behind its smoothed one).
    """

    label: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


@dataclass(frozen=True)
class Dot:
    """A measured value with its interval; all three in `[0, 1]`."""

    value: float
    low: float
    high: float


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]


def _number(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Curves over a linear x axis.

    Args:
        title: What the chart shows, for screen readers and the caption.
        lines: At least one curve with at least one point.
        x_label: Name and unit of x.
        y_label: Name and unit of y.

    Returns:
        An `<svg>` element.
    """
    width, height, left, right, top, bottom = 640, 300, 52, 12, 14, 44
    xs = [x for line in lines for x, _ in line.points]
    ys = sorted(y for line in lines for _, y in line.points if math.isfinite(y))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    # the first steps of a run tower over the rest: cut the axis at the 99th percentile, let the curve leave the frame
    y_low, y_high = ys[0], max(ys[int(0.99 * (len(ys) - 1))], ys[0] + 1e-9)
    pad = 0.05 * (y_high - y_low)
    y_low, y_high = y_low - pad, y_high + pad

    def at(x: float, y: float) -> str:
        px = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        py = top + (y_high - min(y, y_high)) / (y_high - y_low) * (height - top - bottom)
        return f"{px:.1f},{py:.1f}"

    parts = [_open(width, height, title, f"{y_label} over {x_label}")]
    for y in _ticks(y_low, y_high):
        py = at(x_low, y).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py}" y2="{py}"/>')
        parts.append(_text(left - 6, py, _number(round(y, 6)), "tick", "end"))
    for x in _ticks(x_low, x_high):
        parts.append(_text(at(x, y_low).split(",")[0], height - bottom + 14, _number(x), "tick", "middle"))
    parts.append(_text((left + width - right) / 2, height - 8, x_label, "axis", "middle"))
    middle = (top + height - bottom) / 2
    parts.append(f'<g transform="translate(12 {middle}) rotate(-90)">{_text(0, 0, y_label, "axis", "middle")}</g>')
    shown = [line for line in lines if not line.faint]
    for line in lines:
        color = 1 + next((i for i, s in enumerate(shown) if s.label == line.label), 0)
        points = " ".join(at(x, y) for x, y in line.points if math.isfinite(y))
        parts.append(f'<polyline class="curve s{color}{" faint" if line.faint else ""}" points="{points}"/>')
    parts.append("</svg>")
    return "".join(parts) + _legend([line.label for line in shown])


def interval_chart(title: str, rows: Sequence[tuple[str, Sequence[Dot | None]]], *, series: Sequence[str]) -> str:
    """Shares with their intervals: a group of rows for each name, one row for each series.

    Args:
        title: What the chart shows.
        rows: `(name, one dot or None for each series)`.
        series: Names of the series, in the order of the dots.

    Returns:
        An `<svg>` element and a legend.
    """
    band, left, right, width, top = 13, 180, 24, 640, 8
    group = band * len(series) + 10
    height = top + group * len(rows) + 30

    def px(share: float) -> float:
        return left + share * (width - left - right)

    parts = [_open(width, height, title, "share correct with 95 % intervals")]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = f"{px(share):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{height - 26}"/>')
        parts.append(_text(x, height - 12, f"{share:.0%}", "tick", "middle"))
    for index, (name, dots) in enumerate(rows):
        y0 = top + index * group
        parts.append(_text(left - 10, y0 + band * len(series) / 2, name, "name", "end"))
        for number, dot in enumerate(dots):
            if dot is None:
                continue
            y = y0 + band * (number + 0.5)
            tip = f"{series[number]}: {dot.value:.1%} [{dot.low:.1%}, {dot.high:.1%}]"
            parts.append(f'<g class="s{number + 1}"><title>{escape(tip)}</title>')
            parts.append(f'<line class="whisker" x1="{px(dot.low):.1f}" x2="{px(dot.high):.1f}" y1="{y}" y2="{y}"/>')
            parts.append(f'<circle class="dot" cx="{px(dot.value):.1f}" cy="{y}" r="4"/></g>')
    parts.append("</svg>")
    return "".join(parts) + _legend(series)


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]], *, unit: str) -> str:
    """Horizontal bars, longest value full width.

    Args:
        title: What the chart shows.
        bars: `(name, value, text at the end of the bar)`; values >= 0.
        unit: What the bars measure, for screen readers.

    Returns:
        An `<svg>` element.
    """
    band, right, width, top = 26, 130, 640, 4
    # a narrow screen has larger letters, see style.css
    left = min(300, max(120, round(10.5 * max((len(name) for name, _, _ in bars), default=0)) + 16))
    height = top + band * len(bars) + 4
    longest = max((value for _, value, _ in bars), default=1.0) or 1.0
    parts = [_open(width, height, title, unit)]
    for index, (name, value, text) in enumerate(bars):
        y = top + index * band
        length = max(value / longest * (width - left - right), 1)
        parts.append(_text(left - 10, y + band / 2, name, "name", "end"))
        parts.append(f'<rect class="bar" x="{left}" y="{y + 5}" width="{length:.1f}" height="{band - 10}" rx="3"/>')
        parts.append(_text(f"{left + length + 8:.1f}", y + band / 2, text, "tick", "start"))
    parts.append("</svg>")
    return "".join(parts)


def _open(width: int, height: int, title: str, description: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    )


def _text(x: float | str, y: float | str, text: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}" dy=".32em">{escape(text)}</text>'


def _legend(names: Sequence[str]) -> str:
    items = "".join(f'<li><span class="key s{i + 1}"></span>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def smooth(points: Sequence[tuple[float, float]], *, share: float = 0.02) -> list[tuple[float, float]]:
    """Centred running mean over `share` of the points, so that a noisy loss can be read."""
    half = max(1, int(len(points) * share))
    result = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, index - half) : index + half + 1] if math.isfinite(y)]
        if window:
            result.append((x, sum(window) / len(window)))
    return result
