"""All triggers of a service together, the most urgent first."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from edgekit.learning.band import BandState
from edgekit.learning.records import Cause
from edgekit.learning.triggers import (
    Audits,
    Count,
    Drift,
    Evidence,
    Finding,
    LabelCount,
    NewClass,
    NewClassState,
    Offload,
    Operator,
    Schedule,
    ScheduleState,
    Unattainable,
)


class Triggers(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of each, in the order of their urgency; None switches one off."""

    operator: Operator = Operator()
    new_class: NewClass | None = NewClass()
    unattainable: Unattainable | None = Unattainable()
    audits: Audits | None = Audits()
    drift: Drift | None = Drift()
    offload: Offload | None = Offload()
    labels: LabelCount | None = LabelCount()
    schedule: Schedule | None = Schedule()


class TriggerStates(msgspec.Struct, frozen=True, kw_only=True):
    """The state of each."""

    operator: Count = Count()
    new_class: NewClassState = NewClassState()
    unattainable: Count = Count()
    audits: Count = Count()
    drift: Count = Count()
    offload: BandState = BandState()
    labels: Count = Count()
    schedule: ScheduleState = ScheduleState()


def look(triggers: Triggers, states: TriggerStates, evidence: Evidence) -> tuple[TriggerStates, list[Finding]]:
    """The states after this evidence and what fired, the most urgent first."""
    found: list[Finding] = []
    changed = {}
    for name in triggers.__struct_fields__:
        trigger = getattr(triggers, name)
        if trigger is None:
            continue
        changed[name], finding = trigger.look(getattr(states, name), evidence)
        if finding is not None:
            found.append(finding)
    return msgspec.structs.replace(states, **changed), found


def settle(triggers: Triggers, states: TriggerStates, evidence: Evidence, causes: Collection[Cause]) -> TriggerStates:
    """The states after these causes were dealt with on this evidence."""
    changed = {}
    for cause in causes:
        name = cause.replace("-", "_")
        trigger = getattr(triggers, name, None)  # what others taught has none
        if trigger is not None:
            changed[name] = trigger.settle(getattr(states, name), evidence)
    return msgspec.structs.replace(states, **changed)
