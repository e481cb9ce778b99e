"""/metrics under the rules that `promtool check metrics` has, with hostile names and without."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edged.federation.notes import JobNote, JobView
from edged.learning.bodies import LearningState
from edged.serve.statistics import ServiceStatistics
from edged.status import metrics
from edged.status.state import ServiceState, StatusState
from edgekit.messages import Decision, ModelStatistics, OutputReport, ServiceReport, Verdict

HOSTILE = 'a"b\\c\nd {e="f"} é €'
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (\S+)")
Series = tuple[str, tuple[tuple[str, str], ...]]


def read(text: str) -> dict[Series, float]:
    """The samples of an exposition in text format 0.0.4, after checking everything that format demands."""
    assert text.endswith("\n") and "\r" not in text
    samples: dict[Series, float] = {}
    kinds: dict[str, str] = {}
    helps: set[str] = set()
    closed: set[str] = set()
    family = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in helps, f"HELP of {name} twice"
            assert line.split(" ", 3)[3].strip(), "a HELP says something"
            helps.add(name)
            closed.add(family)
            family = name
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family and name not in kinds, f"TYPE of {name} twice, or not behind its HELP"
            assert kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
            continue
        found = _SAMPLE.fullmatch(line)
        assert found is not None, line
        name = found.group(1)
        base = re.sub(r"_(bucket|sum|count)$", "", name) if kinds.get(family) == "histogram" else name
        assert base == family and base not in closed, f"{name} stands outside of its family {family}"
        labels = tuple(sorted((key, value) for key, value in re.findall(_LABEL, found.group(2) or "")))
        assert len({key for key, _ in labels}) == len(labels), "a label twice"
        assert (name, labels) not in samples, f"the series {name}{labels} twice"
        samples[name, labels] = float(found.group(found.re.groups))
    assert helps == set(kinds)
    _check_names(kinds)
    _check_histograms(samples, kinds)
    return samples


def _check_names(kinds: dict[str, str]) -> None:
    for name, kind in kinds.items():
        if name.startswith("nv_"):  # names of another server, kept as they are
            continue
        assert name.endswith("_total") is (kind == "counter"), name
        assert not re.search(r"_(ms|us|minutes|mb|kb)(_|$)", name), f"{name} is not in a base unit"


def _check_histograms(samples: dict[Series, float], kinds: dict[str, str]) -> None:
    for family in (name for name, kind in kinds.items() if kind == "histogram"):
        rows: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        for (name, labels), value in samples.items():
            if name == f"{family}_bucket":
                bound = next(value for key, value in labels if key == "le")
                rest = tuple(label for label in labels if label[0] != "le")
                rows.setdefault(rest, []).append((float(bound.replace("+Inf", "inf")), value))
        assert rows
        for rest, buckets in rows.items():
            bounds, counts = zip(*sorted(buckets), strict=True)
            assert bounds[-1] == math.inf and list(counts) == sorted(counts)
            assert samples[f"{family}_count", rest] == counts[-1]
            assert (f"{family}_sum", rest) in samples


def decided(label: str, verdict: str, total: float) -> Decision:
    said = Verdict(label=label, score=0.9, margin=0.8, model="m@1")
    return Decision(
        sample_id="s", service="x", label=label, score=0.9, decided="edge", model="m@1", edge=said,
        verdict=verdict, timings_ms={"queue": 0.05, "decode": total / 2, "infer": total / 4, "total": total},  # type: ignore[arg-type]
    )  # fmt: skip


def service(report: ServiceReport) -> ServiceState:
    return ServiceState(
        name=report.name, origin="local", model="m", priority="inline", deadline_ms=300, source="http",
        may_leave="raw", hard_samples="off", answer_model="", report=report,
    )  # fmt: skip


def state(services: list[ServiceReport], models: list[ModelStatistics]) -> StatusState:
    return StatusState(
        version="1", name=HOSTILE, device_id="D", state_dir="/", started_at=0, now=1,
        services=[service(report) for report in services], inference=models,
    )  # fmt: skip


def worked(name: str = HOSTILE) -> ServiceReport:
    statistics = ServiceStatistics([HOSTILE, "ok"])
    for number in range(40):
        label, verdict = ((HOSTILE, "fail"), ("ok", "pass"), ("ok", "review"))[number % 3]
        statistics.decided(decided(label, verdict, 0.3 * 1.3**number), 0.3 * 1.3**number, 10 + number / 10, 1e9)
    statistics.regions(12, decided("ok", "pass", 1.0))
    report = statistics.report(name, "m@1", "", 3, 14)
    output = OutputReport(name=HOSTILE, kind="mqtt", delivered=5, waiting=2, dropped=1, failing_since=9.0)
    return ServiceReport(
        **{field: getattr(report, field) for field in ServiceReport.__struct_fields__ if field not in OTHERS},
        outputs=[output, output], runs=9, inline_runs=4, not_run={"stale": 2, "full": 0},
    )  # fmt: skip


OTHERS = {"outputs", "runs", "inline_runs", "not_run"}
MODELS = [
    ModelStatistics(
        name="m", version=version, success=9, rejected=1, canceled=2, backend=3, other=4, inference_count=18,
        exec_count=9, request_us=900, queue_us=100, compute_input_us=200, compute_infer_us=500, compute_output_us=50,
        pending=1,
    )
    for version in ("1", "1.2.0-beta")
]  # fmt: skip


def test_the_whole_page_keeps_the_rules_of_the_format() -> None:
    samples = read(metrics.render(state([worked(), worked("b")], MODELS)))
    escaped = HOSTILE.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    mine = (("service", escaped),)
    assert samples["edged_verdicts_total", (*mine, ("verdict", "pass"))] == 13
    assert samples["edged_regions_total", (*mine, ("what", "candidates"))] == 12
    assert samples["edged_not_run_total", (*mine, ("why", "stale"))] == 2
    assert samples["edged_runs_total", (*mine, ("where", "loop"))] == 4
    assert samples["edged_runs_total", (*mine, ("where", "thread"))] == 5
    output = (("kind", "mqtt"), ("output", escaped), *mine)
    assert samples["edged_output_delivered_total", output] == 5
    assert samples["edged_output_up", output] == 0
    assert samples["edged_stage_seconds_bucket", (("le", "0.0001"), *mine, ("stage", "queue"))] == 40
    assert math.isclose(samples["edged_stage_seconds_sum", (*mine, ("stage", "queue"))], 0.002)
    assert samples["edged_latency_seconds_count", mine] == 40


def test_the_names_that_dashboards_of_triton_look_for() -> None:
    samples = read(metrics.render(state([], MODELS)))
    labels = (("model", "m"), ("version", "1.2.0-beta"))
    expected = {
        "request_success": 9, "count": 18, "exec_count": 9, "pending_request_count": 1, "request_duration_us": 900,
        "queue_duration_us": 100, "compute_input_duration_us": 200, "compute_infer_duration_us": 500,
        "compute_output_duration_us": 50,
    }  # fmt: skip
    assert {name: samples[f"nv_inference_{name}", labels] for name in expected} == expected
    reasons = {
        reason: samples["nv_inference_request_failure", (labels[0], ("reason", reason), labels[1])]
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }
    assert reasons == {"REJECTED": 1, "CANCELED": 2, "BACKEND": 3, "OTHER": 4}


NOT_HERE = ("nv_", "edged_output", "edged_stage", "edged_audited", "edged_learning", "edged_federated")


def test_a_device_without_services_has_no_empty_family() -> None:
    samples = read(metrics.render(state([], [])))
    assert not [name for name, _ in samples if name.startswith(NOT_HERE)]


def test_the_audits_of_the_gate_are_counted_and_how_many_differ() -> None:
    report = ServiceReport(name="solder", model="m@1", state="ready", audited=40, audited_differing=3)
    samples = read(metrics.render(state([report], [])))
    assert samples["edged_audited_total", (("service", "solder"),)] == 40
    assert samples["edged_audited_differing_total", (("service", "solder"),)] == 3


def test_learning_is_in_one_stage_and_its_jobs_are_counted_by_outcome_from_zero_on() -> None:
    one = LearningState(
        service=HOSTILE, start="automatic", stage="shadow", sentence="It looks on.", jobs={"refused": 2, "kept": 1}
    )
    other = LearningState(service="b", start="operator", stage="waiting", sentence="Nothing asks.")
    samples = read(metrics.render(msgspec.structs.replace(state([], []), learning=[one, other])))
    stages = {dict(labels)["stage"]: value for (name, labels), value in samples.items()
              if name == "edged_learning_stage" and dict(labels)["service"] == "b"}  # fmt: skip
    assert stages == {"waiting": 1, "working": 0, "shadow": 0, "probation": 0}
    ended = {dict(labels)["outcome"]: value for (name, labels), value in samples.items()
             if name == "edged_learning_jobs_total" and dict(labels)["service"] != "b"}  # fmt: skip
    assert ended == {"kept": 1, "refused": 2, "rolled-back": 0, "failed": 0, "superseded": 0}


def test_federated_jobs_of_one_service_are_counted_together() -> None:
    note = JobNote(job="a1", service="solder", model="m@1", secure=True, private=False, rounds=9, contributed=4)
    done = msgspec.structs.replace(note, job="a2", stage="done", contributed=9)
    samples = read(
        metrics.render(msgspec.structs.replace(state([], []), federation=[JobView(note=note), JobView(note=done)]))
    )
    assert samples["edged_federated_rounds_total", (("service", "solder"),)] == 13
    stages = {dict(labels)["stage"]: value for (name, labels), value in samples.items()
              if name == "edged_federated_jobs"}  # fmt: skip
    assert (stages["waiting"], stages["done"], stages["round"]) == (1, 1, 0)


def _texts() -> Iterator[str]:
    yield from ('"', "\\", "\n", "\\n", "{", "}", ",", "=", " ", "é")


@given(st.lists(st.sampled_from([*_texts(), "a"]), max_size=12).map("".join))
def test_any_label_value_can_be_read_back(value: str) -> None:
    report = ServiceReport(name=value, model="m@1", state="ready", labels={value: 3})
    samples = read(metrics.render(state([report], [])))
    ((_, labels),) = [series for series in samples if series[0] == "edged_labels_total"]
    found = dict(labels)["label"]
    assert re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), found) == value
