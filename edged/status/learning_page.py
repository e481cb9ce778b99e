"""The card of the status page that shows what models learn on this device, and why they may or may not decide."""

from __future__ import annotations

from edged.learning.bodies import LearningState
from edged.status.state import StatusState
from edgekit.html import age, badge, button, count, table, text
from edgekit.learning.records import Record

FACTS = 12
"""Numbers of a decision that are shown."""
_KINDS = {"waiting": "", "working": "edge", "shadow": "warning", "probation": "warning"}


def learning_card(state: StatusState, logged_in: bool) -> str:
    """One row for each service that learns; nothing if there is none."""
    if not state.learning:
        return ""
    head = [("service", False), ("stage", False), ("model", False), ("where it stands", False), ("", False)]
    rows = [_row(one, state.now, logged_in) for one in state.learning]
    return f'<section class="card" id="learning"><h2>Learning</h2>{table(head, rows, "")}</section>'


def _row(one: LearningState, now: float, logged_in: bool) -> list[str]:
    return [
        f"<strong>{text(one.service)}</strong>",
        badge(one.stage, _KINDS[one.stage]),
        _models(one),
        f"{text(one.sentence)}{_progress(one)}{_numbers(one)}{_last(one.last, now)}",
        _buttons(one) if logged_in else "",
    ]


def _models(one: LearningState) -> str:
    lines = [f"<code>{text(one.learned or one.base)}</code>"]
    if one.learned:
        lines.append(f"<span class='soft'>learned from {text(one.base)}</span>")
    if one.candidate:
        lines.append(f"<span class='soft'>candidate <code>{text(one.candidate)}</code></span>")
    return "<br>".join(lines)


def _progress(one: LearningState) -> str:
    if not one.step:
        return ""
    share = f", {100 * min(one.done, one.total) // one.total} %" if one.total else ""
    return f"<br><span class='soft'>{text(one.step)}{share}</span>"


def _numbers(one: LearningState) -> str:
    tally = one.shadow
    if one.stage != "shadow" or tally is None:
        return ""
    audits = (
        f", {count(tally.audits)} of {count(one.shadow_audits)} audits: {count(tally.lost)} lost and"
        f" {count(tally.gained)} gained"
        if one.shadow_audits
        else ""
    )
    return (
        f"<br><span class='soft'>{count(tally.items)} of {count(one.shadow_items)} pictures, agreeing on"
        f" {count(tally.agreeing)}{audits}; it would send {count(tally.would_send)} instead of"
        f" {count(tally.sent)}</span>"
    )


def _last(record: Record | None, now: float) -> str:
    """The newest decision with its numbers."""
    if record is None:
        return ""
    facts = "".join(
        f"<li>{badge('ok', 'ok') if fact.passed else badge('no', 'error')} {text(fact.text)}</li>"
        for fact in record.facts[:FACTS]
    )
    facts += "<li>and more: edged learning log</li>" if len(record.facts) > FACTS else ""
    listing = f"<ul class='soft'>{facts}</ul>" if facts else ""
    said = f"{text(record.event)} {age(now, record.at)}: {text(record.sentence)}"
    return f"<br><span class='soft'>{said}</span>{listing}"


def _buttons(one: LearningState) -> str:
    """What an operator may say now."""
    words = {
        "waiting": [("start", "Learn now")] if one.start != "off" else [],
        "working": [("stop", "Stop")],
        "shadow": [("go", "Let it decide"), ("stop", "Refuse")],
        "probation": [("go", "Keep"), ("stop", "Take back")],
    }[one.stage]
    if one.stage == "waiting" and one.learned:
        words = [*words, ("revert", "Take back what was learned")]
    return " ".join(button(f"/api/learning/{one.service}/{word}", label) for word, label in words)
