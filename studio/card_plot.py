"""Curves as small SVG pictures that need nothing else: no script, no font, no request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

WIDE, NARROW, HEIGHT = 900, 430, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 28, 26
MOST_POINTS = 400
COLOURS = ("#c2480d", "#0f766e", "#6d4bb8")
DARK_COLOURS = ("#fb8c47", "#4fd1c0", "#b79cf5")
Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """One line: what it is called, its points ordered by step (None: a gap), and whether it is drawn faintly."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    faint: bool = False
    dots: bool = False


def chart(title: str, series: Sequence[Series], width: int = NARROW) -> str:
    """An SVG element with axes, lines and a legend, `width` units wide; "" when there is nothing to draw."""
    shown = [part for part in series if any(y is not None for _, y in part.points)]
    values = [y for part in shown for _, y in part.points if y is not None]
    if not values:
        return ""
    steps = [x for part in shown for x, _ in part.points]
    area = _Area(width, min(steps), max(steps), *_padded(min(values), max(values)))
    body = [*_axes(area), *(line for part in shown for line in _lines(area, part)), *_legend(area, shown)]
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{STYLE}</style>{"".join(body)}</svg>'
    )


STYLE = (
    ".plot .grid{stroke:#8883;stroke-width:1}.plot text{font:11px system-ui,sans-serif;fill:#7a7067}"
    + "".join(f".plot .c{n}{{stroke:{c}}}.plot .f{n}{{fill:{c}}}" for n, c in enumerate(COLOURS))
    + "@media (prefers-color-scheme:dark){.plot text{fill:#b3a89c}"
    + "".join(f".plot .c{n}{{stroke:{c}}}.plot .f{n}{{fill:{c}}}" for n, c in enumerate(DARK_COLOURS))
    + "}"
)


@dataclass(frozen=True)
class _Area:
    width: int
    left: float
    right: float
    low: float
    high: float

    def x(self, step: float) -> float:
        """Horizontal place of a step."""
        return LEFT + (step - self.left) / ((self.right - self.left) or 1) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        return HEIGHT - BOTTOM - (value - self.low) / ((self.high - self.low) or 1) * (HEIGHT - TOP - BOTTOM)


def _padded(low: float, high: float) -> tuple[float, float]:
    """The range of the vertical axis: a little beyond the values, never below zero for what never is."""
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers inside a range, roughly `about` of them."""
    raw = (high - low) / about if high > low else 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"


def _axes(area: _Area) -> list[str]:
    found = []
    for value in ticks(area.low, area.high):
        y = area.y(value)
        found.append(f'<line class="grid" x1="{LEFT}" x2="{area.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for step in ticks(area.left, area.right, 6):
        if step == int(step):
            found.append(f'<text x="{area.x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{int(step)}</text>')
    return found


def _lines(area: _Area, part: Series) -> list[str]:
    look = f'class="c{part.colour}" fill="none" stroke-width="{1 if part.faint else 2}" stroke-linejoin="round"'
    look += ' opacity="0.35"' if part.faint else ""
    found = []
    for run in _unbroken(thinned(part.points)):
        places = [f"{area.x(x):.1f},{area.y(y):.1f}" for x, y in run]
        if len(places) > 1:
            found.append(f'<polyline {look} points="{" ".join(places)}"/>')
        if part.dots or len(places) == 1:
            circles = (place.split(",") for place in places)
            found += [f'<circle class="f{part.colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in circles]
    return found


def _unbroken(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """The stretches between gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `MOST_POINTS` points: of each stretch its lowest and highest, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(len(points) / (MOST_POINTS / 2))
    found: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        present = [(x, y) for x, y in stretch if y is not None]
        if not present:
            found.append((stretch[0][0], None))
            continue
        ends = {min(present, key=lambda point: point[1]), max(present, key=lambda point: point[1])}
        found += sorted(ends)
    return found


def smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """Exponential moving average with the start corrected; gaps stay gaps. `weight` from 0 (none) to below 1."""
    mean, seen = 0.0, 0
    found: list[Point] = []
    for x, y in points:
        if y is None:
            found.append((x, None))
            continue
        seen += 1
        mean = weight * mean + (1 - weight) * y
        found.append((x, mean / (1 - weight**seen)))
    return found


def _legend(area: _Area, shown: Sequence[Series]) -> list[str]:
    """Names above the lines, from right to left; a faint line goes without."""
    found, right = [], area.width - RIGHT
    for part in reversed([part for part in shown if not part.faint]):
        found.append(f'<text x="{right}" y="14" text-anchor="end">{escape(part.label)}</text>')
        width = sum(12 if ord(char) > 0x2E7F else 7 for char in part.label)
        found.append(f'<rect class="f{part.colour}" x="{right - width - 13:.0f}" y="9" width="9" height="3"/>')
        right -= int(width) + 28
    return found
