"""What people see of one model on this device, and why what runs is not always what was chosen. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from edged import ladder
from edged.hardware.settings import Setting
from edged.status.hardware import ModelHardware
from edged.status.hardware_views import SAFE, labels, model_state
from edged.subjects import Subject, safe_file


def subject_state(
    subject: Subject, setting: Setting | None, *, broken: Collection[str], level: int, background: bool
) -> ModelHardware:
    """One subject. `setting` is in use (None: the safe way), `broken` are keys of the choice's settings that fail now,
    `level` is the step below it because of heat, `background`: what is pending will be measured by itself."""
    found = subject.found
    shown = model_state(found.report, subject.need, subject.services, subject.choice, found.failures)
    phase = shown.phase
    if subject.step:
        phase = "measuring"
    elif subject.choice is None and subject.pending and background:
        phase = "waiting"
    return msgspec.structs.replace(
        shown,
        phase=phase,
        detail=subject.step or _difference(subject, setting, broken, level),
        running=setting.text() if setting is not None else SAFE,
        setting=labels(setting),
        accelerated=setting is not None and setting.accelerated,
    )


def choice_sentence(subject: Subject) -> str:
    """What was chosen for a subject that has been measured, and how much that is worth."""
    choice = subject.choice
    if choice is None:
        return f"{subject.ref}: no setting could be measured, so it stays {SAFE}."
    better = ladder.gain(choice, None, safe_file(subject))
    much = f", {better:.0%} better than the safe way" if better is not None and better > 0 else ""
    return f"{subject.ref} for {choice.objective}: {choice.setting.text()}{much}. {'; '.join(choice.reasons)}."


def _difference(subject: Subject, setting: Setting | None, broken: Collection[str], level: int) -> str:
    """Why what runs is not what was chosen; "" if it is, or if nothing was chosen."""
    choice = subject.choice
    if choice is None or setting == choice.setting:
        return ""
    if choice.setting.key in broken:
        return "the chosen setting does not work at the moment"
    if level:
        return "it runs more gently because of heat"
    if setting is not None and choice.setting.spinning and not setting.spinning:
        return "threads do not spin beside another model"
    if ladder.is_worth(choice, setting, safe_file(subject)):
        return "the chosen setting is put into use soon; for speed alone the worker changes at most once an hour"
    return "what runs is as good within 10 %, so it goes on until the next start"
