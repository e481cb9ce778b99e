"""The status page: one verdict on top, then cloud, services, spool, machine and what happened lately.

Pure: a StatusState goes in, HTML comes out. Rendered whole on the server; see edgekit.html for the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edged.status.charts import history_card
from edged.status.federation_page import federation_card
from edged.status.hardware_page import hardware_card
from edged.status.history import Sample
from edged.status.learning_page import learning_card
from edged.status.outputs_page import outputs_card
from edged.status.plan_page import plan_card
from edged.status.state import CloudState, ServiceState, StatusState, WorkerState
from edgekit.html import SCRIPT, STYLE, age, badge, bar, button, count, login, megabytes, page, table, text
from edgekit.messages import ServiceReport

STYLES = (STYLE,)
SCRIPTS = (SCRIPT,)


def render(
    state: StatusState,
    logged_in: bool = False,
    history: Mapping[str, Sequence[Sample]] | None = None,
    steady: float = 0.0,
    waiting: int = 0,
) -> str:
    """The page for a browser; with buttons for an operator who has logged in. Touches nothing outside its arguments.

    `history` has each service's last ten minutes, and `steady` is the present time of its clock. `waiting` samples wait
    for a label.
    """
    main = "".join(
        (
            _verdict(state),
            _services(state, logged_in),
            _review(waiting),
            _pictures(state),
            history_card(history or {}, steady),
            learning_card(state, logged_in),
            federation_card(state, logged_in),
            plan_card(state),
            outputs_card(state),
            f'<div class="grid">{_cloud(state.cloud, state.now)}{_spool(state)}{_worker(state)}{_machine(state)}</div>',
            hardware_card(state.hardware, state.now),
            _models(state),
            _events(state),
            login(logged_in, "edged", "to recalibrate services and to decide about what they learn"),
        )
    )
    footer = f"edged {text(state.version)} · <code>{text(state.device_id)}</code>"
    return page(f"edged · {state.name}", "", main, footer)


def _verdict(state: StatusState) -> str:
    items = "".join(
        f"<li>{badge(item.severity, item.severity)} {text(item.text)} "
        f'<span class="soft">since {age(state.now, item.since)}</span></li>'
        for item in state.health.items
    )
    details = f"<ul>{items}</ul>" if items else ""
    health = state.health
    return f'<section class="card verdict {health.level}" id="verdict">{text(health.verdict)}{details}</section>'


def _services(state: StatusState, logged_in: bool) -> str:
    head = [
        ("service", False), ("model", False), ("state", False), ("inspected", True), ("decided at", False),
        ("offload", True), ("agreement", True), ("p50 / p99", True), ("hard samples", False),
    ]  # fmt: skip
    rows = [_service_row(service, logged_in) for service in state.services]
    listing = table(head, rows, "No service runs here yet. Add one: edged services add FILE.toml")
    return f'<section class="card" id="services"><h2>Services</h2>{listing}</section>'


def _service_row(service: ServiceState, logged_in: bool) -> list[str]:
    report = service.report
    kind = {"ready": "ok", "loading": "warning", "failed": "error"}[report.state]
    notes = [note for note in (report.detail, service.refused) if note]
    if service.last_good:
        notes.append("the last good definition runs")
    total = max(1, report.edge + report.cloud + report.degraded)
    shares = (
        (report.edge, "edge", "edge"),
        (report.cloud, "cloud", "cloud"),
        (report.degraded, "warning", "edge-degraded"),
    )
    words = ", ".join(f"{name} {count(number)}" for number, _, name in shares)
    milliseconds = (
        f"{report.p50_ms:.1f} / {report.p99_ms:.1f} ms"
        if report.p50_ms is not None and report.p99_ms is not None
        else "–"
    )
    again = ""
    if logged_in and service.hard_samples == "risk":
        again = "<br>" + button(f"/api/services/{service.name}/recalibrate", "Recalibrate")
    labels = ", ".join(
        f"{text(label)} {count(number)}" for label, number in sorted(report.labels.items(), key=lambda item: -item[1])
    )
    return [
        f"<strong>{text(service.name)}</strong>"
        f"<br><span class='soft'>{text(service.priority)}, {text(service.source)}</span>",
        f"<code>{text(report.model or service.model)}</code>",
        badge(report.state, kind) + "".join(f"<br><span class='soft'>{text(note)}</span>" for note in notes),
        f"{count(report.inspected)}<br><span class='soft'>{labels}{_regions(report)}</span>{_verdicts(report)}",
        bar([(number / total, colour) for number, colour, _ in shares], words) + f"<span class='soft'>{words}</span>",
        f"{report.offload_share:.0%}",
        "–" if report.agreement is None else f"{report.agreement:.1%}",
        milliseconds,
        text(report.gate or service.hard_samples) + again,
    ]


def _review(waiting: int) -> str:
    """What a person can do for the models; nothing while there is nothing to do."""
    if not waiting:
        return ""
    what = "1 sample waits" if waiting == 1 else f"{count(waiting)} samples wait"
    return f'<section class="card" id="review">{what} for a label. <a href="/review">Review</a></section>'


def _pictures(state: StatusState) -> str:
    """The newest picture of each service that has one; the page's script fetches it anew each second."""
    shown = "".join(
        f'<figure class="look"><img data-live="/preview/{text(service.name)}.jpg" '
        f'src="/preview/{text(service.name)}.jpg" '
        f'alt="Newest picture of {text(service.name)}: {text(service.report.preview)}">'
        f"<figcaption>{text(service.name)}</figcaption></figure>"
        for service in state.services
        if service.report.preview
    )
    return (
        f'<section class="card" id="pictures"><h2>Pictures</h2><div class="looks">{shown}</div></section>'
        if shown
        else ""
    )


def _verdicts(report: ServiceReport) -> str:
    """How many samples passed, failed and are for a person to look at."""
    kinds = {"pass": "ok", "fail": "error", "review": "warning"}
    shown = [
        badge(f"{word} {count(report.verdicts[word])}", kind) for word, kind in kinds.items() if word in report.verdicts
    ]
    return "<br>" + " ".join(shown) if shown else ""


def _regions(report: ServiceReport) -> str:
    """Parts of the pictures, where the service looks at such."""
    if not report.regions:
        return ""
    candidates, defects, cloud = (count(report.regions.get(what, 0)) for what in ("candidates", "defects", "cloud"))
    return f"<br>{candidates} regions: {defects} defects, {cloud} answered by the cloud"


def _facts(title: str, identity: str, facts: list[tuple[str, str]]) -> str:
    listing = "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in facts if value)
    return f'<section class="card" id="{identity}"><h2>{text(title)}</h2><dl>{listing}</dl></section>'


def _cloud(cloud: CloudState, now: float) -> str:
    if not cloud.joined:
        return _facts(
            "Cloud",
            "cloud",
            [("state", badge("not joined")), ("", text(cloud.detail)), ("join", "<code>edged join TOKEN</code>")],
        )
    return _facts(
        "Cloud",
        "cloud",
        [
            ("state", badge("connected", "ok") if cloud.up else badge("no link", "warning")),
            ("since", age(now, cloud.since)),
            ("name", text(cloud.name)),
            ("address", text(cloud.url)),
            ("authority", f"<code>{text(cloud.authority)}</code>"),
            (
                "certificate",
                f"{max(0.0, cloud.certificate_until - now) / 86400:.0f} days left" if cloud.certificate_until else "",
            ),
            ("", text(cloud.detail)),
        ],
    )


def _spool(state: StatusState) -> str:
    spool = state.spool
    if spool is None:
        return _facts("Spool", "spool", [("state", "no report yet")])
    share = spool.bytes / spool.quota if spool.quota else 0.0
    filled = f"{megabytes(spool.bytes)} of {megabytes(spool.quota)}"
    return _facts(
        "Spool",
        "spool",
        [
            ("waiting", count(spool.items)),
            ("size", bar([(share, "warning" if share > 0.8 else "ok")], filled) + filled),
            ("oldest", age(state.now, spool.oldest_at) if spool.items else ""),
            ("delivered", count(spool.delivered)),
            ("given up", count(spool.evicted) if spool.evicted else ""),
            ("sent in all", megabytes(state.worker.uplink_bytes)),
        ],
    )


def _worker(state: StatusState) -> str:
    worker: WorkerState = state.worker
    kind = "ok" if worker.state == "ready" else "warning"
    breaker = badge("open", "warning") + " hard samples go to the spool" if worker.breaker != "closed" else "closed"
    return _facts(
        "Processes",
        "processes",
        [
            ("worker", badge(worker.state, kind) + (" (a successor is loading)" if worker.swapping else "")),
            ("since", age(state.now, worker.since)),
            ("restarts", str(worker.restarts)),
            ("memory", f"worker {megabytes(worker.rss)}, supervisor {megabytes(state.supervisor_rss)}"),
            ("circuit breaker", breaker if state.cloud.joined else ""),
            ("inference", f"<code>{text(state.addresses.inference)}</code>"),
        ],
    )


def _machine(state: StatusState) -> str:
    machine = state.machine
    return _facts(
        "Machine",
        "machine",
        [
            ("host", text(machine.hostname)),
            ("model", text(f"{machine.model} ({machine.architecture})")),
            ("CPU", f"{machine.cpu_percent:.0f} % of {machine.cpus}"),
            ("memory", f"{megabytes(machine.memory_available)} free of {megabytes(machine.memory_total)}"),
            ("disk", f"{megabytes(machine.disk_free)} free of {megabytes(machine.disk_total)}"),
            ("temperature", "" if machine.temperature_c is None else f"{machine.temperature_c:.0f} °C"),
        ],
    )


def _models(state: StatusState) -> str:
    head = [
        ("model", False),
        ("task", False),
        ("variants", False),
        ("size", True),
        ("digest", False),
        ("used by", False),
    ]
    rows = [
        [
            f"<code>{text(model.name)}@{text(model.version)}</code>",
            text(model.task),
            text(", ".join(model.variants)),
            megabytes(model.size),
            f"<code>{text(model.digest[:16])}</code>",
            text(", ".join([*model.used_by, *(["served without a service"] if model.served else [])])),
        ]
        for model in state.models
    ]
    listing = table(head, rows, "No model is installed. Add one: edged models add DIRECTORY")
    return f'<section class="card" id="models"><h2>Models</h2>{listing}</section>'


def _events(state: StatusState) -> str:
    rows = [
        [age(state.now, event.at), badge(event.level, event.level), text(event.text)] for event in state.health.events
    ]
    listing = table([("when", False), ("", False), ("what", False)], rows, "Nothing has happened yet.")
    return f'<section class="card" id="events"><h2>Lately</h2>{listing}</section>'
