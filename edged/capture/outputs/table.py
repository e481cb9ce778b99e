"""Decisions as rows of a CSV table that a spreadsheet opens without harm."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

from edgekit.messages import Decision

COLUMNS = (
    "captured_at",
    "sample_id",
    "service",
    "serial",
    "label",
    "score",
    "verdict",
    "decided",
    "model",
    "edge_label",
    "edge_score",
    "cloud_label",
    "cloud_score",
    "certified",
    "spooled",
    "reason",
    "total_ms",
)
"""In this order for ever; a new column goes to the end."""
HEAD = (",".join(COLUMNS) + "\n").encode()

_SAMPLE_ID, _SERVICE = COLUMNS.index("sample_id"), COLUMNS.index("service")
_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection")."""


def row(decision: Decision) -> bytes:
    """One line, without its newline."""
    cloud = decision.cloud
    cells = (
        _time(decision.captured_at),
        decision.sample_id,
        decision.service,
        decision.serial,
        decision.label,
        f"{decision.score:.6f}",
        decision.verdict,
        decision.decided,
        decision.model,
        decision.edge.label,
        f"{decision.edge.score:.6f}",
        cloud.label if cloud else "",
        f"{cloud.score:.6f}" if cloud else "",
        "yes" if decision.certified else "no",
        "yes" if decision.spooled else "no",
        decision.reason,
        f"{decision.timings_ms.get('total', 0.0):.3f}",
    )
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([_harmless(cell) for cell in cells])
    return line.getvalue().encode("utf-8", "replace")


def sample_of(line: bytes, service: str) -> str:
    """The sample id of a row if it is one of this service, else ""."""
    try:
        cells = next(csv.reader([line.decode("utf-8", "replace")]), [])
    except csv.Error:  # others may write there as well
        return ""
    return cells[_SAMPLE_ID] if len(cells) >= len(COLUMNS) and cells[_SERVICE] == _harmless(service) else ""


def _harmless(text: str) -> str:
    """One line, and no formula: an apostrophe in front makes it text."""
    flat = "".join(character if character.isprintable() else " " for character in text)
    return f"'{flat}" if flat.lstrip().startswith(_FORMULA) else flat


def _time(at: float) -> str:
    """ISO 8601 in UTC with milliseconds; empty where there is none, or none that a calendar has."""
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if at > 0 else ""
    except (OverflowError, ValueError, OSError):
        return ""
