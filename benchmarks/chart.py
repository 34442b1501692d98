"""A line chart on two logarithmic axes, as SVG text."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import inf, isfinite, log10
from typing import NamedTuple

# Told apart by most colour-blind readers; the marks differ as well.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKS = (  # paths about (0, 0)
    "M0-4A4 4 0 1 1 0 4A4 4 0 1 1 0-4",
    "M0-5L5 4H-5Z",
    "M-4-4H4V4H-4Z",
    "M0-5L5 0L0 5L-5 0Z",
    "M0 5L5-4H-5Z",
    "M-5-1.5H-1.5V-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5Z",
    "M-5-5L0-2L5-5L2 0L5 5L0 2L-5 5L-2 0Z",
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, STRIP = 720, 400, 60, 170, 40, 50, 11


class Line(NamedTuple):
    """One value for each x; what is not finite stands in the strip above the chart."""

    label: str
    values: Sequence[float]
    style: int  # of the colours and the marks


def text(x: float, y: float, content: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(content)}</text>'


def chart(
    title: str,
    x_label: str,
    y_label: str,
    strip_label: str,
    xs: Sequence[float],
    ys: Sequence[float],
    lines: list[Line],
) -> str:
    """Draw the lines; xs are their places and the ticks of the x-axis, ys the ticks of the y-axis."""
    finite = [value for line in lines for value in line.values if isfinite(value)] + list(ys)
    top, bottom = TOP + STRIP * (len(lines) + 1), HEIGHT - BOTTOM
    right = WIDTH - RIGHT

    def across(x: float) -> float:
        return LEFT + 15 + (right - LEFT - 30) * log10(x / xs[0]) / log10(xs[-1] / xs[0])

    def down(y: float) -> float:
        return top + 8 + (bottom - top - 16) * log10(max(finite) / y) / log10(max(finite) / min(finite))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>',
        text(LEFT, 22, title, "start", ' font-size="15" font-weight="bold"'),
        f'<rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{top - TOP}" fill="#f3f3f3"/>',
        text(LEFT - 8, (TOP + top) / 2 + 4, strip_label, "end", ' font-size="11"'),
        f'<path d="M{LEFT} {TOP}H{right}V{bottom}H{LEFT}Z" fill="none" stroke="#888"/>',
        text((LEFT + right) / 2, HEIGHT - 12, x_label),
        text(0, 0, y_label, "middle", f' transform="translate(16 {(top + bottom) / 2:.0f}) rotate(-90)"'),
    ]
    for y in ys:
        parts.append(f'<path d="M{LEFT} {down(y):.1f}H{right}" stroke="#ddd"/>')
        parts.append(text(LEFT - 8, down(y) + 4, f"{y:g}", "end"))
    parts += [text(across(x), bottom + 18, f"{x:.2g}") for x in xs]
    for i, line in enumerate(lines):
        colour, strip, legend = COLOURS[line.style], TOP + STRIP * (i + 1), top + 16 + 20 * i
        points = [(across(x), down(y) if isfinite(y) else strip) for x, y in zip(xs, line.values, strict=True)]
        pens = ["L" if isfinite(a) and isfinite(b) else "M" for a, b in pairwise([inf, *line.values])]
        path = "".join(f"{pen}{x:.1f} {y:.1f}" for pen, (x, y) in zip(pens, points, strict=True))
        width = 1.4 + (i == 0)  # the first line shows beneath one that covers it
        parts.append(f'<g fill="{colour}"><path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        for x, y in [*points, (right + 18, legend)]:
            parts.append(f'<path d="{MARKS[line.style]}" transform="translate({x:.1f} {y:.1f})"/>')
        parts += [text(right + 30, legend + 4, line.label, "start"), "</g>"]
    return "\n".join([*parts, "</svg>", ""])
