"""What a running service wants of whoever decides between its model's answer and the cloud's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from edgekit.messages import Decision, GateFacts, PlanReport
from edgekit.planning.routes import Demand

_Said = TypeVar("_Said", contravariant=True)


class Settles(Protocol[_Said]):
    """Decides whether the local answer stands or the cloud is asked; never fails for want of a link.

    What it takes is what the service's `inspect` gives: see edged.collab.regions.takes_regions.
    """

    async def settle(
        self,
        local: _Said,
        picture: bytes,
        sample_id: str,
        captured_at: float,
        serial: str,
        deadline: float,
    ) -> Decision:
        """The final decision; `deadline` is a time of the monotonic clock."""
        ...

    def sentence(self) -> str:
        """Where the gate stands, for people."""
        ...

    def plan_report(self) -> PlanReport | None:
        """How asked samples reach the answer model now; None where nobody can be asked."""
        ...

    def facts(self) -> GateFacts | None:
        """What the gate knows, for the triggers of learning; None where it can know nothing."""
        ...

    def audited(self) -> tuple[int, int]:
        """Audits of answers given here that the cloud has answered since the worker started, and those that differ."""
        ...

    def measure(self, demand: Callable[[], Demand]) -> None:
        """What the line brings, for that plan: asked once a second."""
        ...
