"""A service's learning from trigger to kept model, and what a rollback leaves behind."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from edgekit.learning.ladder import Means
from edgekit.learning.learner import Settings, State, Step, consider, finished, judge, made, order, probation, shadow
from edgekit.learning.records import Fact, Record
from edgekit.learning.tally import Tally
from edgekit.learning.trial import Expected, Verdict, Watch
from edgekit.learning.triggers import Evidence

DAY = 86_400.0
MEANS = Means(pictures=100, fewest=20)
GOOD = Verdict(accepted=True, reason="", dataset="d", facts=[Fact(name="accuracy", value=0.0, text="it is as good")])
BAD = Verdict(accepted=False, reason="refused: it is worse", dataset="d", facts=[])
TALLY = Tally(items=500, agreeing=490, audits=120)


class Device:
    """Stores the state after every step, as a device would, with a virtual clock."""

    def __init__(self) -> None:
        self.settings, self.state, self.now = Settings(), State(), 1e6
        self.records: list[Record] = []

    def took(self, step: Step) -> Step:
        self.state = msgspec.json.decode(msgspec.json.encode(step.state), type=State)
        self.records += step.records
        return step

    def consider(self, **other: Any) -> Step:
        known = {"now": self.now, "known": ["good"], "labels": {"good": 100, "hole": 20}, **other}
        return self.took(consider(self.settings, self.state, Evidence(**known), MEANS))

    def made(self) -> None:
        self.state = made(self.state, "new", "old", self.now, 2.0)

    def judge(self, verdict: Verdict) -> Step:
        return self.took(judge(self.settings, self.state, verdict, Expected(offload=0.3), self.now))

    def shadow(self) -> Step:
        return self.took(shadow(self.settings, self.state, TALLY, self.now))

    def probation(self, report: Watch) -> Step:
        return self.took(probation(self.settings, self.state, report, self.now))

    @property
    def story(self) -> list[str]:
        return [one.event for one in self.records]


def test_a_new_class_goes_all_the_way() -> None:
    device = Device()
    job = device.consider().job
    assert job is not None and job.rung == "head"
    assert device.consider().job is None  # one at a time
    device.made()
    device.judge(GOOD)
    device.shadow()
    assert device.consider(alarms=1).job is None  # nor beside a trial
    device.now += DAY
    device.probation(Watch(items=2000))
    assert device.story == ["started", "accepted", "promoted", "kept", "kept"]
    assert device.state.trial is None and device.state.ladder.running is None
    assert device.records[-1].sentence.startswith("A new LDA head (job 1) helped after 2 s")
    device.now += DAY
    assert device.consider().job is None
    known = device.consider(known=["good", "hole"])
    assert known.job is None and known.sentence == "Nothing asks for learning."


def test_the_end_of_a_job_says_what_its_candidate_did_not_pass() -> None:
    device = Device()
    device.consider()
    device.made()
    few = Fact(name="items", value=75, limit=500, passed=False, text="it was compared on 75 pictures, 500 are needed")
    device.judge(Verdict(accepted=False, reason=f"refused: {few.text}", dataset="d", facts=[few]))
    assert device.records[-1].event == "refused" and device.records[-1].sentence.endswith(f"{few.text}.")


def test_labels_that_came_in_during_a_job_count_for_the_next_one() -> None:
    device = Device()
    device.consider(labels={"good": 300})
    device.made()
    device.judge(GOOD)
    device.shadow()
    device.now += DAY
    device.consider(labels={"good": 600})
    device.probation(Watch(items=2000))
    device.now += DAY
    step = device.consider(labels={"good": 600})
    assert step.job is not None and "300 labels are new" in step.job.sentence


def test_a_refused_head_gives_way_to_the_next_rung_or_to_more_labels() -> None:
    device = Device()
    device.consider()
    device.made()
    step = device.judge(BAD)
    assert [one.event for one in step.records] == ["refused", "refused"] and device.state.trial is None
    step = device.consider()
    assert step.job is not None and step.job.rung == "cloud"  # fine-tuning has too few labels
    device.took(finished(device.settings, device.state, "refused", device.now, 1.0))
    step = device.consider()
    assert step.job is None and device.story[-1] == "exhausted"
    assert device.consider(labels={"hole": 29}).job is None
    device.now += DAY
    step = device.consider(labels={"hole": 30})
    assert step.job is not None and step.job.rung == "head"


def test_a_drift_that_recalibrating_heals_costs_no_model() -> None:
    device = Device()
    step = device.consider(labels={}, alarms=1)
    assert step.job is not None and step.job.rung == "recalibrate"
    device.took(finished(device.settings, device.state, "kept", device.now, 60.0))
    assert device.consider(labels={}, alarms=1).job is None
    assert device.story == ["started", "kept"]


def test_a_rollback_is_remembered_and_the_next_rung_is_tried() -> None:
    device = Device()
    device.consider(labels={}, looks=2)
    device.made()
    device.judge(GOOD)
    device.shadow()
    step = device.probation(Watch(failures=3))
    assert [one.event for one in step.records] == ["rolled-back", "rolled-back"]
    assert device.state.ladder.tried == {"unattainable": ["batchnorm"]}
    step = device.consider(labels={}, looks=2)
    assert step.job is not None and step.job.rung == "head"


def test_an_operator_ends_a_trial() -> None:
    device = Device()
    device.consider()
    device.made()
    device.judge(GOOD)
    step = device.took(order(device.settings, device.state, False, "Ada", device.now))
    assert step.sentence == "Ada refused the candidate." and device.state.trial is None


def test_steps_out_of_turn_are_errors() -> None:
    device = Device()
    with pytest.raises(ValueError, match="running job"):
        made(device.state, "new", "old", 0.0, 1.0)
    with pytest.raises(ValueError, match="no candidate"):
        shadow(device.settings, device.state, TALLY, 0.0)
    with pytest.raises(ValueError, match="no job"):
        finished(device.settings, device.state, "kept", 0.0, 1.0)
    device.consider()
    device.made()
    with pytest.raises(ValueError, match="one is on trial"):
        made(device.state, "other", "old", 0.0, 1.0)


def test_the_supervisor_needs_no_numpy_for_it() -> None:
    code = "import sys, edgekit.learning.learner; print(sorted({'numpy', 'cv2', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
