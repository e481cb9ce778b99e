"""Pictures of latency and throughput over the last ten minutes, as SVG that needs no script and no colour to be read.

Latency has a logarithmic axis, so that one slow second does not flatten all others; throughput begins at zero. Lines
break where there was nothing to measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from edged.status.history import SAMPLE_S, SPAN_S, Sample
from edgekit.html import text

MAX_CHARTS = 16
"""Services that are drawn; each takes some 6 kB of a page that is fetched every two seconds."""

_WIDTH, _HEIGHT = 720, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 708, 14, 206  # of the plot; viewed at half the size
_GAP_S = 3 * SAMPLE_S

Line = tuple[str, str, Callable[[Sample], float | None]]
"""CSS class, name, and what it shows."""


def history_card(history: Mapping[str, Sequence[Sample]], now: float) -> str:
    """The whole card; `now` is of the same clock as the samples. Empty if no service has decided anything lately."""
    busy = [name for name, samples in sorted(history.items()) if any(sample.p50_ms is not None for sample in samples)]
    if not busy:
        return ""
    shown = "".join(_service(name, history[name], now) for name in busy[:MAX_CHARTS])
    more = f'<p class="soft">{len(busy) - MAX_CHARTS} more services are not drawn.</p>' if busy[MAX_CHARTS:] else ""
    return f'<section class="card" id="history"><h2>Last 10 minutes</h2>{shown}{more}</section>'


def _service(name: str, samples: Sequence[Sample], now: float) -> str:
    latency = _chart(
        f"Latency of {name}",
        "ms",
        (("p50", "p50", lambda sample: sample.p50_ms), ("p99", "p99", lambda sample: sample.p99_ms)),
        samples,
        now,
        logarithmic=True,
    )
    rate = _chart(
        f"Throughput of {name}", "per second", (("rate", "decided", lambda sample: sample.per_s),), samples, now
    )
    return f'<h3>{text(name)}</h3><div class="charts">{latency}{rate}</div>'


def _chart(
    title: str, unit: str, lines: Iterable[Line], samples: Sequence[Sample], now: float, *, logarithmic: bool = False
) -> str:
    """One picture. `samples` is not empty."""
    lines = list(lines)
    values = [value for _, _, read in lines for sample in samples if (value := read(sample)) is not None]
    ticks = log_ticks(min(values), max(values)) if logarithmic else linear_ticks(max(values))
    scale = _log if logarithmic else float
    low, high = scale(ticks[0]), scale(ticks[-1])

    def height(value: float) -> int:
        share = (scale(value) - low) / (high - low)
        return round(_BOTTOM - min(max(share, 0.0), 1.0) * (_BOTTOM - _TOP))

    rules = "".join(
        f'<line class="rule" x1="{_LEFT}" x2="{_RIGHT}" y1="{height(tick)}" y2="{height(tick)}"/>'
        f'<text x="{_LEFT - 8}" y="{height(tick) + 7}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    )
    minutes = "".join(
        f'<text x="{_LEFT + share * (_RIGHT - _LEFT):.0f}" y="{_HEIGHT - 12}" text-anchor="{anchor}">{label}</text>'
        for share, anchor, label in ((0.0, "start", "10 min ago"), (0.5, "middle", "5 min ago"), (1.0, "end", "now"))
    )
    paths = "".join(f'<path class="{kind}" d="{_path(samples, read, height, now)}"/>' for kind, _, read in lines)
    words = [_words(name, samples, read) for _, name, read in lines]
    legend = " ".join(
        f'<span class="key {kind}">{name} <strong>{_last(samples, read)}</strong></span>' for kind, name, read in lines
    )
    label = text(f"{title} in {unit} over the last 10 minutes: {'; '.join(words)}")
    return (
        f"<figure><figcaption>{text(title.partition(' of ')[0])}, {unit} {legend}</figcaption>"
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>'
        f"{rules}{minutes}{paths}</svg></figure>"
    )


def _path(
    samples: Sequence[Sample], read: Callable[[Sample], float | None], height: Callable[[float], int], now: float
) -> str:
    """Steps relative to the point before, whole units: some four characters a sample."""
    parts: list[str] = []
    before: tuple[float, int, int] | None = None
    for sample in samples:
        value = read(sample)
        if value is None:
            before = None
            continue
        x = round(_RIGHT - (now - sample.at) / SPAN_S * (_RIGHT - _LEFT))
        y = height(value)
        if before is None or sample.at - before[0] > _GAP_S:
            parts.append(f"M{x} {y}h1")  # the tiny line shows a sample that stands alone
            before = (sample.at, x + 1, y)
            continue
        across, up = x - before[1], y - before[2]
        if across or up:
            parts.append(f"l{across} {up}" if up else f"h{across}")
        before = (sample.at, x, y)
    return "".join(parts)


def _values(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> list[float]:
    return [value for sample in samples if (value := read(sample)) is not None]


def _last(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> str:
    value = read(samples[-1])
    return "–" if value is None else _short(value)


def _words(name: str, samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> str:
    values = _values(samples, read)
    if not values:
        return f"{name} not measured"
    return f"{name} now {_last(samples, read)}, from {_short(min(values))} to {_short(max(values))}"


def _short(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _log(value: float) -> float:
    return math.log10(max(value, 1e-3))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 ... around `low` and `high` (both above 0), two at least; only powers of ten if there are many."""
    first = math.floor(_log(low)) - 1
    last = math.ceil(_log(high)) + 1
    steps = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in (1, 2, 5)]
    start = max(index for index, step in enumerate(steps) if step <= max(low, steps[0]))
    end = min(index for index, step in enumerate(steps) if step >= high and index > start)
    if end - start <= 5:
        return steps[start : end + 1]
    bottom = start - start % 3  # where the digit is 1
    top = end + -end % 3
    return [*steps[bottom:top:3], float(f"1e{first + top // 3}")]


def linear_ticks(high: float) -> list[float]:
    """0, half and the whole of a round number that is not below `high`."""
    power = 10.0 ** math.floor(math.log10(max(high, 1e-3)))
    top = next(factor * power for factor in (1.0, 2.0, 4.0, 5.0, 10.0) if factor * power >= high * (1 - 1e-9))
    return [0.0, top / 2, top]
