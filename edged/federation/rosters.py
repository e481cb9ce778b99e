"""The plant's offline tool: a key, a draft that people can read, and the signed roster made of both.

A draft is TOML with one member a table. A member is written as the device prints it (`edged roster device`): its id and
its public key, of which the id is the digest, so whoever compares the id with the device's page has checked the key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from edged.federation.settings import key_bytes, key_text
from edgekit import toml
from edgekit.atomic import write_file
from edgekit.identity import IdentityError, device_id, generate_key, parse_device_id
from edgekit.secagg import roster, signatures
from edgekit.secagg.errors import Refusal
from edgekit.secagg.roster import MAX_MEMBERS, MAX_ROSTER, Member, Roster

DAY = 86_400.0
MAX_DAYS = 3650.0


class RosterError(ValueError):
    """The plant's files cannot be used; the message says which and what to do."""


class DraftMember(msgspec.Struct, frozen=True, kw_only=True):
    """A device as it stands in a draft."""

    device: Annotated[str, Meta(max_length=63)]
    key: Annotated[str, Meta(max_length=66)]
    name: Annotated[str, Meta(max_length=100)] = ""  # for people; it is not signed


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a draft."""

    plant: Annotated[str, Meta(min_length=1, max_length=100)]
    serial: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    """Of the newest roster that was signed; it rises by one with each signature."""
    member: Annotated[list[DraftMember], Meta(max_length=MAX_MEMBERS)] = []


def new_key(path: Path, passphrase: bytes = b"") -> str:
    """Make a plant key (PEM, 0600), never over another file; its public key as text. Raises RosterError, OSError."""
    if path.exists():
        raise RosterError(f"{path} is there already; a plant key that is overwritten is lost for ever")
    key = generate_key()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    write_file(path, data, 0o600)
    return public_text(key)


def open_key(path: Path, ask: Callable[[], bytes]) -> ec.EllipticCurvePrivateKey:
    """Read a plant key; `ask` gives its passphrase if it has one. Raises RosterError, OSError."""
    data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, ask() if b"ENCRYPTED" in data else None)
    except (ValueError, TypeError):
        raise RosterError(f"{path} holds no private key that opens (with this passphrase)") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RosterError(f"{path} holds another kind of key; edged roster key makes the right one")
    return key


def public_text(key: ec.EllipticCurvePrivateKey) -> str:
    """The public key of a plant or device key as text."""
    return key_text(signatures.point(key.public_key()))


def member_of(device: str, key: str) -> Member:
    """A checked member. Raises RosterError if the id is not the key's."""
    try:
        public = signatures.from_point(key_bytes(key))
        wanted = parse_device_id(device)
    except (ValueError, IdentityError) as error:
        raise RosterError(f"the member {device[:63]} cannot be used: {error}") from None
    if device_id(public) != wanted:
        raise RosterError(f"the key {key} is not that of the device {wanted}; compare both with the device's own page")
    return roster.member(public)


def read_draft(path: Path) -> Draft:
    """Read a draft. Raises RosterError, OSError."""
    try:
        with path.open("rb") as file:
            return toml.convert(toml.read(file.read(MAX_ROSTER + 1), MAX_ROSTER), Draft)
    except toml.TomlError as error:
        raise RosterError(error.at(str(path))) from None


def write_draft(path: Path, draft: Draft) -> None:
    """Write it atomically. Raises OSError."""
    write_file(path, toml.dump(draft).encode(), 0o644)


def with_members(draft: Draft, members: Sequence[DraftMember]) -> Draft:
    """With these, each checked; a device that is there already is replaced. Raises RosterError."""
    found = {one.device: one for one in draft.member}
    for one in members:
        checked = member_of(one.device, one.key)
        found[checked.device] = DraftMember(device=checked.device, key=key_text(checked.key), name=one.name)
    if len(found) > MAX_MEMBERS:
        raise RosterError(f"a roster has at most {MAX_MEMBERS} devices")
    return msgspec.structs.replace(draft, member=[found[device] for device in sorted(found)])


def without(draft: Draft, device: str) -> Draft:
    """Without the device whose id begins so. Raises RosterError if that is none, or several."""
    gone = [one for one in draft.member if one.device.startswith(device.strip().upper())]
    if len(gone) != 1:
        raise RosterError(f"{len(gone)} devices of the draft begin with {device[:63]!r}; name one")
    return msgspec.structs.replace(draft, member=[one for one in draft.member if one is not gone[0]])


def sign(draft: Draft, key: ec.EllipticCurvePrivateKey, *, now: float, days: float) -> tuple[bytes, Draft]:
    """The signed roster, and the draft with its serial. Raises RosterError.

    Store the draft before the roster is given away: two rosters of one serial shut the plant's devices out.
    """
    if not 0 < days <= MAX_DAYS:
        raise RosterError(f"a roster is good for up to {MAX_DAYS:g} days, not {days:g}")
    members = tuple(member_of(one.device, one.key) for one in draft.member)
    if not members:
        raise RosterError("the draft has no member; add devices with edged roster add")
    after = msgspec.structs.replace(draft, serial=draft.serial + 1)
    body = Roster(plant=draft.plant, serial=after.serial, not_after=now + days * DAY, members=members)
    return roster.sign_roster(body, key), after


def read_signed(data: bytes, trusted: dict[str, ec.EllipticCurvePublicKey]) -> tuple[Roster, str]:
    """A signed roster, and the owner among `trusted` that signed it, "" for nobody. Raises RosterError."""
    try:
        if len(data) > MAX_ROSTER:
            raise RosterError(f"it has {len(data)} bytes; {MAX_ROSTER} are allowed")
        signed = msgspec.json.decode(data, type=roster.SignedRoster)
        body = msgspec.json.decode(signed.body, type=Roster)
        by = [
            owner
            for owner, public in trusted.items()
            if signatures.holds(public, "roster", signed.body, signed.signature)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Refusal) as error:
        raise RosterError(f"this is no signed roster: {error}") from None
    return body, by[0] if by else ""
