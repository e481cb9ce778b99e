"""The state in Prometheus' text format 0.0.4, written by hand: the format is simpler than a library for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edged.status.state import StatusState
from edgekit.messages import LATENCY_BOUNDS_MS, ServiceReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float | None]


def render(state: StatusState) -> str:
    """All metrics. Counters start at zero with the process that counts, as Prometheus expects."""
    machine, cloud, worker, spool = state.machine, state.cloud, state.worker, state.spool
    blocks = [
        _gauge("edged_info", "Constant 1; version and device in the labels.", [(_info(state), 1)]),
        _gauge("edged_start_time_seconds", "When the daemon started.", [({}, state.started_at)]),
        _gauge(
            "edged_health_items",
            "Items on the health list.",
            [({"severity": s}, sum(item.severity == s for item in state.health.items)) for s in ("warning", "error")],
        ),
        _gauge(
            "edged_resident_memory_bytes",
            "Resident memory.",
            [({"process": "supervisor"}, state.supervisor_rss), ({"process": "worker"}, worker.rss)],
        ),
        _gauge("edged_link_up", "1 while cloudd's heartbeat arrives.", [({}, float(cloud.up))]),
        _gauge(
            "edged_certificate_expiry_seconds",
            "When the device's certificate ends, seconds since the epoch.",
            [({}, cloud.certificate_until)],
        ),
        _gauge("edged_worker_ready", "1 while the worker serves.", [({}, float(worker.state == "ready"))]),
        _counter("edged_worker_restarts_total", "Restarts after a crash.", [({}, worker.restarts)]),
        _counter("edged_uplink_bytes_total", "Bytes of hard samples sent to cloudd.", [({}, worker.uplink_bytes)]),
        *_service_blocks(state),
        *_hardware_blocks(state),
        _gauge("edged_memory_available_bytes", "Available memory of the machine.", [({}, machine.memory_available)]),
        _gauge("edged_disk_free_bytes", "Free space of the state directory.", [({}, machine.disk_free)]),
        _gauge("edged_temperature_celsius", "The hottest sensor.", [({}, machine.temperature_c)]),
    ]
    if spool is not None:
        blocks += [
            _gauge("edged_spool_items", "Hard samples waiting for the link.", [({}, spool.items)]),
            _gauge("edged_spool_bytes", "Their size on disk.", [({}, spool.bytes)]),
            _gauge("edged_spool_quota_bytes", "The most they may take.", [({}, spool.quota)]),
            _counter("edged_spool_evicted_total", "Samples given up for lack of room.", [({}, spool.evicted)]),
            _counter("edged_spool_delivered_total", "Samples that cloudd answered.", [({}, spool.delivered)]),
        ]
    return "".join(blocks)


def _service_blocks(state: StatusState) -> list[str]:
    reports = [service.report for service in state.services]
    decided: list[Sample] = []
    dropped: list[Sample] = []
    labels: list[Sample] = []
    for report in reports:
        for place, number in (("edge", report.edge), ("cloud", report.cloud), ("edge-degraded", report.degraded)):
            decided.append(({"service": report.name, "decided": place}, number))
        for why, number in (("unreadable", report.refused), ("overload", report.shed), ("error", report.errors)):
            dropped.append(({"service": report.name, "why": why}, number))
        labels += [({"service": report.name, "label": label}, number) for label, number in report.labels.items()]
    return [
        _gauge(
            "edged_service_ready",
            "1 while the service answers.",
            [({"service": report.name, "model": report.model}, float(report.state == "ready")) for report in reports],
        ),
        _counter("edged_decisions_total", "Decisions by the place they were made at.", decided),
        _counter("edged_undecided_total", "Requests that got no decision, by the reason.", dropped),
        _counter("edged_labels_total", "Decisions by label.", labels),
        _gauge(
            "edged_offload_share",
            "Share of the last 1,000 samples that the gate sent.",
            [({"service": report.name}, report.offload_share) for report in reports],
        ),
        _gauge(
            "edged_cloud_agreement",
            "Share of cloud answers that equal the edge's.",
            [({"service": report.name}, report.agreement) for report in reports],
        ),
        _gauge(
            "edged_queue_length",
            "Requests that wait now.",
            [({"service": report.name}, report.waiting) for report in reports],
        ),
        _gauge(
            "edged_last_decision_time_seconds",
            "When the newest decision was made.",
            [({"service": report.name}, report.last_at) for report in reports],
        ),
        _latency(reports),
    ]


def _hardware_blocks(state: StatusState) -> list[str]:
    hardware = state.hardware
    settings = [
        ({"service": service, "model": model.model, **model.setting}, 1.0)
        for model in hardware.models
        for service in model.services
        if model.setting
    ]
    return [
        _gauge(
            "edged_zone_temperature_celsius",
            "Temperature by sensor.",
            [({"zone": one.zone}, one.celsius) for one in hardware.temperatures],
        ),
        _gauge("edged_throttled", "1 while something slows the machine down.", [({}, float(bool(hardware.throttled)))]),
        _gauge("edged_heat_level", "Steps down from the chosen settings because of heat.", [({}, hardware.level)]),
        _gauge("edged_accelerators_lost", "Accelerators that stopped working.", [({}, len(hardware.lost))]),
        _gauge("edged_setting_info", "Constant 1; how a service's model runs, in the labels.", settings),
    ]


def _latency(reports: Iterable[ServiceReport]) -> str:
    """The one histogram. Its buckets are cumulative here, and plain in the report."""
    name = "edged_latency_seconds"
    lines: list[str] = []
    for report in reports:
        if not report.latency_counts:
            continue
        total = 0
        bounds = [_number(bound / 1000) for bound in LATENCY_BOUNDS_MS] + ["+Inf"]
        for bound, number in zip(bounds, report.latency_counts, strict=False):
            total += number
            lines.append(f"{name}_bucket{_labels({'service': report.name, 'le': bound})} {total}\n")
        labels = _labels({"service": report.name})
        lines.append(f"{name}_sum{labels} {_number(report.latency_sum_ms / 1000)}\n")
        lines.append(f"{name}_count{labels} {total}\n")
    text = "Time from request to decision."
    return f"# HELP {name} {text}\n# TYPE {name} histogram\n{''.join(lines)}" if lines else ""


def _info(state: StatusState) -> dict[str, str]:
    return {"version": state.version, "device": state.device_id, "name": state.name}


def _gauge(name: str, text: str, samples: Iterable[Sample]) -> str:
    return _block(name, "gauge", text, samples)


def _counter(name: str, text: str, samples: Iterable[Sample]) -> str:
    return _block(name, "counter", text, samples)


def _block(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"{name}{_labels(labels)} {_number(value)}\n" for labels, value in samples if value is not None]
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{''.join(lines)}" if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
