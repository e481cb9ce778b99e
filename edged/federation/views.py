"""What people are shown of federated jobs, from what lies on the disk. Everything here blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from edged.api import ApiError
from edged.federation import consent
from edged.federation.bodies import AuditReply
from edged.federation.book import Book
from edged.federation.notes import JobNote, JobView
from edgekit.identity import Identity, IdentityError
from edgekit.messages.federation import JobNotice
from edgekit.secagg.errors import Refusal


def heard(notice: JobNotice) -> JobNote:
    """A job that this device has only heard of."""
    return JobNote(
        job=notice.id,
        service=notice.service,
        model=notice.model,
        secure=notice.secure,
        private=False,
        rounds=notice.rounds,
        head=notice.head,
        leads=notice.leads,
    )


def listing(
    notes: Mapping[str, JobNote],
    listed: Mapping[str, JobNotice],
    why: Mapping[str, str],
    works: str,
    ask: bool,
    agreed: Collection[str],
) -> list[JobView]:
    """All jobs, those that go on first.

    `works`: the job that a process takes part in now; `ask` and `agreed`: whether somebody has to agree, and to what
    somebody has.
    """
    views = [
        JobView(
            note=note,
            running=note.job == works,
            listed=note.job in listed,
            why=why.get(note.job, ""),
            waits=note.job in listed and consent.waits(note, ask, agreed),
        )
        for note in (*notes.values(), *(heard(one) for one in listed.values() if one.id not in notes))
    ]
    return sorted(views, key=lambda view: (not view.running, not view.listed, view.note.job))


def lost(book: Book) -> str:
    """Why the ledger cannot be relied on; "" if it can."""
    try:
        book.check()
    except Refusal as refusal:
        return str(refusal)
    return ""


def node_hex(identity: Identity) -> str:
    """How the device is called in records."""
    from edgekit.secagg.roster import node_of

    return node_of(identity.certificate.public_key()).hex()  # type: ignore[arg-type]


def audit(path: Path, identity: Identity, limit: int) -> AuditReply:
    """The newest records, and whether all of them hold. Raises ApiError."""
    from edged.federation import chain
    from edgekit.identity import load_key
    from edgekit.secagg import signatures

    try:
        records = list(chain.read(path))
        wrong = chain.first_wrong(path, signatures.point(load_key(identity.key_path).public_key()))
    except (chain.ChainError, OSError, IdentityError) as error:
        raise ApiError(503, f"the audit record cannot be read: {error}") from None
    raw = [msgspec.Raw(msgspec.json.encode(one)) for one in records[-limit:][::-1]]
    return AuditReply(records=raw, count=len(records), wrong=wrong)
