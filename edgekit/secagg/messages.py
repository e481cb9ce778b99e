"""The wire messages of `secagg/2`: MessagePack arrays, each tagged with the protocol's version and its kind.

Vectors travel outside of them, as little-endian words. "Position" is a device's place in the roll, from 0. Sets of
devices are bitmaps (`bitmap`) over the roll or over a device's neighbours.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgekit.secagg.errors import Refusal

MAX_COHORT = 1024
"""Devices of one cohort; more form cohorts of cohorts, with a site's leader as one client of the upper one."""
MAX_WORDS = 1 << 28
"""Parameters of one update."""
MAX_MESSAGE = 1 << 20
"""Bytes of any message: a roll of 1,024 devices has 280 KB."""

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Node = Digest
"""A device: SHA-256 of its public key's SubjectPublicKeyInfo, of which its device id is the printed form."""
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Set = Annotated[bytes, Meta(max_length=MAX_COHORT // 8)]
Prg = Literal["aes-256-ctr", "chacha20"]


class Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every message."""


class RoundConfig(Wire, frozen=True, kw_only=True, tag="secagg/2.config"):
    """What cloudd proposes. Every device signs its digest in step 0 and refuses what its own policy does not allow."""

    session: Annotated[bytes, Meta(min_length=16, max_length=16)]
    round: Annotated[int, Meta(ge=0, lt=2**31)]
    invited: Annotated[int, Meta(ge=3, le=MAX_COHORT)]
    """Devices at most: the fixed-point code leaves room for so many."""
    colluders: Annotated[int, Meta(ge=0, le=MAX_COHORT)]
    """Devices that may work together with cloudd (c in docs/secagg.md)."""
    parameters: Annotated[int, Meta(ge=1, le=MAX_WORDS)]
    clip: Annotated[float, Meta(ge=1e-9, le=1e9)]
    """Largest Euclidean norm of an update; longer ones are scaled down."""
    limit: Annotated[float, Meta(ge=1e-9, le=1e9)]
    """Largest magnitude of one value; what exceeds it is cut."""
    max_weight: Annotated[int, Meta(ge=1, le=1 << 20)]
    bits: Literal[32, 16]
    """Of a word: 16 is `lite`, half the bytes and half the masking."""
    prg: Prg
    model: Digest
    """SHA-256 of the global model that the updates belong to."""
    rosters: Digest
    """`Membership.digest` of the rosters in use."""


class FirstRoundConfig(RoundConfig, frozen=True, kw_only=True, tag="secagg/1.config"):
    """The same of `secagg/1`, as it is kept with every sum of a job that began before: those are still to be read."""


class Keys(Wire, frozen=True, kw_only=True, tag="secagg/2.keys"):
    """Step 0, device to cloudd to every device: fresh keys of this round."""

    node: Node
    config: Digest
    channel: Digest
    """X25519, for sealing shares."""
    mask: Digest
    """X25519, for pairwise masks; the seed of its secret is shared."""
    commitment: Digest
    """`agreement.commit` of the seed of the device's own mask."""
    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]
    signature: Signature


class Roll(Wire, frozen=True, kw_only=True, tag="secagg/2.roll"):
    """Step 1, cloudd to devices: the cohort, sorted by node, and the graph. Its digest binds all later steps."""

    config: Digest
    degree: Annotated[int, Meta(ge=2, lt=MAX_COHORT)]
    threshold: Annotated[int, Meta(ge=2, le=MAX_COHORT)]
    keys: Annotated[tuple[Keys, ...], Meta(min_length=3, max_length=MAX_COHORT)]


class Shares(Wire, frozen=True, kw_only=True, tag="secagg/2.shares"):
    """Step 1, device to cloudd: for each neighbour in `Cohort.sealed`, two sealed shares (`SEALED` bytes).

    Sealed under the roll, which therefore need not be named; the other neighbours derive theirs.
    """

    node: Node
    sealed: Annotated[bytes, Meta(max_length=MAX_COHORT * 48)]


class Inbox(Wire, frozen=True, kw_only=True, tag="secagg/2.inbox"):
    """Step 1, cloudd to one device: which neighbours sent shares, and those that were sealed for it, in their order."""

    roll: Digest
    senders: Set
    """Over its neighbours: also those whose shares the device derives."""
    sealed: Annotated[bytes, Meta(max_length=MAX_COHORT * 48)]


class Held(Wire, frozen=True, kw_only=True, tag="secagg/2.held"):
    """Step 1, device to cloudd: the neighbours whose shares it has, because it could open them or derives them."""

    node: Node
    holds: Set
    """Over its neighbours."""


class Ready(Wire, frozen=True, kw_only=True, tag="secagg/2.ready"):
    """Step 2, cloudd to devices: who may still be in the sum; each holds shares of all its neighbours among them."""

    roll: Digest
    ready: Set
    """Over the roll."""


class Masked(Wire, frozen=True, kw_only=True, tag="secagg/2.masked"):
    """Step 2, device to cloudd, with its masked vector: the neighbours it masks with (its list A)."""

    node: Node
    roll: Digest
    masks_with: Set
    """Over its neighbours."""
    signature: Signature


class Survivors(Wire, frozen=True, kw_only=True, tag="secagg/2.survivors"):
    """Step 3, cloudd to devices: whose vectors are in the sum. A set over the roll."""

    roll: Digest
    survivors: Set


class Vote(Wire, frozen=True, kw_only=True, tag="secagg/2.vote"):
    """Step 3, survivor to cloudd: the one survivor set that this device will ever reveal shares for, and its list A."""

    node: Node
    roll: Digest
    survivors: Set
    masks_with: Set
    signature: Signature


class Unmask(Wire, frozen=True, kw_only=True, tag="secagg/2.unmask"):
    """Step 4, cloudd to a survivor: the quorum certificate, and the lists of surviving neighbours who did not vote."""

    roll: Digest
    survivors: Set
    voters: Set
    """Over the roll."""
    lists: Annotated[bytes, Meta(max_length=MAX_COHORT * MAX_COHORT // 8)]
    """The voters' `masks_with`, one after the other."""
    signatures: Annotated[bytes, Meta(max_length=MAX_COHORT * 64)]
    absent: Annotated[tuple[Masked, ...], Meta(max_length=MAX_COHORT)]


class Reveal(Wire, frozen=True, kw_only=True, tag="secagg/2.reveal"):
    """Step 4, survivor to cloudd: one share of each device in its list A, in order, and one of its own.

    For a survivor it is the share of the seed of its own mask, for any other that of its mask key.
    """

    node: Node
    own: Annotated[bytes, Meta(min_length=16, max_length=16)]
    shares: Annotated[bytes, Meta(max_length=MAX_COHORT * 16)]


FromDevice = Keys | Shares | Held | Masked | Vote | Reveal
FromCloud = RoundConfig | FirstRoundConfig | Roll | Inbox | Ready | Survivors | Unmask
SEALED = 16 + 16 + 16
"""Bytes of one neighbour's sealed shares: two shares and the tag."""

_encoder = msgspec.msgpack.Encoder()
_from_device = msgspec.msgpack.Decoder(FromDevice)
_from_cloud = msgspec.msgpack.Decoder(FromCloud)


def encode(message: Wire) -> bytes:
    """The message as bytes; the same message always gives the same bytes."""
    return _encoder.encode(message)


def from_device(data: bytes) -> FromDevice:
    """Read what a device sent. Raises Refusal for anything else, or more than MAX_MESSAGE bytes."""
    message: FromDevice = _decode(data, _from_device)
    return message


def from_cloud(data: bytes) -> FromCloud:
    """Read what cloudd sent. Raises Refusal for anything else, or more than MAX_MESSAGE bytes."""
    message: FromCloud = _decode(data, _from_cloud)
    return message


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if len(data) > MAX_MESSAGE:
        raise Refusal("malformed", f"a message of {len(data)} bytes; {MAX_MESSAGE} are allowed")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("malformed", f"no message of secagg/2: {error}") from None


def digest(message: Wire) -> bytes:
    """SHA-256 of the encoded message."""
    return hashlib.sha256(encode(message)).digest()


_UNSIGNED = bytes(64)


def statement(message: Keys | Masked | Vote) -> bytes:
    """What the signature of a message speaks about: the message with 64 zero bytes in the signature's place."""
    return encode(msgspec.structs.replace(message, signature=_UNSIGNED))
