"""Rosters: which devices may form cohorts, signed by a plant's offline key; cloudd carries them, it writes none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from edgekit.identity import device_id, spki_der
from edgekit.secagg import signatures
from edgekit.secagg.errors import Refusal

MAX_MEMBERS = 10_000
MAX_ROSTER = 4 << 20
"""Bytes of a roster file."""
_KIND = "roster"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may join: its id as people read it, and the public key that the id is the digest of."""

    device: Annotated[str, Meta(max_length=63)]
    key: Annotated[bytes, Meta(min_length=33, max_length=33)]
    """Compressed P-256 point."""


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """All devices of one plant that may join, as the plant says."""

    version: Literal["roster/1"] = "roster/1"
    plant: Annotated[str, Meta(min_length=1, max_length=100)]
    """For people. Who a plant is follows from the key alone."""
    serial: Annotated[int, Meta(ge=0, lt=2**53)]
    """Rises with every change; a device never goes back."""
    not_after: Annotated[float, Meta(ge=0, le=1e11)]
    """Seconds since the epoch."""
    members: Annotated[tuple[Member, ...], Meta(max_length=MAX_MEMBERS)]


class SignedRoster(msgspec.Struct, frozen=True, kw_only=True):
    """A roster file: JSON. `body` is the roster's own JSON, so that what was signed is never written anew."""

    body: Annotated[bytes, Meta(max_length=MAX_ROSTER)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


@dataclass(frozen=True)
class Floor:
    """The newest roster of a plant that a device has accepted: kept by the caller, durably."""

    serial: int
    digest: bytes  # SHA-256 of the body


def member(key: ec.EllipticCurvePublicKey) -> Member:
    """The entry of a device with this public key."""
    return Member(device=device_id(key), key=signatures.point(key))


def sign_roster(roster: Roster, plant_key: ec.EllipticCurvePrivateKey) -> bytes:
    """The roster as a signed file."""
    body = msgspec.json.encode(roster)
    return msgspec.json.encode(SignedRoster(body=body, signature=signatures.signer(plant_key)(_KIND, body)))


class Membership:
    """The devices that a device accepts in a cohort: what the rosters of all plants that it trusts say together."""

    def __init__(
        self, entries: Mapping[bytes, tuple[ec.EllipticCurvePublicKey, str]], digest: bytes, floors: Mapping[str, Floor]
    ) -> None:
        self._entries = dict(entries)
        self.digest = digest
        """Of all rosters; the same for everybody who holds the same ones. 32 bytes."""
        self.floors = dict(floors)
        """Owner -> floor to be kept."""

    def __contains__(self, node: bytes) -> bool:
        return node in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def owner(self, node: bytes) -> str:
        """The plant that a member belongs to, by the local name of the plant's key. Raises KeyError for a stranger."""
        return self._entries[node][1]

    def check(self, node: bytes, kind: str, statement: bytes, signature: bytes) -> None:
        """Raises Refusal unless `node` is a member and the signature over the statement is its own."""
        if node not in self._entries:
            raise Refusal("identity", f"the device {node[:4].hex()} is in no roster that this device trusts")
        if not signatures.holds(self._entries[node][0], kind, statement, signature):
            raise Refusal("identity", f"the signature of {node[:4].hex()} ({kind}) does not hold")


def open_rosters(
    files: Sequence[bytes],
    trusted: Mapping[str, ec.EllipticCurvePublicKey],
    *,
    now: float,
    floors: Mapping[str, Floor],
) -> Membership:
    """Check roster files, each signed by one of the `trusted` plant keys (owner -> key, from local configuration).

    `now`: seconds since the epoch. Raises Refusal for a file that is no roster, that no trusted key signed, that has
    expired, that is older than the floor of its plant or differs from it under the same serial, for two rosters of one
    plant, and for a device that is listed twice or not under the digest of its key.
    """
    entries: dict[bytes, tuple[ec.EllipticCurvePublicKey, str]] = {}
    kept = dict(floors)
    seen: dict[str, bytes] = {}
    for data in files:
        owner, body, roster = _open(data, trusted)
        floor = Floor(roster.serial, hashlib.sha256(body).digest())
        _check_age(owner, roster, floor, floors.get(owner), now)
        if owner in seen:
            raise Refusal("identity", f'there are two rosters of the plant "{owner}"; only the newest is wanted')
        seen[owner], kept[owner] = signatures.point(trusted[owner]) + floor.digest, floor
        for one in roster.members:
            key = _key(one)
            node = node_of(key)
            if node in entries:
                raise Refusal("identity", f"the device {one.device} is listed twice")
            entries[node] = (key, owner)
    digest = hashlib.sha256(b"edged/secagg/1/rosters\0" + b"".join(sorted(seen.values()))).digest()
    return Membership(entries, digest, kept)


def node_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """The device as the protocol names it: 32 bytes, of which the device id is the printed form."""
    return hashlib.sha256(spki_der(key)).digest()


def _open(data: bytes, trusted: Mapping[str, ec.EllipticCurvePublicKey]) -> tuple[str, bytes, Roster]:
    if len(data) > MAX_ROSTER:
        raise Refusal("malformed", f"a roster of {len(data)} bytes; {MAX_ROSTER} are allowed")
    try:
        signed = msgspec.json.decode(data, type=SignedRoster)
        owner = next(
            (o for o, key in trusted.items() if signatures.holds(key, _KIND, signed.body, signed.signature)), ""
        )
        if not owner:
            raise Refusal("identity", "no plant that this device trusts has signed the roster")
        return owner, signed.body, msgspec.json.decode(signed.body, type=Roster)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refusal("malformed", f"this is no roster: {error}") from None


def _check_age(owner: str, roster: Roster, found: Floor, floor: Floor | None, now: float) -> None:
    if roster.not_after < now:
        raise Refusal("identity", f'the roster of the plant "{owner}" has expired; the plant must sign a new one')
    if floor is None:
        return
    if found.serial < floor.serial:
        raise Refusal("once", f'the roster of the plant "{owner}" has serial {found.serial}; {floor.serial} was seen')
    if found.serial == floor.serial and found.digest != floor.digest:
        raise Refusal("once", f'there are two rosters of the plant "{owner}" with serial {found.serial}')


def _key(one: Member) -> ec.EllipticCurvePublicKey:
    try:
        key = signatures.from_point(one.key)
    except ValueError:
        raise Refusal("identity", f"the key of the device {one.device} is no point of P-256") from None
    if device_id(key) != one.device:
        raise Refusal("identity", f"the key of the device {one.device} is another device's")
    return key
