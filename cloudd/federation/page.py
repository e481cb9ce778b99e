"""The dashboard's view of federated jobs: a table on the main page, and a page of each job with its rounds.

Pure: views go in, HTML comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from cloudd.federation.store import RefusalRecord
from cloudd.federation.views import JobDetail, JobView, RoundView
from edgekit.html import age, badge, bar, megabytes, page, table, text

_KIND = {"running": "ok", "packing": "ok", "finished": "ok", "stopped": "warning", "failed": "error"}
_WIDTH, _HEIGHT, _LEFT, _EDGE = 700, 300, 110, 45
_SHOWN_ROUNDS = 100
_SHOWN_REFUSALS = 5


def section(jobs: Sequence[JobView], now: float) -> str:
    """The card on the main page; nothing where no job was ever started."""
    if not jobs:
        return ""
    head = [("job", False), ("model", False), ("state", False), ("rounds", False), ("", False), ("started", False)]
    rows = [
        [
            f'<a href="/federation/{text(one.id)}"><strong>{text(one.name)}</strong></a><br>'
            f'<span class="soft">{text(one.service)}</span>',
            f"<code>{text(one.model)}</code>" + (f"<br>→ <code>{text(one.result)}</code>" if one.result else ""),
            badge(one.status, _KIND[one.status]) + ("" if one.secure else " " + badge("not secure", "warning")),
            _progress(one),
            f'<span class="soft">{text(one.doing)}</span>',
            age(now, one.created_at),
        ]
        for one in jobs
    ]
    return f'<section class="card" id="federation"><h2>Federated jobs</h2>{table(head, rows, "")}</section>'


def render(detail: JobDetail, now: float) -> str:
    """The page of one job."""
    job = detail.job
    main = "".join((_facts(detail), _convergence(detail.rounds), _rounds(detail.rounds, now), _log(detail)))
    return page(f"federated job · {job.name}", job.doing, main, '<a href="/">Back to the dashboard</a>')


def _progress(job: JobView) -> str:
    words = f"{job.version} of {job.rounds}"
    return bar([(job.version / job.rounds, "ok")], words) + f'<span class="soft">{words}</span>'


def _facts(detail: JobDetail) -> str:
    job = detail.job
    secure = (
        f"masked sums of {detail.least} to {detail.most} devices"
        if job.secure
        else badge("updates travel unmasked", "warning")
    )
    facts = [
        ("state", badge(job.status, _KIND[job.status]) + f' <span class="soft">{text(job.doing)}</span>'),
        ("service", text(job.service)),
        ("model", f"<code>{text(job.model)}</code>"),
        ("merged model", f"<code>{text(job.result)}</code>" if job.result else "–"),
        *([("site of", f"job <code>{text(job.upper[:12])}</code>, led by {text(job.leader)}")] if job.upper else []),
        ("rounds", _progress(job)),
        ("secrecy", secure),
        ("plan", f"<code>{text(_plan(detail.plan))}</code>"),
        ("rosters", "<br>".join(f"<code>{text(one[:16])}</code>" for one in detail.rosters) or "–"),
        ("standing ready", str(job.standing)),
    ]
    listing = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return f'<section class="card" id="job"><h2>Job</h2><dl>{listing}</dl></section>'


def _plan(raw: msgspec.Raw) -> str:
    plan = msgspec.json.decode(raw)
    return msgspec.json.encode({key: value for key, value in plan.items() if value not in (None, [], 0)}).decode()


def _convergence(rounds: Sequence[RoundView]) -> str:
    """Accuracy by evaluations, size of the steps: does it still learn?"""
    figures = {one.version: one.figures.accuracy for one in rounds if one.figures is not None}
    losses = {one.version: one.figures.loss for one in rounds if one.figures is not None}
    changes = {one.version + 1: one.change for one in rounds if one.change is not None and one.outcome == "summed"}
    charts = [
        _chart("accuracy on held-out samples of all devices", figures, "rate", 0.0, 1.0, "{:.1%}"),
        _chart("loss on them", losses, "p50", 0.0, None, "{:.3g}"),
        _chart("norm of the change of each sum", changes, "p99", 0.0, None, "{:.3g}"),
    ]
    shown = "".join(charts)
    if not shown:
        return ""
    return f'<section class="card" id="convergence"><h2>Convergence</h2><div class="charts">{shown}</div></section>'


def _chart(title: str, values: dict[int, float], kind: str, low: float, high: float | None, shown: str) -> str:
    points = sorted((x, y) for x, y in values.items() if math.isfinite(y))
    if not points:
        return ""
    top = high if high is not None else max(y for _, y in points) * 1.1 or 1.0
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - _EDGE)
        return f"{across:.1f},{_HEIGHT - _EDGE - (y - low) / (top - low) * (_HEIGHT - 2 * _EDGE):.1f}"

    line = " L".join(place(x, y) for x, y in points)
    if len(points) == 1:
        line += f" L{place(points[0][0] + 0.02, points[0][1])}"
    marks = "".join(
        f'<path class="rule" d="M{place(first, level)} L{place(last, level)}"/>'
        f'<text x="{_LEFT - 12}" y="{place(first, level).split(",")[1]}" dy="7" text-anchor="end">'
        f"{text(shown.format(level))}</text>"
        for level in (low, (low + top) / 2, top)
    )
    ends = "".join(
        f'<text x="{place(x, low).split(",")[0]}" y="{_HEIGHT - 12}" text-anchor="middle">{x}</text>'
        for x in dict.fromkeys((first, points[-1][0]))
    )
    now = text(shown.format(points[-1][1]))
    return (
        f'<figure><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}: {now}">'
        f'{marks}{ends}<path class="{kind}" d="M{line}"/></svg>'
        f'<figcaption>{text(title)}, by state <span class="key {kind}">now <strong>{now}</strong></span></figcaption>'
        "</figure>"
    )


def _rounds(rounds: Sequence[RoundView], now: float) -> str:
    head = [
        ("round", True), ("of state", True), ("", False), ("devices", False), ("timeline", False),
        ("refusals", False), ("up", True), ("began", False),
    ]  # fmt: skip
    rows = [
        [
            str(one.number) + ("" if one.kind == "learn" else "<br>evaluation"),
            str(one.version),
            _outcome(one),
            _devices(one),
            _timeline(one),
            _refusals(one.refusals),
            megabytes(one.bytes_up) if one.bytes_up else "–",
            age(now, one.opened_at),
        ]
        for one in rounds[:_SHOWN_ROUNDS]
    ]
    more = f'<p class="soft">and {len(rounds) - _SHOWN_ROUNDS} before</p>' if len(rounds) > _SHOWN_ROUNDS else ""
    listing = table(head, rows, "No round has begun: devices have to stand ready first.")
    return f'<section class="card" id="rounds"><h2>Rounds</h2>{listing}{more}</section>'


def _outcome(one: RoundView) -> str:
    if not one.outcome:
        return badge("open")
    badges = badge(one.outcome, "ok" if one.outcome == "summed" else "warning")
    figures = f"<br>accuracy {one.figures.accuracy:.1%} of {one.figures.samples}" if one.figures is not None else ""
    reason = f'<br><span class="soft">{text(one.reason)}</span>' if one.reason else ""
    return badges + figures + reason


def _devices(one: RoundView) -> str:
    words = f"{one.delivered} of {one.invited}"
    return (
        bar([(one.delivered / max(1, one.invited), "ok")], words, 70) + f'<span class="soft">{words} in the sum</span>'
    )


def _timeline(one: RoundView) -> str:
    """Each step: when it closed after the round began, and with how many devices."""
    steps = [f"{text(step.step)} {max(0.0, step.at - one.opened_at):.1f} s ({step.devices})" for step in one.steps]
    return f'<span class="soft">{" · ".join(steps) or "–"}</span>'


def _refusals(refusals: Sequence[RefusalRecord]) -> str:
    if not refusals:
        return "–"
    shown = [
        f"<code>{text(one.device)}</code> {text(one.by)} {badge(one.rule, 'warning')} {text(one.text)}"
        for one in refusals[:_SHOWN_REFUSALS]
    ]
    more = [f"and {len(refusals) - _SHOWN_REFUSALS} more"] if len(refusals) > _SHOWN_REFUSALS else []
    return f'<span class="soft">{"<br>".join(shown + more)}</span>'


def _log(detail: JobDetail) -> str:
    lines = [f"<li>{text(one.text)}</li>" for one in detail.log[::-1][:20]]
    return f'<section class="card" id="log"><h2>Lately</h2><ul>{"".join(lines)}</ul></section>' if lines else ""
