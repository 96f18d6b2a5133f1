"""Curves of numbers by version, as a picture in SVG: one panel for each metric.

A few lines and labels; a library for plots would be larger than all that verifies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from adapters.log_lines import printable

_WIDTH: Final = 640
_PANEL: Final = 220
_LEFT: Final = 80
_RIGHT: Final = 20
_TOP: Final = 34
_BOTTOM: Final = 34


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Return a picture of curves.

    Args:
        curves: Points by name, each a version and a value, in order of version. Points
            that are not finite are left out.

    Returns:
        An SVG document, ASCII.
    """
    height = _PANEL * max(1, len(curves))
    panels = "".join(
        _draw_panel(name, points, index * _PANEL)
        for index, (name, points) in enumerate(curves.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>\n{panels}</svg>\n'
    )


def _draw_panel(name: str, points: Sequence[tuple[int, float]], top: int) -> str:
    points = [(x, y) for x, y in points if math.isfinite(y)]
    bottom = top + _PANEL - _BOTTOM
    lines = [_write(_LEFT, top + 20, name, "start", weight="bold")]
    if points:
        xs, ys = zip(*points, strict=True)
        places = [
            (
                _place(x, min(xs), max(xs), _LEFT, _WIDTH - _RIGHT),
                _place(y, min(ys), max(ys), bottom, top + _TOP),
            )
            for x, y in points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{path}" fill="none" stroke="#1f77b4"/>')
        lines += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#1f77b4"/>'
            for x, y in places
        ]
        for value, (_, y) in zip(ys, places, strict=True):
            if value in {min(ys), max(ys)}:
                lines.append(_write(_LEFT - 8, y + 4, f"{value:.4g}", "end"))
        for value, (x, _) in zip(xs, places, strict=True):
            if value in {min(xs), max(xs)}:
                lines.append(_write(x, bottom + 18, str(value), "middle"))
    lines += [
        _draw_axes(top + _TOP, bottom),
        _write((_WIDTH + _LEFT) / 2, bottom + 30, "version", "middle"),
    ]
    return "\n".join(lines) + "\n"


def _draw_axes(top: int, bottom: int) -> str:
    path = f"M{_LEFT} {top}V{bottom}H{_WIDTH - _RIGHT}"
    return f'<path d="{path}" fill="none" stroke="#888"/>'


def _place(value: float, low: float, high: float, begin: float, end: float) -> float:
    part = 0.5 if low == high else (value - low) / (high - low)
    return begin + part * (end - begin)


def _write(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    safe = escape(printable(text)).encode("ascii", "xmlcharrefreplace").decode()
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{safe}</text>'
    )
