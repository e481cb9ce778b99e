"""What this device holds of what all hold: the job's rules, the state after the newest sum, its memory of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.federation.files import JobFolder
from edgekit.autodiff.errors import AutodiffError
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import OneRoundHead
from edgekit.federated.layout import Vector
from edgekit.federated.opening import open_rules
from edgekit.federated.rounds import CohortSum, JobRules
from edgekit.federated.scaffold import Scaffold
from edgekit.federated.strategy import Contribution, LocalResult, State
from edgekit.federated.tiers import moving_rules
from edgekit.messages.federation import FederatedJob, Invitation, PublishedRound, PublishedSum, RoundKind
from edgekit.secagg.errors import Refusal
from edgekit.secagg.masks import Words
from edgekit.secagg.messages import MAX_COHORT, RoundConfig, from_cloud

STATE = "state"
_MEMORY = "memory"


class _Header(msgspec.Struct, frozen=True):
    version: int


class Shared:
    """One job as far as this device is; every method raises Refusal for what cannot be."""

    def __init__(self, job: FederatedJob, folder: JobFolder) -> None:
        """Open the state, the first one if none was kept. The job's files must lie in the folder."""
        self.job, self._folder = job, folder
        try:
            self.rules, start = open_rules(job, folder.files)
        except (AutodiffError, FederatedError, OSError) as error:
            raise Refusal("malformed", f"the job's plan or files cannot be used: {error}") from None
        self.state, self.memory = self._kept() or (start, None)
        self.had_in = ""
        """Of a head: the earlier job in whose totals this device has what it remembers; "" for nothing."""
        self._digest: tuple[State, bytes] | None = None

    @functools.cached_property
    def moving(self) -> JobRules:
        """The rules whose sums move the state: of a site's job those of the upper job. Raises FederatedError."""
        return moving_rules(self.rules)

    @property
    def sum_size(self) -> int:
        """Bytes of a published sum."""
        return (self.moving.numbers("learn").parameters + 2) * self.moving.room.bits // 8

    def digest(self) -> bytes:
        """What binds the state and the whole job to a round."""
        if self._digest is None or self._digest[0] is not self.state:
            self._digest = self.state, self.rules.digest(self.state)
        return self._digest[1]

    def weights_digest(self, kind: RoundKind) -> bytes:
        """Of the shared weights alone, whatever job they are in: a device contributes once to these (and judges once).

        `RoundConfig.model` names the job as well. By that alone cloudd could begin two jobs with one model, have this
        device in one of them only, and subtract.
        """
        if self.rules.head is not None and kind == "learn" and self.state.version == 0:
            # Whatever features and labels cloudd makes of one base: the sums are of the same samples.
            said = [self.job.service, self.job.package, self.had_in]
            return hashlib.sha256(b"edged/federation/1/head\0" + msgspec.msgpack.encode(said)).digest()
        found = hashlib.sha256(b"edged/federation/1/weights\0" + kind.encode() + self.rules.strategy.layout.digest)
        found.update(np.ascontiguousarray(self.state.model, self.state.model.dtype.newbyteorder("<")).data)
        return found.digest()

    @property
    def remembers(self) -> bool:
        """Whether the strategy keeps something of this device's own contributions."""
        return isinstance(self.rules.plan.strategy, Scaffold | OneRoundHead)

    def check_invitation(self, invitation: Invitation) -> RoundConfig:
        """The configuration of a round of the present state."""
        config = _config(invitation.config)
        if invitation.version != self.state.version:
            raise Refusal(
                "binding", f"the round is for version {invitation.version}; this device holds {self.state.version}"
            )
        if invitation.kind == "evaluate" and not self.job.evaluate_every:
            raise Refusal("binding", "the job has no evaluation rounds")
        try:
            self.rules.check(config, invitation.kind, self.digest(), invitation.number)
        except FederatedError as error:
            raise Refusal("binding", str(error)) from None
        return config

    def contribution(self, result: LocalResult) -> Contribution[Any]:
        """Of this device to a learning round of the present state."""
        try:
            return self.rules.strategy.contribution(self.state, result, self.memory)
        except FederatedError as error:
            raise Refusal("value", str(error)) from None

    def apply(self, published: PublishedRound, words_of: Callable[[PublishedSum, RoundConfig], Words]) -> None:
        """Take the state to `published.version`, in memory only (see `keep`)."""
        if published.version != self.state.version + 1:
            raise Refusal("order", f"sums of version {published.version} do not follow {self.state.version}")
        try:
            moving, sums = self.moving, []
            digest = self.digest() if moving is self.rules else moving.digest(self.state)
            for one in published.sums:
                config = _config(one.config)
                moving.check(config, "learn", digest, one.number)
                if not 1 <= one.survivors <= MAX_COHORT:
                    raise FederatedError(f"a sum of {one.survivors} devices")
                sums.append(CohortSum(words_of(one, config), one.survivors, config, frozenset(one.nodes)))
            self.state = moving.apply(self.state, sums)
        except FederatedError as error:
            raise Refusal("value", f"the published sum cannot be used: {error}") from None

    def keep(self, memory: NDArray[Any] | None) -> None:
        """Make the state durable, and with it what this device remembers. Raises OSError."""
        arrays = self.state.tensors()
        if memory is not None:
            arrays[_MEMORY] = memory
        self._folder.write(STATE, _Header(self.state.version), arrays)
        self.memory = memory

    def tensors(self) -> dict[str, Vector]:
        """The shared tensors of the present model."""
        return self.rules.tensors(self.state)

    def _kept(self) -> tuple[State, NDArray[Any] | None] | None:
        kept = self._folder.read(STATE, _Header)
        if kept is None:
            return None
        header, arrays = kept
        memory = arrays.pop(_MEMORY, None)
        try:
            return State.from_tensors(arrays, header.version), memory
        except FederatedError:
            return None


def _config(data: bytes) -> RoundConfig:
    config = from_cloud(data)
    if not isinstance(config, RoundConfig):
        raise Refusal("malformed", "a round's configuration is another message")
    return config
