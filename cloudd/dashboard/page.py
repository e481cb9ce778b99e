"""The dashboard: verdict, totals, devices with their services, the last hard samples with both verdicts, models.

Pure: a DashboardState goes in, HTML comes out. See edgekit.html for the frame, edgekit.webguard for who may press what.
"""

from __future__ import annotations

from cloudd.dashboard.state import DashboardState, DeviceView, ModelView, SampleView
from cloudd.retraining.view import RetrainingView
from edgekit.html import SCRIPT, STYLE, age, badge, bar, button, count, login, megabytes, page, table, text
from edgekit.messages import UNSEEN, ServiceReport, Verdict
from edgekit.messages.retraining import ENDED

STYLES = (STYLE,)
SCRIPTS = (SCRIPT,)


def render(state: DashboardState, jobs: str = "") -> str:
    """The page for a browser, with the ready HTML of the federated jobs. Touches nothing outside its arguments."""
    main = "".join(
        (
            _verdict(state),
            _totals(state),
            _devices(state),
            _samples(state),
            jobs,
            _models(state.models),
            login(
                state.logged_in,
                "cloudd",
                "to revoke devices and to make join tokens",
                button("/api/invites", "Make a join token"),
            ),
        )
    )
    footer = (
        f"cloudd {text(state.version)} · authority <code>{text(state.fingerprint)}</code> · "
        f"devices connect to {text(state.device_url)}"
    )
    return page(f"cloudd · {state.name}", "found on this network" if state.advertised else "", main, footer)


def _verdict(state: DashboardState) -> str:
    verdict = "Everything works." if state.health == "ok" else "Needs attention:"
    items = "".join(f"<li>{text(problem)}</li>" for problem in state.problems)
    details = f"<ul>{items}</ul>" if items else ""
    return f'<section class="card verdict {state.health}" id="verdict">{verdict}{details}</section>'


def _decided(edge: int, cloud: int, degraded: int) -> str:
    total = max(1, edge + cloud + degraded)
    words = f"edge {count(edge)}, cloud {count(cloud)}, edge-degraded {count(degraded)}"
    shares = [(edge / total, "edge"), (cloud / total, "cloud"), (degraded / total, "warning")]
    return bar(shares, words) + f'<span class="soft">{words}</span>'


def _totals(state: DashboardState) -> str:
    totals = state.totals
    agreement = f", {totals.agreed / totals.compared:.1%} agree with the edge" if totals.compared else ""
    facts = [
        ("devices", f"{count(totals.online)} online of {count(totals.devices)}"),
        ("services", count(totals.services)),
        ("inspected", count(totals.inspected)),
        ("decided at", _decided(totals.decided_edge, totals.decided_cloud, totals.decided_degraded)),
        ("answered here", f"{count(totals.answered)}{agreement}"),
        ("waiting on devices", count(totals.spooled)),
    ]
    listing = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return f'<section class="card" id="totals"><h2>Fleet</h2><dl>{listing}</dl></section>'


def _devices(state: DashboardState) -> str:
    head = [("device", False), ("link", False), ("health", False), ("services", False), ("spool", True), ("", False)]
    rows = [_device_row(device, state) for device in state.devices]
    listing = table(head, rows, "No device has joined yet. Make a token for one: cloudd invite")
    return f'<section class="card" id="devices"><h2>Devices</h2>{listing}</section>'


def _device_row(device: DeviceView, state: DashboardState) -> list[str]:
    if device.revoked:
        link = badge("revoked", "error")
    elif device.online:
        link = badge("online", "ok")
    else:
        link = badge("offline", "warning")
    health = badge(device.health, device.health) if device.health else badge("no report yet")
    problems = "".join(f'<br><span class="soft">{text(problem)}</span>' for problem in device.problems)
    sync = "" if device.in_sync else '<br><span class="soft">does not follow its desired state yet</span>'
    revoke = ""
    if state.logged_in and not device.revoked:
        revoke = button(f"/api/devices/{device.device_id}/revoke", "Revoke")
    return [
        f"<strong>{text(device.name)}</strong><br><code>{text(device.short_id)}</code> "
        f'<span class="soft">{text(device.machine)} {text(device.version)}</span>',
        f'{link}<br><span class="soft">seen {age(state.now, device.seen_at)}</span>',
        health + problems + sync,
        ("".join(_service(service) for service in device.services) or '<span class="soft">none</span>')
        + _retraining(device, state),
        count(device.spool.items) if device.spool else "–",
        revoke,
    ]


def _service(service: ServiceReport) -> str:
    kind = {"ready": "ok", "loading": "warning", "failed": "error"}[service.state]
    return (
        f"<div><strong>{text(service.name)}</strong> {badge(service.state, kind)} <code>{text(service.model)}</code> "
        f"{count(service.inspected)} inspected{_decided(service.edge, service.cloud, service.degraded)}"
        f'<br><span class="soft">{text(service.gate)}</span></div>'
    )


def _retraining(device: DeviceView, state: DashboardState) -> str:
    """Jobs of the device that are under way here, and what those that ended have left."""
    mine = [one for one in state.retraining if one.device_id == device.device_id and not one.removed]
    lines = []
    for one in mine:
        if one.stage not in ENDED:
            share = f" (step {count(one.done)} of {count(one.total)})" if one.total else ""
            lines.append(f"retraining {one.service} with {count(one.pictures)} pictures: cloudd {one.text}{share}")
    ended = sorted((one for one in mine if one.stage in ENDED), key=_ended_at, reverse=True)
    if ended:
        last, more = ended[0], f"; {count(len(ended) - 1)} more before it" if len(ended) > 1 else ""
        why = f": {last.text}" if last.stage in ("refused", "failed") and last.text else ""
        lines.append(f"retraining of {last.service} {last.stage} {age(state.now, _ended_at(last))}{why}{more}")
    return "".join(f'<div class="soft">{text(line)}</div>' for line in lines)


def _ended_at(one: RetrainingView) -> float:
    return one.created_at if one.ended_at is None else one.ended_at


def _opinion(verdict: Verdict, kind: str, about: str = "") -> str:
    return (
        f'{about}<span class="{kind}">{text(verdict.label)}</span> {verdict.score:.0%}'
        f'<br><span class="soft"><code>{text(verdict.model)}</code></span>'
    )


def _samples(state: DashboardState) -> str:
    head = [
        ("picture", False), ("edge says", False), ("cloud says", False), ("", False), ("why it came", False),
        ("from", False), ("when", False), ("answered in", True),
    ]  # fmt: skip
    listing = table(head, [_sample_row(sample, state.now) for sample in state.samples], "No hard sample has come yet.")
    return f'<section class="card" id="samples"><h2>Last hard samples</h2>{listing}</section>'


def _sample_row(sample: SampleView, now: float) -> list[str]:
    picture = f'<span class="soft">features<br>cut {text(sample.cut)}</span>' if sample.cut else ""
    if sample.thumbnail:
        picture = f'<img class="sample" src="{text(sample.thumbnail)}" alt="" loading="lazy">'
    serial = f'<br><span class="soft">{text(sample.serial)}</span>' if sample.serial else ""
    return [
        picture,
        _opinion(sample.edge, "edge"),
        _opinion(sample.cloud, "cloud", '<span class="soft">least sure region</span><br>' if sample.regions else ""),
        _comparison(sample) + _parts(sample),
        text(sample.reason) + (" (late)" if sample.late else ""),
        f"{text(sample.device)}<br>{text(sample.service)}{serial}",
        age(now, sample.answered_at),
        f"{sample.compute_ms:.1f} ms",
    ]


def _comparison(sample: SampleView) -> str:
    if sample.edge.label == UNSEEN:
        return badge("not compared")
    return badge("agree", "ok") if sample.agree else badge("differ", "warning")


def _parts(sample: SampleView) -> str:
    if not sample.regions:
        return ""
    number = f"{count(sample.regions)} region{'s' if sample.regions > 1 else ''}"
    difference = f", {count(sample.differ)} differ{'s' if sample.differ == 1 else ''}" if sample.differ else ""
    return f'<br><span class="soft">{number}{difference}</span>'


def _models(models: list[ModelView]) -> str:
    head = [("model", False), ("files", True), ("size", True), ("digest", False)]
    rows = [
        [
            f"<code>{text(model.name)}@{text(model.version)}</code>",
            str(model.files),
            megabytes(model.size),
            f"<code>{text(model.digest[:16])}</code>",
        ]
        for model in models
    ]
    listing = table(head, rows, "No model is registered. Add one: cloudd models add DIRECTORY")
    return f'<section class="card" id="models"><h2>Models</h2>{listing}</section>'
