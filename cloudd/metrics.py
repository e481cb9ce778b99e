"""The dashboard's numbers in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

import psutil

from cloudd.dashboard.state import DashboardState
from cloudd.federation.views import JobView
from edgekit.messages.retraining import ENDED, Stage

CONTENT_TYPE = "text/plain; version=0.0.4"

Sample = tuple[dict[str, str], float]


def render(state: DashboardState, jobs: Sequence[JobView] = ()) -> str:
    """All metrics of one moment. Label values come from devices and are escaped."""
    process = psutil.Process()
    cpu = process.cpu_times()
    totals, pool = state.totals, state.answering
    services = [
        ({"device": device.short_id, "service": service.name}, service)
        for device in state.devices
        if not device.revoked
        for service in {one.name: one for one in device.services}.values()  # a name twice would spoil the whole page
    ]
    decided = [
        ({**labels, "decided": where}, count)
        for labels, one in services
        for where, count in (("edge", one.edge), ("cloud", one.cloud), ("edge-degraded", one.degraded))
    ]
    online = [({"device": one.short_id, "name": one.name}, float(one.online)) for one in state.devices]
    spooled = [({"device": one.short_id}, one.spool.items) for one in state.devices if one.spool is not None]
    stages = Counter(one.stage for one in state.retraining)
    staged = [({"stage": stage}, stages[stage]) for stage in get_args(Stage)]
    named = [({"job": one.name, "status": one.status}, one) for one in jobs]
    blocks = [
        _family("cloudd_info", "gauge", "Always 1; the version is a label.", [({"version": state.version}, 1)]),
        _family("cloudd_started_seconds", "gauge", "Start time, seconds since 1970.", [({}, state.started_at)]),
        _family("cloudd_problems", "gauge", "Entries on the health list.", [({}, len(state.problems))]),
        _family("cloudd_devices", "gauge", "Enrolled devices that are not revoked.", [({}, totals.devices)]),
        _family("cloudd_devices_online", "gauge", "Devices whose heartbeat is on time.", [({}, totals.online)]),
        _family("cloudd_answers_total", "counter", "Hard samples answered.", [({}, totals.answered)]),
        _family("cloudd_answers_agreed_total", "counter", "Answers that equal the edge's.", [({}, totals.agreed)]),
        _family("cloudd_answers_waiting", "gauge", "Samples that wait here for an answer.", [({}, pool.waiting)]),
        _family("cloudd_answers_running", "gauge", "Samples that workers answer now.", [({}, pool.running)]),
        _family("cloudd_answers_backlog_seconds", "gauge", "Time to answer all that wait.", [({}, pool.backlog_s)]),
        _family("cloudd_answers_refused_total", "counter", "Samples sent away as busy.", [({}, pool.refused)]),
        _family("cloudd_answer_workers", "gauge", "Workers that answer.", [({}, pool.workers)]),
        _family("cloudd_answer_workers_lost_total", "counter", "Workers replaced.", [({}, pool.restarts)]),
        _family("cloudd_device_online", "gauge", "1 while the device's heartbeat is on time.", online),
        _family("cloudd_device_decisions_total", "counter", "Decisions by where they were made.", decided),
        _family("cloudd_device_spooled", "gauge", "Samples that wait on the device for the link.", spooled),
        _family("cloudd_federation_job", "gauge", "1 for each federated job.", [(labels, 1) for labels, _ in named]),
        _family(
            "cloudd_federation_sums_total",
            "counter",
            "Sums published.",
            [(labels, one.version) for labels, one in named],
        ),
        _family(
            "cloudd_federation_devices_ready",
            "gauge",
            "Devices that stand ready for a round.",
            [(labels, one.standing) for labels, one in named],
        ),
        _family("cloudd_retraining_jobs", "gauge", "Jobs of retraining that are on record.", staged),
        _family(
            "cloudd_retraining_pictures",
            "gauge",
            "Pictures that jobs of retraining under way name.",
            [({}, sum(one.pictures for one in state.retraining if one.stage not in ENDED))],
        ),
        _family("process_cpu_seconds_total", "counter", "CPU time of cloudd.", [({}, cpu.user + cpu.system)]),
        _family("process_resident_memory_bytes", "gauge", "Memory of cloudd.", [({}, process.memory_info().rss)]),
    ]
    return "".join(blocks)


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(item)}"' for key, item in labels.items())
        lines.append(f"{name}{{{inside}}} {value:.17g}" if inside else f"{name} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    """A label value: backslash, quote and line break escaped as the format wants."""
    return value.encode("utf-8", "replace").decode().replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
