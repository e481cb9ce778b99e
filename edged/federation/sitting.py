"""One device's seat in one round: what it has said last, and how it goes on after a restart.

Before a message leaves, the ledger's entries of this step and the seat with the message become durable together. So a
device that was killed says the same again and goes on, and never says anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from edged.federation.book import Book
from edged.federation.chain import Chain
from edged.federation.cloud import Cloud
from edged.federation.files import JobFolder
from edgekit.faults import crash_point
from edgekit.federated.layout import Vector
from edgekit.messages.federation import Invitation, PublishedSum, RoundKind
from edgekit.secagg import audit, bitmap, fixedpoint, messages
from edgekit.secagg.audit import Left, Outcome, Record, RefusalRecord, Step
from edgekit.secagg.client import ClientRound
from edgekit.secagg.cohort import Cohort
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import (
    FromCloud,
    FromDevice,
    Held,
    Inbox,
    Keys,
    Masked,
    Ready,
    Reveal,
    Roll,
    RoundConfig,
    Shares,
    Survivors,
    Unmask,
    Vote,
)
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Membership
from edgekit.secagg.signatures import Signer

_SEAT = "seat"
_STEPS: dict[type[FromDevice], Step] = {
    Keys: "keys",
    Shares: "shares",
    Held: "held",
    Masked: "masked",
    Vote: "vote",
    Reveal: "reveal",
}
_REPLIES: dict[type[FromDevice], type[FromCloud]] = {
    Keys: Roll,
    Shares: Inbox,
    Held: Ready,
    Masked: Survivors,
    Vote: Unmask,
}

Vectors = Callable[[Cohort | None], Awaitable[tuple[Vector, int]]]
"""The contribution and its weight, once the training is done. The cohort is that of a secure round."""


@dataclass(frozen=True)
class Signing:
    """Who this device is in the protocol."""

    node: bytes  # 32: SHA-256 of its public key's SubjectPublicKeyInfo
    device_id: str
    sign: Signer


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a seat. Secret."""

    number: int
    kind: RoundKind
    secure: bool
    config: bytes
    state: bytes = b""  # of ClientRound
    message: bytes = b""  # the last one that left, or is about to
    left: tuple[Left, ...] = ()
    sha256: str = ""
    """Of the masked words in `vector.bin`."""
    survivors: int = 0
    """Devices in the sum, this one among them, as it has signed; 0: it came to no vote."""

    def check_sum(self, own: PublishedSum) -> None:
        """Raises Refusal if the sum of the round is said to be another one."""
        if own.config != self.config:
            raise Refusal("binding", "the sum is said to be of another configuration than the round's")
        if self.survivors and own.survivors != self.survivors:
            raise Refusal("binding", f"the sum is said to be of {own.survivors} devices; {self.survivors} were signed")


class Sitting:
    """A secure round from its first message to its last, or a plain one. `run` may be cancelled and begun again."""

    def __init__(
        self,
        seat: Seat,
        config: RoundConfig,
        *,
        job: str,
        cloud: Cloud,
        folder: JobFolder,
        book: Book,
        identity: Signing,
        membership: Membership,
        policy: Policy,
        weights: Callable[[], bytes],
    ) -> None:
        """`weights`: gives the digest of those that the contribution is for (`Shared.weights_digest`).

        Raises Refusal for a seat whose ledger says something else.
        """
        self.seat, self.config = seat, config
        self._job, self._cloud, self._folder, self._book = job, cloud, folder, book
        self._membership, self._identity = membership, identity
        self._client = ClientRound(
            config,
            model=config.model,
            node=identity.node,
            sign=identity.sign,
            membership=membership,
            policy=policy,
            ledger=book,
            random=secrets.token_bytes,
        )
        self._policy, self._weights = policy, weights
        if seat.state:
            self._client.restore(seat.state)

    @classmethod
    def begin(cls, invitation: Invitation, secure: bool) -> Seat:
        """The seat of a device that has said nothing yet."""
        return Seat(number=invitation.number, kind=invitation.kind, secure=secure, config=invitation.config)

    @property
    def counted(self) -> bool:
        """Whether this device's vector is in the round's sum, if there is one, as far as it can know."""
        return self.seat.survivors > 0 or (not self.seat.secure and bool(self.seat.sha256))

    def check(self) -> None:
        """Raises Refusal for a round to which this device could only refuse its contribution, after the training."""
        if self.seat.secure and not self.seat.message:
            self._contributes(settle=False)

    async def run(self, vectors: Vectors) -> None:
        """Until nothing more is to be said.

        Raises Refusal, RoundOver, Rejected or LinkError; OSError if the disk is full: then begin again with the seat.
        """
        if self.seat.secure:
            await self._run_secure(vectors)
        else:
            await self._run_plain(vectors)

    # --- a secure round ---------------------------------------------------------------------------------------------

    async def _run_secure(self, vectors: Vectors) -> None:
        if not self.seat.message:
            with self._book.together():
                self._say(self._client.keys())
            crash_point("fl.keys")
        while True:
            said = messages.from_device(self.seat.message)
            if isinstance(said, Masked):
                await self._bring(vectors)
            reply = await self._cloud.step(self._job, self.seat.number, self.seat.message, self._sum_of(said))
            wanted = _REPLIES.get(type(said))
            if wanted is None:
                return
            if reply is None:
                raise Refusal("order", f"cloudd ended the round after {_STEPS[type(said)]}")
            heard = messages.from_cloud(reply)
            if not isinstance(heard, wanted):
                raise Refusal("order", f"cloudd answered {_STEPS[type(said)]} with another step's message")
            self._hear(heard)

    def _hear(self, heard: FromCloud) -> None:
        """One message of cloudd, and what this device says to it."""
        client = self._client
        with self._book.together():
            if isinstance(heard, Roll):
                self._say(client.take_roll(heard))
            elif isinstance(heard, Inbox):
                self._say(client.take_inbox(heard))
            elif isinstance(heard, Ready):
                self._say(client.take_ready(heard))
            elif isinstance(heard, Survivors):
                vote = client.take_survivors(heard)
                cohort = client.cohort
                count = len(bitmap.unpack(heard.survivors, cohort.count)) if cohort is not None else 0
                self._say(vote, survivors=count)
            elif isinstance(heard, Unmask):
                self._say(client.take_unmask(heard))
        crash_point(f"fl.{_STEPS[type(messages.from_device(self.seat.message))]}")

    def _say(self, message: FromDevice, **changes: object) -> None:
        """Keep the seat with this as its last message; only then may it leave."""
        data = messages.encode(message)
        left = Left(step=_STEPS[type(message)], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._keep(state=self._client.state(), message=data, left=(*self.seat.left, left), **changes)

    async def _bring(self, vectors: Vectors) -> None:
        """Mask the contribution, once and for all, and upload it."""
        if not self.seat.sha256:
            vector, weight = await vectors(self._client.cohort)
            with self._book.together():
                self._contributes(settle=True)
                words = self._client.mask(vector, weight)
                self._keep_vector(words.view(np.uint8).data)
            crash_point("fl.saved")
        await self._cloud.upload(self._job, self.seat.number, self._folder.vector)
        crash_point("fl.uploaded")

    def _contributes(self, *, settle: bool) -> None:
        config = self.config
        self._book.contributes(self._weights(), config.session, config.round, self._policy.repeats, settle=settle)

    def _sum_of(self, said: FromDevice) -> str:
        return self.seat.sha256 if isinstance(said, Masked) else ""

    # --- a plain round ----------------------------------------------------------------------------------------------

    async def _run_plain(self, vectors: Vectors) -> None:
        if not self.seat.sha256:
            msgspec.structs.replace(self._policy, min_cohort=3).check_config(self.config)
            vector, weight = await vectors(None)
            words = fixedpoint.encode(vector, weight, fixedpoint.Encoding(self.config), secrets.token_bytes)
            self._keep_vector(words.view(np.uint8).data)
            crash_point("fl.saved")
        await self._cloud.upload(self._job, self.seat.number, self._folder.vector, plain=self.seat.sha256)

    # --- keeping ----------------------------------------------------------------------------------------------------

    def _keep_vector(self, data: memoryview) -> None:
        """The words first, then the seat that names them: a seat never names words that are not there."""
        self._folder.write_vector(data)
        crash_point("fl.vector")
        left = (*self.seat.left, Left(step="vector", bytes=len(data)))
        self._keep(state=self._client.state(), sha256=hashlib.sha256(data).hexdigest(), left=left)

    def _keep(self, **changes: object) -> None:
        seat = msgspec.structs.replace(self.seat, **changes)
        self._book.keep_seat(self._job, seat.number, self._folder.sealed(_SEAT, msgspec.msgpack.encode(seat)))
        self.seat = seat

    @staticmethod
    def kept(job: str, book: Book, folder: JobFolder) -> Seat | None:
        """The seat that this device has; one that does not open any more is given up."""
        found = book.seat(job)
        if found is None:
            return None
        data = folder.opened(_SEAT, found[1])
        if data is not None:
            with contextlib.suppress(msgspec.MsgspecError):
                return msgspec.msgpack.decode(data, type=Seat)
        book.end_round(job, found[0], "left")
        return None

    def record(self, outcome: Outcome, chain: Chain, at: float, refusal: Refusal | None = None) -> Outcome:
        """Write the round into the chain, unless it is there: then how it ended stands there. Raises OSError."""
        newest = chain.newest
        if newest is not None and (newest.session, newest.round) == (self.config.session.hex(), self.config.round):
            return newest.outcome
        chain.append(self._record(outcome, chain.head, at, refusal))
        crash_point("fl.recorded")
        return outcome

    def end(self, outcome: Outcome, chain: Chain, at: float, refusal: Refusal | None = None) -> None:
        """Write the round into the chain and give the seat up."""
        outcome = self.record(outcome, chain, at, refusal)
        self._client.close()
        self._book.end_round(self._job, self.seat.number, outcome)

    def _record(self, outcome: Outcome, previous: str, at: float, refusal: Refusal | None) -> Record:
        refusals = list(self._client.refusals)
        if refusal is not None and refusal not in refusals:
            refusals.append(refusal)
        if self.seat.secure:
            record = self._client.audit(outcome, at=at, previous=previous)
        else:
            nobody = Membership({}, self.config.rosters, {})
            record = audit.round_record(
                self.config, None, None, nobody, at=at, outcome=outcome, left=(), refusals=(), alarm=False,
                previous=previous,
            )  # fmt: skip
        # The client remembers only what it said since this process began.
        full = msgspec.structs.replace(
            record,
            left=self.seat.left,
            refusals=tuple(RefusalRecord(rule=one.rule, text=str(one)) for one in refusals),
            alarm=any(one.rule == "once" for one in refusals),
            signature="",
        )
        return audit.sign_record(full, self._identity.sign)
