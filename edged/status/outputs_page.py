"""The card of the status page that shows how every output gets on."""

from __future__ import annotations

from edged.status.state import StatusState
from edgekit.html import age, badge, count, table, text
from edgekit.messages import OutputReport

_LONG_S = 30.0
"""An output that fails for so long is shown in red."""


def outputs_card(state: StatusState) -> str:
    """A row for each output of each service; nothing if there is none."""
    rows = [
        [
            text(service.name),
            f"{text(output.kind)}<br><code class=long>{text(output.name)}</code>",
            _state(output, state.now),
            count(output.delivered),
            count(output.waiting),
            count(output.dropped),
        ]
        for service in state.services
        for output in service.report.outputs
    ]
    if not rows:
        return ""
    head = [
        ("service", False), ("output", False), ("state", False),
        ("delivered", True), ("waiting", True), ("given up", True),
    ]  # fmt: skip
    return f'<section class="card" id="outputs"><h2>Outputs</h2>{table(head, rows, "")}</section>'


def _state(output: OutputReport, now: float) -> str:
    if output.failing_since is None:
        return badge("delivers", "ok")
    kind = "error" if now - output.failing_since > _LONG_S else "warning"
    problem = f"<br><span class='soft'>{text(output.problem)}</span>"
    return f"{badge('fails', kind)} since {age(now, output.failing_since)}{problem}"
