"""The state in Prometheus' text format 0.0.4, written by hand: the format is simpler than a library for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

from edged.federation.notes import JobView
from edged.federation.notes import Stage as JobStage
from edged.learning.bodies import JobOutcome, LearningStage, LearningState
from edged.status.state import StatusState
from edgekit.messages import LATENCY_BOUNDS_MS, STAGE_BOUNDS_MS, ModelStatistics, ServiceReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float | None]
Histogram = tuple[Mapping[str, str], Sequence[float], Sequence[int], float]
"""Labels, upper bounds in milliseconds, counts between them and beyond the last, sum in milliseconds."""


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
        *_learning_blocks(state.learning),
        *_federation_blocks(state.federation),
        *_inference_blocks(state.inference),
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
    verdicts: list[Sample] = []
    regions: list[Sample] = []
    not_run: list[Sample] = []
    for report in reports:
        for place, number in (("edge", report.edge), ("cloud", report.cloud), ("edge-degraded", report.degraded)):
            decided.append(({"service": report.name, "decided": place}, number))
        for why, number in (("unreadable", report.refused), ("overload", report.shed), ("error", report.errors)):
            dropped.append(({"service": report.name, "why": why}, number))
        labels += [({"service": report.name, "label": label}, number) for label, number in report.labels.items()]
        verdicts += [({"service": report.name, "verdict": word}, number) for word, number in report.verdicts.items()]
        regions += [({"service": report.name, "what": what}, number) for what, number in report.regions.items()]
        not_run += [({"service": report.name, "why": why}, number) for why, number in report.not_run.items()]
    return [
        _gauge(
            "edged_service_ready",
            "1 while the service answers.",
            [({"service": report.name, "model": report.model}, float(report.state == "ready")) for report in reports],
        ),
        _counter("edged_decisions_total", "Decisions by the place they were made at.", decided),
        _counter("edged_undecided_total", "Requests that got no decision, by the reason.", dropped),
        _counter("edged_labels_total", "Decisions by label.", labels),
        _counter("edged_verdicts_total", "Decisions by the verdict of the service's rules.", verdicts),
        _counter("edged_regions_total", "Regions: candidates, defects, and those that the cloud answered.", regions),
        _counter("edged_not_run_total", "Requests whose model was never run, by the reason.", not_run),
        _counter(
            "edged_runs_total",
            "Runs of the service's model, by where: a model thread, or the event loop.",
            [
                ({"service": report.name, "where": where}, number)
                for report in reports
                for where, number in (("thread", report.runs - report.inline_runs), ("loop", report.inline_runs))
                if report.runs
            ],
        ),
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
        _counter(
            "edged_audited_total",
            "Answers given here that the gate had the cloud check.",
            [({"service": report.name}, report.audited) for report in reports],
        ),
        _counter(
            "edged_audited_differing_total",
            "Of these, those that the cloud answers differently.",
            [({"service": report.name}, report.audited_differing) for report in reports],
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
        _histogram(
            "edged_latency_seconds",
            "Time from request to decision.",
            [
                ({"service": report.name}, LATENCY_BOUNDS_MS, report.latency_counts, report.latency_sum_ms)
                for report in reports
            ],
        ),
        _histogram(
            "edged_stage_seconds",
            "Time of a decision's stages: queue, decode, infer, cloud.",
            [
                (
                    {"service": report.name, "stage": stage},
                    STAGE_BOUNDS_MS,
                    counts,
                    report.stage_sums_ms.get(stage, 0.0),
                )
                for report in reports
                for stage, counts in report.stage_counts.items()
            ],
        ),
        *_output_blocks(reports),
    ]


def _output_blocks(reports: Iterable[ServiceReport]) -> list[str]:
    outputs = {
        (report.name, output.kind, output.name): output for report in reports for output in report.outputs
    }  # by what becomes the labels: a series must not appear twice
    labelled = [
        ({"service": service, "kind": kind, "output": name}, output)
        for (service, kind, name), output in outputs.items()
    ]
    return [
        _counter(
            "edged_output_delivered_total",
            "Decisions that an output has taken.",
            [(labels, output.delivered) for labels, output in labelled],
        ),
        _counter(
            "edged_output_dropped_total",
            "Decisions that an output has given up.",
            [(labels, output.dropped) for labels, output in labelled],
        ),
        _gauge(
            "edged_output_waiting",
            "Decisions that wait for an output now.",
            [(labels, output.waiting) for labels, output in labelled],
        ),
        _gauge(
            "edged_output_up",
            "1 while an output takes decisions.",
            [(labels, float(output.failing_since is None)) for labels, output in labelled],
        ),
    ]


def _learning_blocks(states: Sequence[LearningState]) -> list[str]:
    return [
        _gauge(
            "edged_learning_stage",
            "1 for the stage that the learning of a service is in, 0 for the others.",
            [
                ({"service": one.service, "stage": stage}, float(one.stage == stage))
                for one in states
                for stage in get_args(LearningStage)
            ],
        ),
        _counter(
            "edged_learning_jobs_total",
            "Jobs of learning that ended, by the outcome.",
            [
                ({"service": one.service, "outcome": outcome}, one.jobs.get(outcome, 0))
                for one in states
                for outcome in get_args(JobOutcome)
            ],
        ),
    ]


def _federation_blocks(jobs: Iterable[JobView]) -> list[str]:
    stages: dict[str, Counter[JobStage]] = {}
    rounds: Counter[str] = Counter()
    for job in jobs:
        stages.setdefault(job.note.service, Counter())[job.note.stage] += 1
        rounds[job.note.service] += job.note.contributed
    return [
        _gauge(
            "edged_federated_jobs",
            "Federated jobs that this device knows, by where it stands in them.",
            [
                ({"service": service, "stage": stage}, count[stage])
                for service, count in stages.items()
                for stage in get_args(JobStage)
            ],
        ),
        _counter(
            "edged_federated_rounds_total",
            "Rounds in whose published sum this device's update is.",
            [({"service": service}, number) for service, number in rounds.items()],
        ),
    ]


def _inference_blocks(models: Iterable[ModelStatistics]) -> list[str]:
    """What models did over the Open Inference Protocol, under the names that Triton's dashboards look for."""
    labelled = [({"model": model.name, "version": model.version}, model) for model in models]
    failures: list[Sample] = [
        ({**labels, "reason": reason}, number)
        for labels, model in labelled
        for reason, number in (
            ("REJECTED", model.rejected),
            ("CANCELED", model.canceled),
            ("BACKEND", model.backend),
            ("OTHER", model.other),
        )
    ]

    def counter(name: str, text: str, read: Callable[[ModelStatistics], int]) -> str:
        return _counter(name, text, [(labels, read(model)) for labels, model in labelled])

    return [
        counter("nv_inference_request_success", "Requests answered.", lambda model: model.success),
        _counter("nv_inference_request_failure", "Requests not answered, by the reason.", failures),
        counter("nv_inference_count", "Inferences, each element of a batch counted.", lambda m: m.inference_count),
        counter("nv_inference_exec_count", "Runs of the model.", lambda model: model.exec_count),
        _gauge(
            "nv_inference_pending_request_count",
            "Requests that wait for a model thread now.",
            [(labels, model.pending) for labels, model in labelled],
        ),
        counter(
            "nv_inference_request_duration_us", "Microseconds of answered requests.", lambda model: model.request_us
        ),
        counter("nv_inference_queue_duration_us", "Of these in the queue.", lambda model: model.queue_us),
        counter(
            "nv_inference_compute_input_duration_us",
            "Of these reading and preparing inputs.",
            lambda model: model.compute_input_us,
        ),
        counter(
            "nv_inference_compute_infer_duration_us", "Of these in the model.", lambda model: model.compute_infer_us
        ),
        counter(
            "nv_inference_compute_output_duration_us",
            "Of these writing outputs.",
            lambda model: model.compute_output_us,
        ),
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


def _histogram(name: str, text: str, rows: Iterable[Histogram]) -> str:
    """Buckets are cumulative and in seconds here, plain and in milliseconds in the report."""
    lines: list[str] = []
    for labels, bounds_ms, counts, sum_ms in rows:
        if not counts:
            continue
        total = 0
        bounds = [_number(bound / 1000) for bound in bounds_ms] + ["+Inf"]
        for bound, number in zip(bounds, counts, strict=False):
            total += number
            lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {total}\n")
        lines.append(f"{name}_sum{_labels(labels)} {_number(sum_ms / 1000)}\n")
        lines.append(f"{name}_count{_labels(labels)} {total}\n")
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
