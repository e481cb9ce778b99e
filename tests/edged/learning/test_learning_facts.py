"""What a look makes of reports and counts, and what candidates are called."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.learning import facts
from edged.learning.course import dataset_name
from edged.learning.facts import Outside
from edged.learning.place import Candidate, Place
from edged.learning.settings import candidate_name, learner_settings, next_number
from edged.samples.records import SampleStats
from edgekit.learning.ladder import Limits
from edgekit.learning.tally import Tally
from edgekit.learning.trial import Expected
from edgekit.messages import GateFacts, ServiceReport, ShadowReport
from edgekit.packages import check_name, check_version
from edgekit.services import Learning, parse_service

ROOT, NEW = "small@1", "small.solder@1-1"
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
VERSIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True)


def service(tables: str = "", top: str = "") -> Any:
    return parse_service(f'name = "solder"\nmodel = "small"\n{top}\n{tables}\n[learning]\n', "test")


ASKS = '[hard_samples]\nanswer_model = "large"\n'


def report(model: str = ROOT, **other: Any) -> ServiceReport:
    return ServiceReport(name="solder", model=model, state="ready", **other)


def stats(labels: dict[str, int], items: int = 100) -> SampleStats:
    return SampleStats(
        service="solder", items=items, bytes=0, sources={}, labelled={}, labels=labels, unusable=0, near=0,
        damaged=0, other_key=0,
    )  # fmt: skip


def outside(**other: Any) -> Outside:
    return Outside(**{"now": 1000.0, "run": "r", "labels": ("good", "hole"), "link_up": True, **other})


def means_of(what: Any, seen: Outside, place: Place | None = None) -> Any:
    place = place or Place(service="solder", root=ROOT)
    return facts.means(what, what.learning, seen, Limits(), place, facts.evidence(place, seen))


@given(NAMES, VERSIONS, NAMES, st.integers(1, 10**6))
def test_a_candidates_name_and_version_are_ones_that_a_package_may_have(
    base: str, version: str, name: str, number: int
) -> None:
    got, got_version = candidate_name(f"{base}@{version}", name, number)
    check_name(got)
    check_version(got_version)
    assert got != base and got_version.endswith(f"-{number}")


def test_long_names_of_two_services_stay_two_names() -> None:
    base = "m" * 60 + "@1"
    assert candidate_name(base, "left", 1) != candidate_name(base, "right", 1)


def test_a_number_that_an_installed_package_has_is_not_given_again() -> None:
    assert next_number(ROOT, "solder", 0, ["small.solder@1-1", "small.solder@1-2", "small@1"]) == 3


def test_the_dataset_version_of_a_job_has_a_name_of_its_own_that_is_short_enough() -> None:
    assert dataset_name("solder", 12) == "learning.solder-12"
    assert len(dataset_name("s" * 64, 123)) == 64


def test_a_report_of_another_model_is_no_evidence() -> None:
    gate = GateFacts(alarms=2, looks=1, alpha=0.02, audits=50, audit_bound=0.03, calibrated=0.2, seen=5000)
    place = Place(service="solder", root=ROOT)
    found = facts.evidence(place, outside(report=report(gate_facts=gate, offload_share=0.4)))
    assert (found.alarms, found.looks, found.audits, found.audit_bound) == (2, 1, 50, 0.03)
    assert (found.offload, found.calibrated) == (0.4, 0.2)
    other = facts.evidence(place, outside(report=report("small@2", gate_facts=gate)))
    assert (other.alarms, other.audits, other.calibrated) == (0, 0, None)


def test_what_the_calibration_sent_is_no_offload() -> None:
    gate = GateFacts(calibrated=0.2, seen=999)
    assert facts.steady_offload(report(gate_facts=gate, offload_share=1.0)) is None
    assert facts.steady_offload(report(gate_facts=GateFacts(seen=5000), offload_share=1.0)) is None
    assert facts.steady_offload(report(gate_facts=GateFacts(calibrated=0.2, seen=1000), offload_share=0.2)) == 0.2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 2.0])
def test_a_share_that_is_none_is_not_passed_on(bad: float) -> None:
    gate = GateFacts(alpha=bad, audit_bound=bad, calibrated=bad, seen=5000, alarms=-1)
    found = facts.evidence(Place(service="solder", root=ROOT), outside(report=report(gate_facts=gate)))
    assert (found.alpha, found.audit_bound, found.calibrated, found.alarms) == (None, None, None, 0)


def test_a_service_that_asks_nobody_has_no_threshold_to_calibrate() -> None:
    found = means_of(service(), outside(stats=stats({"good": 9})))
    assert "hard_samples.mode" in found.never["recalibrate"]
    assert "recalibrate" not in means_of(service(ASKS), outside(stats=stats({}), report=report())).never


def test_recalibrating_waits_for_the_link_and_the_service() -> None:
    assert "link" in means_of(service(ASKS), outside(link_up=False, report=report())).later["recalibrate"]
    assert "not ready" in means_of(service(ASKS), outside()).later["recalibrate"]


def test_without_labels_nothing_is_trained_because_nobody_could_judge_it() -> None:
    never = means_of(service(), outside(stats=stats({}))).never
    assert {"batchnorm", "head", "last-blocks", "full", "cloud"} <= never.keys()


def test_a_detector_learns_by_gradient_steps_and_others_not_at_all() -> None:
    text = 'name = "solder"\nmodel = "small"\ntask = "{}"\n[learning]\n'
    seen = outside(stats=stats({"hole": 100}))
    never = means_of(parse_service(text.format("detection"), "test"), seen).never
    assert "closed form" in never["head"] and not never.keys() & {"batchnorm", "last-blocks", "full"}
    never = means_of(parse_service(text.format("anomaly"), "test"), seen).never
    assert "cannot be trained on a device yet" in never["head"] and "full" in never


def test_a_class_with_too_few_labels_to_become_one_keeps_nobody_from_learning() -> None:
    seen = outside(stats=stats({"good": 70, "hole": 60, "bridge": 20, "slip of the finger": 1}))
    assert means_of(service(), seen).fewest == 20
    assert means_of(service(), outside(stats=stats({"good": 70, "hole": 3}))).fewest == 3


def test_a_table_of_rungs_leaves_the_others_out() -> None:
    only = parse_service('name = "solder"\nmodel = "small"\n[learning]\nrungs = ["head"]\n', "test")
    never = means_of(only, outside(stats=stats({"good": 9}))).never
    assert "head" not in never and never["full"] == "learning.rungs leaves it out"


def test_a_service_that_nobody_audits_has_a_shadow_without_audits() -> None:
    assert learner_settings(service(), Learning()).trial.shadow_audits == 0
    assert learner_settings(service(ASKS), Learning()).trial.shadow_audits == 100
    assert learner_settings(service(ASKS, 'may_leave = "nothing"'), Learning()).trial.shadow_audits == 0


def test_a_shadow_adds_up_over_runs_and_never_twice() -> None:
    candidate = Candidate(ref=NEW, before=ROOT, begun=0.0)
    for run, items, total in (("a", 5, 5), ("a", 7, 7), ("b", 0, 7), ("b", 2, 9), ("c", 1, 10)):
        shadow = ShadowReport(candidate=NEW, items=items, agreeing=items)
        candidate = facts.seen_by(candidate, outside(run=run, report=report(shadow=shadow)))
        assert candidate.tally == Tally(items=total, agreeing=total)
    other = report(shadow=ShadowReport(candidate="small.solder@1-9", items=50))
    assert facts.seen_by(candidate, outside(run="c", report=other)).tally.items == 10
    assert facts.seen_by(candidate, outside(run="c", report=None)).tally.items == 10


def test_probation_counts_what_the_candidate_decided_and_nothing_before() -> None:
    candidate = Candidate(ref=NEW, before=ROOT, begun=0.0)
    candidate, watch = facts.watched(candidate, outside(report=report(ROOT, inspected=100)))
    assert watch.items == 0 and candidate.counted is None
    candidate, watch = facts.watched(candidate, outside(report=report(NEW, inspected=120, errors=2, audited=5)))
    assert (watch.items, watch.failures, list(watch.audits)) == (0, 0, [])
    candidate, watch = facts.watched(
        candidate, outside(report=report(NEW, inspected=150, errors=3, audited=9, audited_differing=1), deaths=1)
    )
    assert (watch.items, watch.failures, list(watch.audits)) == (30, 2, [False, False, False, True])
    candidate, watch = facts.watched(candidate, outside(run="next", report=report(NEW, inspected=7)))
    assert watch.items == 7


def test_run_times_are_not_watched_while_the_best_setting_is_being_measured() -> None:
    candidate = Candidate(ref=NEW, before=ROOT, begun=0.0)
    candidate, _ = facts.watched(candidate, outside(report=report(NEW, infer_p95_ms=9.0)))
    _, watch = facts.watched(candidate, outside(report=report(NEW, infer_p95_ms=9.0), settling=True))
    assert watch.p95_ms is None
    _, watch = facts.watched(candidate, outside(report=report(NEW, infer_p95_ms=9.0)))
    assert watch.p95_ms == 9.0


def test_what_the_present_model_does_is_expected_where_nothing_else_is_known() -> None:
    seen = report(gate_facts=GateFacts(calibrated=0.3), infer_p95_ms=4.0)
    assert facts.expected(Expected(differing=0.02, p95_ms=50.0), seen) == Expected(
        differing=0.02, offload=0.3, p95_ms=4.0
    )
    assert facts.expected(Expected(p95_ms=50.0), None) == Expected(p95_ms=50.0)
    assert facts.expected(Expected(), report(gate_facts=GateFacts(calibrated=0.0))) == Expected()
