"""The device's half of one round: messages of cloudd in, own messages out, or a refusal.

    keys -> take_roll -> take_inbox -> take_ready -> mask -> take_survivors -> take_unmask -> close

Everything up to `take_ready` needs no update, so it runs while the device trains. Asking again for a step with the same
message gives the same answer; with another message it is refused, for ever: what must not happen twice is in the ledger
before its message is returned. `state` and `restore` carry a round over a restart; the caller saves the state before a
message leaves, at least that of `keys` and that of `mask`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.secagg import agreement, bitmap, certificate, fixedpoint, masks, messages, shamir
from edgekit.secagg.agreement import KeyPair
from edgekit.secagg.audit import Left, Outcome, Record, RefusalRecord, Step, round_record, sign_record
from edgekit.secagg.client_state import ClientState
from edgekit.secagg.cohort import Cohort, verify_roll
from edgekit.secagg.errors import Refusal, RefusalLog, recorded
from edgekit.secagg.ledger import Ledger, RoundLedger
from edgekit.secagg.masks import Mask, Words
from edgekit.secagg.messages import (
    SEALED,
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


class ClientRound(RefusalLog):
    """One device in one round.

    `config` is what cloudd proposes and `model` the SHA-256 of the global model that the device itself holds; `node`
    and `sign` are its identity; `membership`, `policy` and `ledger` its own; `random(count)` gives random bytes.
    Every step raises Refusal if its message breaks a rule, and OSError if the ledger cannot write.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        model: bytes,
        node: bytes,
        sign: Signer,
        membership: Membership,
        policy: Policy,
        ledger: Ledger,
        random: Callable[[int], bytes],
    ) -> None:
        super().__init__()
        self.config = config
        self.cohort: Cohort | None = None
        self._model, self._node, self._sign = model, node, sign
        self._membership, self._policy, self._random = membership, policy, random
        self._ledger = RoundLedger(ledger, config.session, config.round)
        self._state: ClientState | None = None
        self._closed = False
        self._pairs: tuple[KeyPair, KeyPair] | None = None  # of the channel and of the masks, as _key_pairs makes them
        self._agreed: dict[int, bytes] = {}
        self._received: dict[int, tuple[bytes, bytes]] = {}
        self._left: list[Left] = []

    # --- steps ------------------------------------------------------------------------------------------------------

    @recorded
    def keys(self) -> Keys:
        """Step 0: check the configuration against the device's own policy, model and rosters; make and sign keys."""
        self._open()
        if self._state is not None:
            return self._state.keys
        self._policy.check_config(self.config)
        fixedpoint.Encoding(self.config)
        if not hmac.compare_digest(self.config.model, self._model):
            raise Refusal("binding", "the round is for another model than the one this device holds")
        if self.config.rosters != self._membership.digest:
            raise Refusal("binding", "the round uses other rosters than this device holds")
        if self._node not in self._membership:
            raise Refusal("identity", "this device is in no roster that it trusts itself")
        nonce, mask_seed, own_seed = self._random(16), shamir.seed(self._random), shamir.seed(self._random)
        salt = self._node + nonce
        channel, mask = KeyPair.new(self._random), KeyPair.from_seed(mask_seed, salt)
        unsigned = Keys(
            node=self._node,
            config=messages.digest(self.config),
            channel=channel.public,
            mask=mask.public,
            commitment=agreement.commit(own_seed, salt),
            nonce=nonce,
            signature=bytes(64),
        )
        self._ledger.once("keys", messages.digest(unsigned))
        keys = msgspec.structs.replace(unsigned, signature=self._sign("keys", messages.statement(unsigned)))
        self._state = ClientState(
            channel=channel.secret,
            mask_seed=mask_seed,
            own_seed=own_seed,
            keys=keys,
        )
        self._pairs = channel, mask
        self._note("keys", keys)
        return keys

    @recorded
    def take_roll(self, roll: Roll) -> Shares:
        """Step 1: check the cohort, share both seeds; seal the shares that do not follow from the channel keys."""
        state = self._after(self._state)
        if state.shares is not None:
            self._ledger.once("roll", messages.digest(roll))
            return state.shares
        cohort = verify_roll(roll, self.config, self._membership, own=state.keys)
        place = cohort.position.get(self._node)
        if place is None or cohort.keys[place] != state.keys:
            raise Refusal("keys", "this device's own keys are missing from the roll or altered")
        self._policy.check_roll(cohort.count, self.config.colluders, cohort.graph)
        if len(cohort.neighbours[place]) + 1 < cohort.threshold:
            raise Refusal("shares", f"{len(cohort.neighbours[place])} neighbours; the threshold is {cohort.threshold}")
        self._ledger.once("roll", cohort.digest)
        self.cohort = cohort
        self._agree()
        own, *explicit = self._split(state, cohort, place)
        sealed = []
        for v, pair in zip(cohort.sealed(place), explicit, strict=True):
            key, associated = cohort.channel_key(self._agreed[v], place, v)
            sealed.append(agreement.seal(key, b"".join(pair), associated))
        shares = Shares(node=self._node, sealed=b"".join(sealed))
        self._state = msgspec.structs.replace(state, roll=roll, shares=shares, own=own)
        self._note("shares", shares)
        return shares

    @recorded
    def take_inbox(self, inbox: Inbox) -> Held:
        """Step 1: open or derive the shares of the neighbours that sent theirs, as cloudd says."""
        state = self._after(self._state, self._state and self._state.shares)
        cohort, place = self._place()
        if state.held is not None:
            if inbox != state.inbox:
                raise Refusal("once", "this device has already opened other shares in this round")
            return state.held
        received = self._receive(inbox, cohort, place)
        if len(received) + 1 < cohort.threshold:
            raise Refusal(
                "shares", f"shares of {len(received)} neighbours and its own; the threshold is {cohort.threshold}"
            )
        held = Held(node=self._node, holds=cohort.over_neighbours(place, received))
        self._ledger.once("held", messages.digest(held))
        self._received = received
        self._state = msgspec.structs.replace(state, inbox=inbox, held=held)
        self._note("held", held)
        return held

    @recorded
    def take_ready(self, ready: Ready) -> Masked:
        """Step 2: fix and sign whom this device masks with: who is ready, as far as it holds their shares."""
        state = self._after(self._state, self._state and self._state.held)
        cohort, place = self._place()
        if ready.roll != cohort.digest:
            raise Refusal("binding", "the list of devices belongs to another roll")
        listed = set(bitmap.unpack(ready.ready, cohort.count))
        chosen = [v for v in self._received if v in listed]
        if place not in listed or len(chosen) + 1 < cohort.threshold:
            raise Refusal("shares", f"{len(chosen)} neighbours to mask with; the threshold is {cohort.threshold}")
        masks_with = cohort.over_neighbours(place, chosen)
        self._ledger.once("masks_with", hashlib.sha256(masks_with).digest())
        if state.masked is not None:
            return state.masked
        masked = Masked(node=self._node, roll=cohort.digest, masks_with=masks_with, signature=bytes(64))
        masked = msgspec.structs.replace(masked, signature=self._sign("masked", messages.statement(masked)))
        self._state = msgspec.structs.replace(state, masked=masked)
        self._note("masked", masked)
        return masked

    @recorded
    def mask(self, update: NDArray[np.float32], weight: int = 1) -> Words:
        """Step 2: weight * update under all masks, shape (parameters + 2,): what is uploaded, little endian.

        Once a round, and `Policy.repeats` + 1 times a model: the caller keeps the words until the round ends, and sends
        the same ones again if it must.
        """
        state = self._after(self._state, self._state and self._state.masked)
        cohort, place = self._place()
        if state.sent:
            raise Refusal("once", "the update was masked already; the same words may be sent again, no others made")
        words = fixedpoint.encode(update, weight, fixedpoint.Encoding(self.config), self._random)
        self._ledger.contribute(self.config.model, self._policy.repeats)
        self._ledger.once("vector", self._random(32))
        self._state = msgspec.structs.replace(state, sent=words.nbytes)
        pair = self._key_pairs()[1]
        streams = [Mask(cohort.self_mask_key(state.own_seed), add=True)]
        streams += [Mask(cohort.pair_mask_key(pair, place, v), add=place < v) for v in self._masks_with()]
        masks.apply(words, streams, self.config.prg)
        self._left.append(Left(step="vector", bytes=words.nbytes))
        return words

    @recorded
    def take_survivors(self, message: Survivors) -> Vote:
        """Step 3: sign the survivor set, the only one in this round."""
        state = self._after(self._state, self._state and self._state.sent)
        cohort, place = self._place()
        if message.roll != cohort.digest:
            raise Refusal("binding", "the survivor set belongs to another roll")
        survivors = frozenset(bitmap.unpack(message.survivors, cohort.count))
        masked = self._check_survivors(survivors, cohort, place)
        self._ledger.once("survivors", hashlib.sha256(message.survivors).digest())
        if state.vote is not None:
            return state.vote
        vote = Vote(
            node=self._node,
            roll=cohort.digest,
            survivors=message.survivors,
            masks_with=masked.masks_with,
            signature=bytes(64),
        )
        vote = msgspec.structs.replace(vote, signature=self._sign("vote", messages.statement(vote)))
        self._state = msgspec.structs.replace(state, survivors=message.survivors, vote=vote)
        self._note("vote", vote)
        return vote

    @recorded
    def take_unmask(self, message: Unmask) -> Reveal:
        """Step 4: check the certificate, reveal one share a device: of a survivor's own mask, else of its mask key."""
        state = self._after(self._state, self._state and self._state.sent)
        cohort, place = self._place()
        around = self._masks_with()
        survivors = certificate.check(message, cohort, self._membership, around, own=state.vote)
        self._check_survivors(survivors, cohort, place)
        self._ledger.once("survivors", hashlib.sha256(message.survivors).digest())
        if state.reveal is not None:
            return state.reveal
        chosen = [self._received[v][0 if v in survivors else 1] for v in around]
        reveal = Reveal(node=self._node, own=state.own[0], shares=b"".join(chosen))
        self._ledger.once("reveal", messages.digest(reveal))
        self._state = msgspec.structs.replace(state, survivors=message.survivors, reveal=reveal)
        self._note("reveal", reveal)
        return reveal

    def close(self) -> None:
        """Forget every secret of the round; no step is possible any more. The audit record still is."""
        self._closed = True
        self._pairs = None
        self._agreed.clear()
        self._received.clear()
        if self._state is not None:
            self._state = msgspec.structs.replace(
                self._state,
                channel=b"",
                mask_seed=b"",
                own_seed=b"",
                own=(b"", b""),
                shares=None,
                inbox=None,
            )

    # --- record and restart -----------------------------------------------------------------------------------------

    def audit(self, outcome: Outcome, *, at: float, previous: str) -> Record:
        """The signed record of the round. `at`: seconds since the epoch; `previous`: the last record's digest or ""."""
        return sign_record(
            round_record(
                self.config,
                self.cohort,
                self._state,
                self._membership,
                at=at,
                outcome=outcome,
                left=tuple(self._left),
                refusals=tuple(RefusalRecord(rule=one.rule, text=str(one)) for one in self.refusals),
                alarm=self.alarm,
                previous=previous,
            ),
            self._sign,
        )

    def state(self) -> bytes:
        """All that `restore` needs, secrets included: for a file that only this device reads. Empty before `keys`."""
        return msgspec.msgpack.encode(self._state) if self._state and not self._closed else b""

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken, after a restart with the same arguments. Raises Refusal if it does not fit."""
        try:
            self._state = msgspec.msgpack.decode(state, type=ClientState)
        except msgspec.DecodeError as error:
            raise Refusal("malformed", f"the saved round cannot be read: {error}") from None
        self._ledger.once("keys", messages.digest(msgspec.structs.replace(self._state.keys, signature=bytes(64))))
        if self._state.roll is None:
            return
        self.cohort = Cohort(self._state.roll, self.config)
        place = self.cohort.position[self._node]
        self._agree()
        if self._state.held is not None and self._state.inbox is not None:
            self._received = self._receive(self._state.inbox, self.cohort, place)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._closed:
            raise Refusal("order", "this device has left the round")

    def _after(self, state: ClientState | None, *needed: object) -> ClientState:
        self._open()
        if state is None or not all(needed):
            raise Refusal("order", "a step came before the one that it follows from")
        return state

    def _place(self) -> tuple[Cohort, int]:
        if self.cohort is None:
            raise Refusal("order", "a step came before the roll")
        return self.cohort, self.cohort.position[self._node]

    def _check_survivors(self, survivors: frozenset[int], cohort: Cohort, place: int) -> Masked:
        if place not in survivors:
            raise Refusal("survivors", "this device is not among the survivors")
        if len(survivors) < cohort.quorum:
            raise Refusal("survivors", f"{len(survivors)} survivors; {cohort.quorum} are a quorum")
        self._policy.check_owners({self._membership.owner(cohort.node(v)) for v in survivors})
        masked = self._after(self._state).masked
        if masked is None or not cohort.covers(place, masked.masks_with, survivors):
            raise Refusal("lists", "there is a surviving neighbour that this device did not mask with")
        return masked

    def _masks_with(self) -> list[int]:
        cohort, place = self._place()
        masked = self._state.masked if self._state else None
        return cohort.from_neighbours(place, masked.masks_with) if masked else []

    def _agree(self) -> None:
        cohort, place = self._place()
        pair = self._key_pairs()[0]
        self._agreed = {v: cohort.agree(pair, v, cohort.keys[v].channel) for v in cohort.neighbours[place]}

    def _key_pairs(self) -> tuple[KeyPair, KeyPair]:
        if self._pairs is None:
            state = self._after(self._state)
            salt = state.keys.node + state.keys.nonce
            self._pairs = KeyPair(state.channel), KeyPair.from_seed(state.mask_seed, salt)
        return self._pairs

    def _split(self, state: ClientState, cohort: Cohort, place: int) -> list[tuple[bytes, bytes]]:
        """The shares of both seeds that nobody derives: the device's own, and those to seal, in their order."""
        implied = {v + 1: cohort.implied_shares(self._agreed[v], place, v) for v in cohort.implied(place)}
        points = [place + 1, *(v + 1 for v in cohort.sealed(place))]
        return [(own, mask) for own, mask in shamir.split((state.own_seed, state.mask_seed), implied, points)]

    def _receive(self, inbox: Inbox, cohort: Cohort, place: int) -> dict[int, tuple[bytes, bytes]]:
        """Sender -> shares of its own mask's seed and of its mask key's, without those that cannot be opened."""
        if inbox.roll != cohort.digest:
            raise Refusal("binding", "the shares belong to another roll")
        senders = cohort.from_neighbours(place, inbox.senders)
        sealing = {v for v in senders if cohort.sealed_index(v, place) is not None}
        if len(inbox.sealed) != SEALED * len(sealing):
            raise Refusal("malformed", "the shares do not fit their senders")
        received, start = {}, 0
        for v in senders:
            if v not in sealing:
                received[v] = cohort.implied_shares(self._agreed[v], v, place)
                continue
            key, associated = cohort.channel_key(self._agreed[v], v, place)
            text = agreement.unseal(key, inbox.sealed[start : start + SEALED], associated)
            start += SEALED
            if text is not None:
                received[v] = text[: shamir.SHARE], text[shamir.SHARE :]
        return received

    def _note(self, step: Step, message: messages.Wire) -> None:
        data = messages.encode(message)
        self._left.append(Left(step=step, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
