"""The device's own signed record of a round: what it was told, what left it, what it refused.

Each record holds the digest of the one before, so that none can be removed from the middle unnoticed.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.secagg import bitmap, messages, signatures
from edgekit.secagg.client_state import ClientState
from edgekit.secagg.cohort import Cohort
from edgekit.secagg.messages import RoundConfig
from edgekit.secagg.roster import Membership
from edgekit.secagg.signatures import Signer

Step = Literal["keys", "shares", "held", "masked", "vector", "vote", "reveal"]
Outcome = Literal["summed", "void", "left", "refused"]
"""summed: the published sum was applied; void: cloudd gave the round up; left: this device did; refused: it refused."""
_KIND = "audit"


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What left the device in one step: bytes, and their SHA-256 (of a masked vector the size alone)."""

    step: Step
    bytes: int
    sha256: Annotated[str, Meta(max_length=64)] = ""


class RefusalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was refused."""

    rule: str
    text: str


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One round as the device saw it. Digests are hex; counts are devices unless said otherwise."""

    version: Literal["secagg/1", "secagg/2"] = "secagg/1"
    """Of the protocol; a record without it is of the first."""
    at: float
    """Seconds since the epoch, when the record was made."""
    session: str
    round: int
    config: str
    model: str
    rosters: str
    outcome: Outcome
    roll: str = ""
    cohort: int = 0
    quorum: int = 0
    threshold: int = 0
    degree: int = 0
    survivors: int = 0
    plants: int = 0
    mask_shares_revealed: int = 0
    """Shares of survivors' own masks."""
    key_shares_revealed: int = 0
    """Shares of vanished devices' mask keys."""
    left: tuple[Left, ...] = ()
    refusals: tuple[RefusalRecord, ...] = ()
    alarm: bool = False
    """cloudd asked for something different from what this device had already done or signed."""
    previous: str = ""
    """SHA-256 of the record before, signature included; empty for the first."""
    signature: str = ""
    """Hex, over the record without it."""


def round_record(
    config: RoundConfig,
    cohort: Cohort | None,
    state: ClientState | None,
    membership: Membership,
    *,
    at: float,
    outcome: Outcome,
    left: tuple[Left, ...],
    refusals: tuple[RefusalRecord, ...],
    alarm: bool,
    previous: str,
) -> Record:
    """The unsigned record of a round, from what its device holds."""
    record = Record(
        version="secagg/2",
        at=at,
        session=config.session.hex(),
        round=config.round,
        config=messages.digest(config).hex(),
        model=config.model.hex(),
        rosters=config.rosters.hex(),
        outcome=outcome,
        left=left,
        refusals=refusals,
        alarm=alarm,
        previous=previous,
    )
    if cohort is None or state is None:
        return record
    survivors = set(bitmap.unpack(state.survivors, cohort.count)) if state.survivors else set()
    place = cohort.position[state.keys.node]
    given = cohort.from_neighbours(place, state.masked.masks_with) if state.reveal and state.masked else []
    return msgspec.structs.replace(
        record,
        roll=cohort.digest.hex(),
        cohort=cohort.count,
        quorum=cohort.quorum,
        threshold=cohort.threshold,
        degree=cohort.graph.degree,
        survivors=len(survivors),
        plants=len({membership.owner(cohort.node(v)) for v in survivors}),
        mask_shares_revealed=len(survivors.intersection(given)) + 1 if state.reveal else 0,
        key_shares_revealed=len(set(given) - survivors),
    )


def sign_record(record: Record, sign: Signer) -> Record:
    """The record with the device's signature."""
    return msgspec.structs.replace(record, signature=sign(_KIND, _statement(record)).hex())


def record_digest(record: Record) -> str:
    """What the next record's `previous` is."""
    return hashlib.sha256(msgspec.json.encode(record)).hexdigest()


def verify_records(records: list[Record], public: bytes) -> int | None:
    """The index of the first record whose signature or predecessor is wrong, or None if all are right.

    `public`: the device's compressed public key. The first record may have any predecessor.
    """
    key = signatures.from_point(public)
    for index, record in enumerate(records):
        try:
            signature = bytes.fromhex(record.signature)
        except ValueError:
            return index
        if signature.hex() != record.signature:  # capitals spell the same bytes: a record has one spelling
            return index
        if not signatures.holds(key, _KIND, _statement(record), signature):
            return index
        if index and record.previous != record_digest(records[index - 1]):
            return index
    return None


def _statement(record: Record) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(record, signature=""))
