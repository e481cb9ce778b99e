"""The card of the status page that shows what this device learns together with others, or why it does not."""

from __future__ import annotations

from edged.federation.consent import OVER
from edged.federation.notes import JobView
from edged.status.state import StatusState
from edgekit.html import badge, bar, button, count, table, text

_KINDS = {
    "round": "edge",
    "training": "edge",
    "done": "ok",
    "refused": "warning",
    "failed": "error",
    "stopped": "warning",
}


def federation_card(state: StatusState, logged_in: bool = False) -> str:
    """One row for each job; nothing if there is none. Who is logged in may agree to a job, or refuse it for ever."""
    if not state.federation:
        return ""
    head = [("job", False), ("service", False), ("state", False), ("sums", False), ("what it does", False), ("", False)]
    listing = table(head, [[*_row(one), _buttons(one) if logged_in else ""] for one in state.federation], "")
    return f'<section class="card" id="federation"><h2>Learning with others</h2>{listing}</section>'


def _buttons(one: JobView) -> str:
    """What an operator may say now."""
    here = f"/api/federation/{one.note.job}"
    agree = button(f"{here}/agree", "Take part") if one.waits else ""
    refuse = button(f"{here}/refuse", "Refuse for ever") if one.listed and one.note.stage not in OVER else ""
    return f"{agree} {refuse}".strip()


def _row(one: JobView) -> list[str]:
    note = one.note
    share = note.version / note.rounds if note.rounds else 0.0
    sums = f"{count(note.version)} of {count(note.rounds)}"
    own = f"{count(note.contributed)} with this device's update" if note.contributed else "none with its update yet"
    guard = badge("masked", "ok") if note.secure else badge("not masked", "warning")
    private = " " + badge("private", "ok") if note.private else ""
    leads = " " + badge("leads its site", "edge") if note.leads else ""
    what = note.text if one.running or not one.why else one.why
    return [
        f"<code>{text(note.job[:12])}</code><br>{guard}{private}{leads}",
        f"<strong>{text(note.service)}</strong><br><span class='soft'>{text(note.model)}</span>",
        badge("works" if one.running else note.stage, "edge" if one.running else _KINDS.get(note.stage, "")),
        bar([(min(1.0, share), "ok")], sums) + f"<span class='soft'>{text(sums)}, {text(own)}</span>",
        text(what),
    ]
