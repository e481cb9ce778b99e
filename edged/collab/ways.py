"""The ways of one service's pictures to the answer model: as they are, as features, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace as with_more
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edged.collab.asking import Asked, Asker, reserve_s
from edged.collab.plan.heads import Encoded, HeadError, Heads
from edged.collab.plan.service_plan import ServicePlan
from edgekit.messages import Answer, FeaturesHeader, HardSample
from edgekit.planning.routes import Route

if TYPE_CHECKING:
    from edged.collab.collaboration import Collaboration
    from edged.collab.gate_keeper import GateKeeper

log = logging.getLogger("edged.collab")

Send = Callable[[HardSample, bytes, float], object]
"""Sends or stores header and payload of a sample of this value."""


class Ways:
    """Takes the way that the plan says. Belongs to one event loop.

    A sample that stays is kept for later as a picture wherever pictures may leave: that takes no processor, and a
    person can look at it. Where only features may, they are made when nobody waits, and only they are kept. What was
    asked as features, and not answered in time, is kept as these.
    """

    def __init__(
        self,
        hub: Collaboration,
        plan: ServicePlan,
        asker: Asker,
        keeper: GateKeeper,
        heads: Heads | None,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: monotonic seconds. Without `heads` there is no split."""
        self._hub, self._plan, self._asker, self._keeper = hub, plan, asker, keeper
        self._heads, self._clock = heads, clock
        self._pictures_leave = plan.terms.may_leave == "raw"

    async def ask(self, header: HardSample, picture: bytes, value: float, deadline: float) -> Asked:
        """Have the answer model's answer before `deadline`, or else keep the sample for later. Never raises."""
        route = self._plan.route()
        if route.kind == "edge" and not route.good:
            route = self._plan.chance(deadline - self._clock()) or route
        if route.kind == "split":
            return await self._split(route, header, picture, value, deadline)
        if route.kind == "edge" and route.good:
            return await self._whole(route, header, picture, value, deadline)
        if self._pictures_leave and (route.kind == "frame" or not self._plan.up):
            asked = await self._asker.ask(header, picture, value, deadline)
            return with_more(asked, route=route.name)
        return await self._keep(Asked(reason=self._why_here()), header, picture, value, deadline)

    def later(self, header: HardSample, picture: bytes, value: float) -> None:
        """Nobody waits for this one: send it soon, or store it."""
        form = self._plan.form()
        if form is not None and form.kind == "split":
            self._hub.in_background(self._features_later(form.cut, header, picture, value, self._hub.send_later))
        else:
            assert self._pictures_leave, "a plan takes no way that the policy does not permit"
            self._hub.send_later(header, picture, value)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _split(self, route: Route, header: HardSample, picture: bytes, value: float, deadline: float) -> Asked:
        left = deadline - self._clock()
        try:
            made = await self._encode(route.cut, picture, deadline - reserve_s(left))
        except HeadError as error:
            return await self._keep(Asked(reason=str(error)), header, picture, value, deadline)
        header = self._header(header, route.cut)
        asked = await self._asker.ask(header, made.payload, value, deadline)
        asked = with_more(asked, route=route.name, head_ms=made.prepare_ms + made.head_ms)
        if asked.answer is None or self._heads is None:
            return asked
        return with_more(asked, answer=self._heads.info.answer_of(header, asked.answer))

    async def _whole(self, route: Route, header: HardSample, picture: bytes, value: float, deadline: float) -> Asked:
        assert self._heads is not None, "a plan without heads has no such route"
        left = deadline - self._clock()
        try:
            whole = await self._heads.answer(picture, deadline - reserve_s(left))
        except HeadError as error:
            return await self._keep(Asked(reason=str(error)), header, picture, value, deadline)
        self._plan.headed(self._heads.info.whole, whole.prepare_ms, whole.head_ms, 0)
        answer = Answer(sample_id=header.sample_id, verdict=whole.verdict, compute_ms=whole.head_ms)
        self._hub.in_background(self._learn(header, answer))
        return Asked(answer, head_ms=whole.prepare_ms + whole.head_ms, route=route.name)

    async def _learn(self, header: HardSample, answer: Answer) -> None:
        await self._keeper.learn(header, answer)

    async def _keep(self, asked: Asked, header: HardSample, picture: bytes, value: float, deadline: float) -> Asked:
        if self._pictures_leave:
            return await self._asker.keep(asked, header, picture, value, deadline)
        form = self._plan.form()
        assert form is not None and form.kind == "split", "whoever asks and may not send pictures has a split"
        self._hub.in_background(self._features_later(form.cut, header, picture, value, self._hub.store))
        return with_more(asked, reason=f"{asked.reason}; its features are being stored")

    async def _features_later(self, cut: str, header: HardSample, picture: bytes, value: float, send: Send) -> None:
        try:
            made = await self._encode(cut, picture, self._clock(), patient=True)
        except HeadError as error:
            if self._pictures_leave:
                send(header, picture, value)
            else:
                log.info("Sample %s of %s was not stored: %s", header.sample_id, header.service, error)
                self._keeper.lost(header.sample_id)
            return
        send(self._header(header, cut), made.payload, value)

    async def _encode(self, cut: str, picture: bytes, deadline: float, patient: bool = False) -> Encoded:
        assert self._heads is not None, "a plan without heads has no split"
        made = await self._heads.encode(cut, picture, deadline, patient)
        self._plan.headed(cut, made.prepare_ms, made.head_ms, len(made.payload))
        return made

    def _header(self, header: HardSample, cut: str) -> HardSample:
        assert self._heads is not None, "a plan without heads has no split"
        return replace(header, pipeline=None, features=FeaturesHeader(tail=self._heads.info.tail, cut=cut))

    def _why_here(self) -> str:
        if not self._plan.up:
            return self._hub.why_closed()
        return f"the plan keeps it here ({self._plan.why_here})"
