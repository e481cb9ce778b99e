"""The updates of a whole site: its leader takes part in the job between sites with the sum of its site as its own.

The site's cloudd is asked for the site's sum of the state that the leader holds, and brought what the upper job has
published before. Both may be repeated: the answer names the state, so a leader that was killed asks the same again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.federation.cloud import Cloud, HttpCloud, Rejected, RoundOver
from edged.federation.updates import SourceError, Stopped
from edgekit.federated.errors import FederatedError
from edgekit.federated.rounds import CohortSum, JobRules, read_words
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.federated.tiers import site_figures, site_result
from edgekit.messages import FileEntry
from edgekit.messages.federation import (
    DeviceRefusal,
    FederatedJob,
    LeadOrder,
    LeadState,
    Over,
    Publication,
    PublishedRound,
    RoundKind,
    SiteSum,
    Standing,
    Turn,
)
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import RoundConfig, from_cloud

T = TypeVar("T")

_NOBODY = "0" * 64  # a state that nobody holds: who asks for what follows an older version need not show one

_SHARE = 0.9
"""Of the upper job's `train` that a leader waits for its site: the upper cloudd hears that it waits in vain."""


class SiteCloud(HttpCloud):
    """The site's cloudd, to the leader of a job of it. Raises as Cloud does."""

    async def lead_state(self, job: str) -> LeadState:
        """How the site's job stands."""
        return self._read(await self._ask("GET", f"/{job}/lead"), LeadState)

    async def sum(self, job: str, order: LeadOrder) -> SiteSum:
        """The site's sum for a state, however long that takes."""
        while True:
            status, data = await self._patiently("POST", f"/{job}/lead/sum", msgspec.json.encode(order), 1 << 16)
            if status == 200:
                return self._read(data, SiteSum)

    async def bring(self, job: str, sha256: str, path: Path) -> None:
        """A sum of the upper job, from where it is at the site already. OSError."""
        await self._upload_to(f"/{job}/lead/upper/{sha256}", path)

    async def published(self, job: str, published: PublishedRound) -> None:
        """The upper job has published these sums, which were brought."""
        await self._ask("POST", f"/{job}/lead/published", msgspec.json.encode(published))

    async def over(self, job: str, over: Over) -> None:
        """The upper job is over."""
        await self._ask("POST", f"/{job}/lead/over", msgspec.json.encode(over))

    @staticmethod
    def _read(data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("malformed", f"the site's cloudd cannot be understood: {error}") from None


class UpperCloud:
    """The upper cloudd as a participant of the site's job speaks to it: a `Cloud` under the site job's name.

    So all that a device keeps of a job is kept once, under the id by which its own cloudd knows it.
    """

    def __init__(self, cloud: Cloud, wanted: FederatedJob) -> None:
        """`wanted`: the upper job as the site's job names it."""
        self._cloud, self._wanted, self._job = cloud, wanted, wanted.id

    async def job(self, job: str) -> FederatedJob:
        """See Cloud; Rejected for another job than the site's job names."""
        found = await self._cloud.job(self._job)
        if found != self._wanted:
            raise Rejected("binding", "the upper cloudd has another job of this id than the site's job names")
        return found

    async def fetch(self, job: str, entry: FileEntry, path: Path, *, durable: bool = True) -> None:
        """See Cloud."""
        await self._cloud.fetch(self._job, entry, path, durable=durable)

    async def next(self, job: str, standing: Standing) -> Turn:
        """See Cloud."""
        return await self._cloud.next(self._job, standing)

    async def refuse(self, job: str, refusal: DeviceRefusal) -> None:
        """See Cloud."""
        await self._cloud.refuse(self._job, refusal)

    async def step(self, job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        """See Cloud."""
        return await self._cloud.step(self._job, number, message, sha256)

    async def upload(self, job: str, number: int, path: Path, plain: str = "") -> None:
        """See Cloud."""
        await self._cloud.upload(self._job, number, path, plain)


class Site:
    """The site's side, in the leader's event loop. `folder` is for files that may be lost."""

    def __init__(self, job: FederatedJob, site: SiteCloud, upper: Cloud, folder: Path) -> None:
        self._job, self._site, self._upper, self._folder = job, site, upper, folder
        self._bringing = asyncio.Lock()

    async def bring(self, version: int) -> int:
        """Have the site hold the state `version`, whose sums the upper job has published; returns its samples.

        Raises Rejected, RoundOver (the site's job is over), LinkError, OSError.
        """
        async with self._bringing:
            while True:
                stands = await self._site.lead_state(self._job.id)
                if stands.version >= version:
                    return stands.samples
                turn = await self._upper.next(self._job.id, Standing(version=stands.version, state=_NOBODY))
                if not isinstance(turn, Publication):
                    raise Rejected("order", "the upper cloudd does not give sums that it has published")
                for published in turn.rounds:
                    if stands.version < published.version <= version:
                        await self._hand_down(published)

    async def _hand_down(self, published: PublishedRound) -> None:
        for one in published.sums:
            path = self._folder / "upper" / one.sha256
            entry = FileEntry(path=one.sha256, sha256=one.sha256, size=one.size)
            await self._upper.fetch(self._job.id, entry, path, durable=False)
            await self._site.bring(self._job.id, one.sha256, path)
        await self._site.published(self._job.id, published)
        shutil.rmtree(self._folder / "upper", ignore_errors=True)

    async def over(self, over: Over) -> None:
        """Tell the site that the upper job is over, with all its sums. A site whose job is over knows. As `bring`."""
        try:
            await self.bring(over.version)
            await self._site.over(self._job.id, over)
        except RoundOver:
            return
        except Rejected as error:
            if error.status != 404:
                raise

    async def collect(self, kind: RoundKind, rules: JobRules, state: State, digest: bytes) -> CohortSum:
        """The site's sum for a state, with the upper job's digest of it. `rules`: the site job's.

        Raises Refusal where the site has none, SourceError if its job is over, LinkError, OSError.
        """
        try:
            await self.bring(state.version)
            order = LeadOrder(kind=kind, version=state.version, state=digest.hex())
            found = await self._site.sum(self._job.id, order)
            entry = FileEntry(path=found.sha256, sha256=found.sha256, size=found.size)
            path = self._folder / "site" / found.sha256
            config = _checked(found, order, rules, state)
            await self._site.fetch(self._job.id, entry, path, durable=False)
        except RoundOver:
            raise SourceError("the site's job is over at the site's cloudd") from None
        except Rejected as error:
            if error.status == 404:
                raise SourceError("the site's cloudd has no such job for this device any more") from None
            raise Refusal("survivors", f"the site has no sum for this round ({error.rule}): {error}") from None
        try:
            words = read_words(await asyncio.to_thread(path.read_bytes), config)
        except FederatedError as error:
            raise Refusal("value", f"the site's sum cannot be used: {error}") from None
        finally:
            path.unlink(missing_ok=True)
        return CohortSum(words, found.survivors, config)


def _checked(found: SiteSum, order: LeadOrder, rules: JobRules, state: State) -> RoundConfig:
    """The configuration of the round that gave a site's sum. Raises Rejected for what was not asked for."""
    try:
        config = from_cloud(found.config)
        if not isinstance(config, RoundConfig):
            raise FederatedError("it has no configuration")
        rules.check(config, order.kind, rules.digest(state), found.number)
        if (found.kind, found.version) != (order.kind, order.version):
            raise FederatedError(f"it is of {found.kind} {found.version}")
        if not rules.job.least <= found.survivors <= config.invited:
            raise FederatedError(f"it is of {found.survivors} devices; {rules.job.least} are the least of this site")
        if found.size != (config.parameters + 2) * config.bits // 8:
            raise FederatedError(f"it has {found.size} bytes")
    except (FederatedError, Refusal) as error:
        raise Rejected("value", f"the site's sum is none of the round that was asked for: {error}") from None
    return config


class SiteSource:
    """A `Source` whose training is a round of the site. Called in threads; the work is done in `loop`."""

    def __init__(
        self, site: Site, rules: JobRules, upper: JobRules, samples: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        """`rules`: the site job's; `upper`: the upper job's. `samples`: labelled ones of the site, as far as known."""
        self._site, self._rules, self._upper, self._loop = site, rules, upper, loop
        self.samples = samples
        """See Source."""
        self._waiting: concurrent.futures.Future[Any] | None = None

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        """See Source: the site's sum, as one update."""
        try:
            return site_result(self._rules, state, self._sum("learn", state))
        except FederatedError as error:
            raise Refusal("value", f"the site's sum cannot be used: {error}") from None

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        """See Source: the confusion of all devices of the site."""
        try:
            found = site_figures(self._rules, self._sum("evaluate", state))
        except FederatedError as error:
            raise Refusal("value", f"the site's sum cannot be used: {error}") from None
        return found.confusion, found.loss

    def stop(self) -> None:
        """See Source: what the site has for this state stays there."""
        waiting = self._waiting
        if waiting is not None:
            waiting.cancel()

    def _sum(self, kind: RoundKind, state: State) -> CohortSum:
        """Raises Refusal if the site has none before the upper job goes on without it."""
        seconds = _SHARE * self._upper.job.deadlines.train
        work = self._site.collect(kind, self._rules, state, self._upper.digest(state))
        try:
            return self._run(asyncio.wait_for(work, seconds))
        except TimeoutError:
            raise Refusal("survivors", f"the site had no sum within {seconds:g} s") from None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._waiting = waiting
        try:
            return waiting.result()
        except concurrent.futures.CancelledError:
            raise Stopped("the leader stops asking its site") from None
        finally:
            self._waiting = None
