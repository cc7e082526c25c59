"""Line charts as inline SVG: no plotting library to import at the end of every epoch, sharp at any size."""

from __future__ import annotations

import math
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 34  # margins, for the title and the axes' numbers


def chart(title: str, points: list[Point], *, x_label: str, marks: bool = False, floor: float | None = None) -> str:
    """An SVG element: a line through `points`, with a dot at each if `marks`; the axis starts at `floor` if given."""
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = _ticks(min(xs), max(xs))
    y_ticks = _ticks(min(ys) if floor is None else min(floor, *ys), max(ys))

    def place(x: float, y: float) -> Point:
        right = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    lines = [_text(LEFT, 18, title, "title"), _text(WIDTH - RIGHT, HEIGHT - 4, x_label, "end")]
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        lines.append(_text(LEFT - 6, y + 4, _number(tick), "end"))
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        lines.append(_text(x, HEIGHT - BOTTOM + 15, _number(tick), "middle"))
    placed = [place(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    lines.append(f'<polyline points="{path}"><title>{escape(title)}</title></polyline>')
    if marks or len(points) == 1:
        dots = zip(points, placed, strict=True)
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{p[1]:g}</title></circle>' for p, (x, y) in dots]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(lines)}</svg>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, at least two, that reach from below `low` to above `high`."""
    if high - low < 1e-12:
        high = low + max(abs(low), 1e-9)
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
