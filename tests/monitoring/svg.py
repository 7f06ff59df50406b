"""Draws panels of a dashboard as SVG, from what Prometheus answered: readable on light and dark pages, and small."""

import math
from typing import NamedTuple
from xml.sax.saxutils import escape

PANEL_WIDTH, PANEL_HEIGHT = 400, 210
GAP = 12
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 34, 44
# Distinguishable on both backgrounds, for the colour-blind too.
COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#06b6d4", "#ec4899", "#84cc16"]
# Grafana's own word for a colour, where a panel fixes it.
FIXED = {"red": "#ef4444", "orange": "#f59e0b", "green": "#10b981"}
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #57606a }
.title { font-size: 13px; font-weight: 600; fill: #1f2328 }
.card { fill: #ffffff; stroke: #d0d7de }
.grid { stroke: #d0d7de; stroke-width: .5 }
.band { fill: #ef4444; fill-opacity: .07 }
path { fill: none; stroke-width: 1.5; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .title { fill: #f0f6fc } .card { fill: #151b23; stroke: #3d444d } .grid { stroke: #3d444d } .band { fill-opacity: .12 }
}
"""


class Line(NamedTuple):
    name: str
    # (seconds since the beginning, value), in order.
    points: list
    dashed: bool = False
    colour: str | None = None


class Drawing(NamedTuple):
    title: str
    unit: str
    lines: list
    stacked: bool


def in_unit(value, unit):
    """As Grafana would write it, shortly."""
    if unit == "s":
        return "0" if value == 0 else f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def nice_top(largest):
    """The end of an axis, and how many parts it has."""
    if largest <= 0:
        return 1, 4
    size = 10 ** math.floor(math.log10(largest))
    for factor, steps in ((1, 4), (2, 4), (3, 3), (4, 4), (5, 5), (6, 3), (8, 4), (10, 5)):
        if largest <= factor * size:
            return factor * size, steps
    raise AssertionError(largest)


def stacked_up(lines):
    """Each line on top of those before it."""
    below = {}
    for line in lines:
        points = [(at, value + below.get(at, 0)) for at, value in line.points]
        below.update(points)
        yield line._replace(points=points)


def path(points, across, down):
    """Numbers relative to the last point are short ones. Where there is a gap, a new line begins."""
    parts, last = [], None
    for at, value in points:
        here = round(across(at), 1), round(down(value), 1)
        if last is None or at - last[0] > 3:
            parts.append(f"M{here[0]:g} {here[1]:g}")
        else:
            parts.append(f"l{here[0] - last[1]:.3g} {here[1] - last[2]:.4g}")
        last = (at, *here)
    return "".join(parts)


def time_axis(duration, across):
    step = next(step for step in (10, 20, 30, 60, 120) if duration / step <= 6)
    for at in range(0, int(duration) + 1, step):
        yield f'<text x="{across(at):.0f}" y="{PANEL_HEIGHT - BOTTOM + 14}" text-anchor="middle">{at} s</text>'


def legend(lines, colours):
    x = LEFT
    for line, colour in zip(lines, colours):
        yield f'<rect x="{x}" y="{PANEL_HEIGHT - 17}" width="10" height="3" fill="{colour}"/>'
        yield f'<text x="{x + 14}" y="{PANEL_HEIGHT - 11}">{escape(line.name)}</text>'
        x += 26 + 6.2 * len(line.name)


def panel(drawing, duration, band):
    """One panel, from its own corner. The band is a span of time that stands out."""
    lines = list(stacked_up(drawing.lines)) if drawing.stacked else drawing.lines
    largest = max((value for line in lines for _, value in line.points), default=0)
    top, steps = nice_top(largest)

    def across(at):
        return LEFT + at / duration * (PANEL_WIDTH - LEFT - RIGHT)

    def down(value):
        return PANEL_HEIGHT - BOTTOM - value / top * (PANEL_HEIGHT - TOP - BOTTOM)

    yield f'<rect class="card" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" rx="6"/>'
    yield f'<text class="title" x="14" y="21">{escape(drawing.title)}</text>'
    yield (f'<rect class="band" x="{across(band[0]):.0f}" y="{TOP}" width="{across(band[1]) - across(band[0]):.0f}"'
           f' height="{PANEL_HEIGHT - TOP - BOTTOM}"/>')
    for step in range(steps + 1):
        value = top * step / steps
        y = f"{down(value):.1f}"
        yield f'<line class="grid" x1="{LEFT}" x2="{PANEL_WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 6}" y="{down(value) + 4:.1f}" text-anchor="end">{in_unit(value, drawing.unit)}</text>'
    yield from time_axis(duration, across)
    colours = [line.colour or COLOURS[at % len(COLOURS)] for at, line in enumerate(lines)]
    for line, colour in zip(lines, colours):
        dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
        yield f'<path stroke="{colour}"{dashes} d="{path(line.points, across, down)}"/>'
    yield from legend(lines, colours)


def picture(drawings, duration, band, what, columns=2):
    rows = math.ceil(len(drawings) / columns)
    width = columns * PANEL_WIDTH + (columns - 1) * GAP + 2
    height = rows * PANEL_HEIGHT + (rows - 1) * GAP + 2
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {width} {height}" role="img">', f"<title>{escape(what)}</title>",
             f"<style>{STYLE}</style>"]
    for at, drawing in enumerate(drawings):
        x, y = at % columns * (PANEL_WIDTH + GAP), at // columns * (PANEL_HEIGHT + GAP)
        parts += [f'<g transform="translate({x} {y})">', *panel(drawing, duration, band), "</g>"]
    return "\n".join([*parts, "</svg>", ""])
