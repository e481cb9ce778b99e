"""The picture of `benchmarks.federated`: how F1 grows with the pictures that were shown, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 300, 230  # of one panel, with its margins
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 30, 38
_LEGEND = 26
_COLOURS = ("#6b7280", "#16a34a", "#2563eb", "#ea580c", "#9333ea")
_DASHES = ("6 3", "2 3", "", "5 4", "1.5 3")
_FONT = 'font-family="system-ui,sans-serif"'


@dataclass(frozen=True)
class Panel:
    """`lines`: of each name one line a seed; the points of all seeds have the same x."""

    title: str
    lines: Mapping[str, Sequence[Sequence[Point]]]


def picture(panels: Sequence[Panel], x_label: str, y_label: str) -> str:
    """Side by side: the mean over the seeds as a line, their range as a band. y runs from 0 to 1."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    style = {name: (_COLOURS[at % len(_COLOURS)], _DASHES[at % len(_DASHES)]) for at, name in enumerate(names)}
    width, height = _WIDTH * len(panels), _HEIGHT + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for at, panel in enumerate(panels):
        parts += [f'<g transform="translate({at * _WIDTH} 0)">', *_panel(panel, style, x_label, y_label), "</g>"]
    parts += [*_legend(style, width), "</svg>"]
    return "\n".join(parts) + "\n"


def band(seeds: Sequence[Sequence[Point]]) -> tuple[list[Point], list[Point], list[Point]]:
    """(mean, lowest, highest) over the seeds at each x. Raises ValueError where the seeds' x differ."""
    found: tuple[list[Point], list[Point], list[Point]] = ([], [], [])
    for points in zip(*seeds, strict=True):
        xs, ys = {x for x, _ in points}, [y for _, y in points]
        if len(xs) != 1:
            raise ValueError(f"the seeds have looked at different places: {sorted(xs)}")
        x = xs.pop()
        for line, y in zip(found, (sum(ys) / len(ys), min(ys), max(ys)), strict=True):
            line.append((x, y))
    return found


def _panel(panel: Panel, style: Mapping[str, tuple[str, str]], x_label: str, y_label: str) -> list[str]:
    most = max((x for seeds in panel.lines.values() for line in seeds for x, _ in line), default=1.0)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(point: Point) -> str:
        return f"{_LEFT + point[0] / most * (right - _LEFT):.1f},{bottom - point[1] * (bottom - _TOP):.1f}"

    parts = [_text((_LEFT + right) / 2, _TOP - 12, panel.title, 12, "middle", "600")]
    for tick in range(0, 11, 2):
        y = bottom - tick / 10 * (bottom - _TOP)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#e5e7eb"/>')
        parts.append(_text(_LEFT - 5, y + 3.5, f"{tick / 10:g}", 10, "end"))
    for share in (0.0, 0.5, 1.0):
        parts.append(_text(_LEFT + share * (right - _LEFT), bottom + 13, f"{share * most:g}", 10, "middle"))
    parts.append(_text((_LEFT + right) / 2, bottom + 28, x_label, 10, "middle"))
    parts.append(
        f'<text {_FONT} font-size="10" fill="#111" text-anchor="middle" '
        f'transform="translate(11 {(bottom + _TOP) / 2:.0f}) rotate(-90)">{escape(y_label)}</text>'
    )
    for name, seeds in panel.lines.items():
        colour, dashes = style[name]
        mean, low, high = band(seeds)
        around = " ".join(at(point) for point in [*low, *reversed(high)])
        parts.append(f'<polygon points="{around}" fill="{colour}" fill-opacity=".12"/>')
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        line = " ".join(at(point) for point in mean)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>')
    return parts


def _legend(style: Mapping[str, tuple[str, str]], width: int) -> list[str]:
    parts, step = [], width / max(1, len(style))
    for number, (name, (colour, dashes)) in enumerate(style.items()):
        x, y = number * step + 12, _HEIGHT + 12
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(f'<path d="M{x:.0f} {y}h26" stroke="{colour}" stroke-width="1.8"{dashed}/>')
        parts.append(_text(x + 32, y + 4, name, 11))
    return parts


def _text(x: float, y: float, text: str, size: int, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} font-size="{size}" font-weight="{weight}" fill="#111" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
