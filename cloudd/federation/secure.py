"""A cohort under `secagg/2`: the server's state machine with its journal, its deadlines and its answers."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np

from cloudd.federation.cohort import GRACE_S, Cohort, CohortResult, RoundOver
from cloudd.federation.journal import CLOSE, closed_step
from cloudd.federation.store import Entry
from edgekit.faults import crash_point
from edgekit.secagg import bitmap, masks, messages
from edgekit.secagg.errors import Refusal, Void
from edgekit.secagg.messages import FromDevice, Held, Keys, Masked, Reveal, Shares, Vote, Wire
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Membership
from edgekit.secagg.server import Phase, ServerRound

_STEPS: dict[type[Wire], Phase] = {
    Keys: "keys",
    Shares: "shares",
    Held: "held",
    Masked: "masked",
    Vote: "votes",
    Reveal: "reveals",
}
_ORDER: tuple[Phase, ...] = ("keys", "shares", "held", "masked", "votes", "reveals", "done")


class SecureCohort(Cohort):
    """`membership` and `policy` as ServerRound takes them."""

    def __init__(self, *args: Any, membership: Membership, policy: Policy, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._round = ServerRound(self.config, membership=membership, policy=policy, random=secrets.token_bytes)
        self._shown: Phase = "keys"  # the step that the journal has, so that devices may be told what follows
        self._encoded: dict[str, bytes] = {}
        self._summed = False  # whether the masked sum was kept, which a replay must not add up again

    # --- the steps --------------------------------------------------------------------------------------------------

    async def run(self) -> CohortResult:
        """See Cohort."""
        keys, unmask, patience = self.deadlines.keys, self.deadlines.unmask, self.deadlines.patience
        if self._shown == "keys":
            await self._until((lambda: self._all("keys", self.invited), 0.0), (lambda: True, keys))
            await self._close("keys", self._round.close_keys)
        if self._shown == "shares":
            await self._until((lambda: self._all("shares", self._roll()), 0.0), (lambda: True, keys))
            await self._close("shares", self._round.close_shares)
        if self._shown == "held":
            await self._until((lambda: self._all("held", self._of("shares")), 0.0), (lambda: True, keys))
            await self._close("held", self._round.close_held)
        if self._shown == "masked":
            await self._until(
                (lambda: self._all("masked", self._ready()), 0.0),
                (lambda: self._quorum("masked"), self.left_s),
                (lambda: True, self.left_s + patience),
            )
            await self._close("masked", self._round.close_masked)
        await asyncio.to_thread(self.vectors.drop)
        if self._shown == "votes":
            await self._until(
                (lambda: self._all("votes", self._of("masked")), 0.0),
                (lambda: self._round.certified, min(GRACE_S, unmask)),
                (lambda: True, unmask + patience),
            )
            await self._close("votes", self._round.close_votes)
        return await self._unmasked(unmask + patience)

    async def _close(self, step: Phase, close: Callable[[], Any]) -> None:
        """Close a step in the machine, then in the journal, and only then for devices. Raises Void, OSError."""
        async with self._lock:
            if self._round.phase == step:  # else it was closed, and then the disk was full
                await self._settled(asyncio.to_thread(close))
            if step == "masked":
                assert self._round.words is not None
                await self._settled(asyncio.to_thread(self.vectors.keep_sum, self._round.words))
            record = self._step(step, len(self._of(step)))
            self._journal.close(record)
            crash_point(f"federation.{step}.closing")
            await self._journal.insist(self.wait_for)
            crash_point(f"federation.{step}.closed")
            self.steps.append(record)
            self._shown = self._round.phase
        self.bell.ring()

    async def _unmasked(self, seconds: float) -> CohortResult:
        """Take the masks off as soon as enough shares are there: with everybody's, or after a moment without them."""
        until, grace = self._clock() + seconds, GRACE_S
        while True:
            have = len(self._of("reveals"))
            left = until - self._clock()
            await self._until(
                (lambda: self._all("reveals", self._of("masked")), 0.0),
                (lambda: self._quorum("reveals"), min(grace, left)),
                (lambda: True, left),
            )
            last = self._all("reveals", self._of("masked")) or self._clock() >= until
            async with self._lock:
                result = await self._settled(asyncio.to_thread(partial(self._round.finish, patient=not last)))
                if result is not None:
                    self.steps.append(self._step("reveals", len(self._of("reveals"))))
                    crash_point("federation.unmasked")
                    return CohortResult(result.words, result.survivors)
            if len(self._of("reveals")) == have:
                await self.bell.wait(until - self._clock())

    # --- for devices ------------------------------------------------------------------------------------------------

    async def message(self, node: bytes, data: bytes, sha256: str = "") -> bytes | None:
        """A message of a device; what follows for it: b"" for nothing, None if that is not there yet.

        Raises Refusal, RoundOver, FederationError, StorageError, OSError.
        """
        self._check(node)
        try:
            message = messages.from_device(data)
            if message.node != node:
                raise Refusal("identity", "the message is of another device than the one that sends it")
            await self._settled(self._accept(message, data, sha256))
        except Refusal as refusal:
            self.note_refusal(node, "cloudd", refusal.rule, str(refusal))
            raise
        self.bell.ring()
        step = _STEPS[type(message)]
        return b"" if step == "reveals" else await self._hold(lambda: self._next(node, step))

    @property
    def delivered(self) -> int:
        """See Cohort."""
        return len(self._of("masked"))

    def finished(self, node: bytes) -> bool:
        """See Cohort."""
        if node in self._of("reveals"):
            return True
        if self._shown == "reveals" and node in self._of("masked"):
            return False  # too late to vote, but its shares may be needed
        step = next((step for step in _ORDER[:-1] if node not in self._of(step)), "done")
        return _ORDER.index(step) < _ORDER.index(self._shown)

    async def _accept(self, message: FromDevice, data: bytes, sha256: str) -> None:
        step, digest = _STEPS[type(message)], hashlib.sha256(data).digest()
        if step == "masked" == self._round.phase and message.node not in self._of(step):
            await self._make_whole(message.node, sha256)
        async with self._lock:
            known = self._of(step).get(message.node)
            if known is None:
                if self.over:
                    raise RoundOver(self.over)
                if step == "votes" and self._round.phase == "reveals" and message.node in self._of("masked"):
                    return  # too late to be counted; its shares may be needed
                if _ORDER.index(step) < _ORDER.index(self._round.phase if self._round.phase != "void" else "done"):
                    raise RoundOver(f'the step "{step}" was closed without this device')
                if isinstance(message, Masked):
                    if message.node not in self._whole:
                        raise Refusal("order", "the vector is not here yet")
                    await asyncio.to_thread(self._add, message)
                else:
                    self._receive(message)
                self._of(step)[message.node] = digest
                self._journal.note(step, message.node, data)
            elif known != digest:
                raise Refusal("once", "the device has sent something else in this step")
        await self._journal.flush()
        crash_point(f"federation.{step}")

    def _add(self, message: Masked) -> None:
        self._round.receive_masked(message, self.vectors.read(message.node, self.config.bits))

    def _receive(self, message: FromDevice) -> None:
        if isinstance(message, Keys):
            self._round.receive_keys(message)
        elif isinstance(message, Shares):
            self._round.receive_shares(message)
        elif isinstance(message, Held):
            self._round.receive_held(message)
        elif isinstance(message, Vote):
            self._round.receive_vote(message)
        elif isinstance(message, Reveal):
            self._round.receive_reveal(message)

    def _next(self, node: bytes, step: Phase) -> bytes | None:
        """What follows for a device after its message of a step. Raises RoundOver."""
        if _ORDER.index(self._shown) <= _ORDER.index(step):
            return None
        try:
            if step == "keys" and node in self._roll():
                assert self._round.cohort is not None
                return self._once("roll", self._round.cohort.roll)
            if step == "shares" and self._shown == "held":
                return messages.encode(self._round.inbox(node))
            if step == "held":
                return self._once("ready", self._round.ready())
            if step == "masked" and node in self._of("masked"):
                return self._once("survivors", self._round.survivors())
            if step == "votes" and self._shown == "reveals":
                return messages.encode(self._round.unmask(node))
        except Refusal as refusal:
            raise RoundOver(str(refusal)) from None
        raise RoundOver(f'the round has gone on from the step "{step}" without this device')

    def _once(self, name: str, message: Wire) -> bytes:
        if name not in self._encoded:
            self._encoded[name] = messages.encode(message)
        return self._encoded[name]

    # --- who is where -----------------------------------------------------------------------------------------------

    def _all(self, step: str, expected: Collection[bytes]) -> bool:
        return set(expected) - self._away <= self._of(step).keys()

    def _quorum(self, step: str) -> bool:
        return self._round.cohort is not None and len(self._of(step)) >= self._round.cohort.quorum

    def _roll(self) -> Collection[bytes]:
        return self._round.cohort.position.keys() if self._round.cohort is not None else ()

    def _ready(self) -> Collection[bytes]:
        cohort = self._round.cohort
        assert cohort is not None
        return [cohort.node(place) for place in bitmap.unpack(self._round.ready().ready, cohort.count)]

    # --- restart ----------------------------------------------------------------------------------------------------

    def _replay(self, entries: list[Entry]) -> None:
        self._summed = any(entry.kind == CLOSE and closed_step(entry).step == "masked" for entry in entries)
        super()._replay(entries)
        self._shown = self._round.phase
        if self._shown in ("votes", "reveals"):
            self._round.words = self.vectors.read_sum(self.config.bits)

    def _replay_message(self, entry: Entry) -> None:
        message = messages.from_device(entry.body)
        if isinstance(message, Masked):
            nothing = np.zeros(self._round.encoding.words, masks.dtype(self.config.bits))
            vector = nothing if self._summed else self.vectors.read(entry.node, self.config.bits)
            self._round.receive_masked(message, vector)
        else:
            self._receive(message)
        self._of(entry.kind)[entry.node] = hashlib.sha256(entry.body).digest()

    def _replay_close(self, step: str) -> None:
        close = {
            "keys": self._round.close_keys,
            "shares": self._round.close_shares,
            "held": self._round.close_held,
            "masked": self._round.close_masked,
            "votes": self._round.close_votes,
        }[step]
        try:
            close()
        except Void as void:
            raise Refusal("order", f"a step that was closed is void: {void}") from None
