"""From measurements to a choice, with the reasons in plain sentences. Pure.

First the need: settings that keep up with the rate and the deadline, if any does. Among them the best by the objective;
among those about as good, the one that takes less CPU, then the cooler, then the simpler one.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.hardware.settings import Choice, Measurement, Objective, Setting

TIE: dict[Objective, float] = {"latency": 0.05, "throughput": 0.10, "efficiency": 0.10}
"""Relative difference to the best that counts as equal. Who asks for latency gets at most this much above the best."""
HEADROOM = 1.2
"""Times the wanted rate that a setting must have reached: a device that just keeps up has no time for a hot day."""
_NOISE = 0.01
_CPU_TIE = 0.05
_SLOPE_TIE = 0.5  # °C a minute
_MAX_ALTERNATIVES = 5


def choose(
    measurements: Sequence[Measurement],
    objective: Objective,
    *,
    rate: float | None = None,
    deadline_ms: float | None = None,
    default: Setting | None = None,
    at: float = 0.0,
) -> Choice:
    """The best of `measurements` (at least one; ValueError for none).

    `rate` in pictures a second and `deadline_ms` for 95 of 100 pictures are what the service needs. `default` is the
    setting that the runtime would take by itself: a choice for latency or throughput is never worse than it.
    """
    if not measurements:
        raise ValueError("there is nothing to choose from")
    reasons: list[str] = []
    pool = _meeting(measurements, rate, deadline_ms, reasons)
    if pool is None:
        # Nothing keeps up: what matters then is to lose as little as possible.
        best = max(measurements, key=lambda m: m.throughput) if rate is not None else min(measurements, key=_p95)
        pool = [best]
    pool = _not_worse_than(pool, measurements, default, objective)
    best = min(pool, key=lambda m: score(m, objective))
    near = [m for m in pool if score(m, objective) <= score(best, objective) * (1 + TIE[objective])]
    chosen = _cheapest(near)
    reasons.append(_reason(chosen, best, objective))
    return Choice(
        setting=chosen.setting,
        objective=objective,
        reasons=reasons,
        alternatives=_alternatives(chosen, measurements, objective),
        measurements=list(measurements),
        at=at,
    )


def score(measurement: Measurement, objective: Objective) -> float:
    """How good it is for the objective; the smaller, the better."""
    if objective == "throughput":
        return 1 / max(measurement.throughput, 1e-9)
    return measurement.cpu_ms if objective == "efficiency" else measurement.p50_ms


def _meeting(
    measurements: Sequence[Measurement], rate: float | None, deadline_ms: float | None, reasons: list[str]
) -> list[Measurement] | None:
    """Those that meet the need, None if none does."""
    if rate is None and deadline_ms is None:
        return list(measurements)
    wants = []
    if rate is not None:
        wants.append(f"{rate:g} pictures a second")
    if deadline_ms is not None:
        wants.append(f"an answer within {deadline_ms:g} ms")
    pool = [
        m
        for m in measurements
        if (rate is None or m.throughput >= rate * HEADROOM) and (deadline_ms is None or m.p95_ms <= deadline_ms)
    ]
    if pool:
        reasons.append(f"{len(pool)} of {len(measurements)} settings give {' and '.join(wants)}")
        return pool
    reasons.append(f"no setting gives {' and '.join(wants)}; this one comes nearest")
    return None


def _not_worse_than(
    pool: list[Measurement], measurements: Sequence[Measurement], default: Setting | None, objective: Objective
) -> list[Measurement]:
    """Without those that are worse than the runtime's default, which itself is in the pool if it meets the need."""
    if default is None or objective == "efficiency":
        return pool
    standard = next((m for m in measurements if m.setting == default), None)
    if standard is None or standard not in pool:
        return pool
    return [m for m in pool if score(m, objective) <= score(standard, objective) * (1 + _NOISE)]


def _cheapest(near: list[Measurement]) -> Measurement:
    least = min(m.cpu_ms for m in near)
    near = [m for m in near if m.cpu_ms <= least * (1 + _CPU_TIE)]
    slopes = [m.temperature_slope for m in near if m.temperature_slope is not None]
    if len(slopes) == len(near):
        near = [m for m in near if (m.temperature_slope or 0.0) <= min(slopes) + _SLOPE_TIE]
    return min(near, key=lambda m: (_complexity(m.setting), m.p50_ms))


def _complexity(setting: Setting) -> tuple[int, int, int, int]:
    """The simpler, the smaller: the CPU before a provider before another process, few threads, no spinning."""
    return (bool(setting.interpreter), setting.accelerated, setting.threads, setting.spinning)


def _reason(chosen: Measurement, best: Measurement, objective: Objective) -> str:
    text = f"{_value(chosen, objective)}, the best of what was measured"
    if chosen is not best:
        text = (
            f"{_value(chosen, objective)}, as good as the best ({_value(best, objective)}) "
            f"with {chosen.cpu_ms:.3g} instead of {best.cpu_ms:.3g} ms of CPU a picture"
        )
    return text


def _value(measurement: Measurement, objective: Objective) -> str:
    if objective == "throughput":
        return f"{measurement.throughput:.3g} pictures a second"
    if objective == "efficiency":
        return f"{measurement.cpu_ms:.3g} ms of CPU a picture"
    return f"{measurement.p50_ms:.3g} ms a picture"


def _alternatives(chosen: Measurement, measurements: Sequence[Measurement], objective: Objective) -> list[Setting]:
    """What to fall back to: the others, best first, and at the end the simplest on the CPU."""
    others = [m.setting for m in sorted(measurements, key=lambda m: score(m, objective)) if m.setting != chosen.setting]
    floor = [setting for setting in others if not setting.accelerated]
    last = min(floor, key=_complexity, default=None)
    if last is None:
        return others[:_MAX_ALTERNATIVES]
    first = [setting for setting in others if setting != last]
    return [*first[: _MAX_ALTERNATIVES - 1], last]


def _p95(measurement: Measurement) -> float:
    return measurement.p95_ms
