"""Where everything stands that is wanted: what should run by now, what runs, and the newest report of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from edged.desired import Entry, is_model
from edged.plan import Choice, Plan, what_runs
from edged.reports import Reports, live_models, live_services
from edged.worker import Worker
from edgekit.messages import Comparison, ModelStatistics, ServiceReport


class Standing:
    """The runner keeps it; whoever else has it reads. Belongs to the supervisor's event loop."""

    def __init__(self, present: Callable[[], Worker | None]) -> None:
        """`present` tells the worker that serves, or starts while none does."""
        self._present = present
        self.missing: frozenset[str] = frozenset()
        """Model references that wanted services need and that are not installed."""
        self.entries: dict[str, Entry] = {}
        """The wanted services."""
        self.model_entries: dict[str, Entry] = {}
        """The models that are wanted without a service."""
        self.accepted: Mapping[str, Choice] = {}
        """What the present worker became ready with, services and models."""
        self.comparisons: dict[str, Comparison] = {}
        """By service: its present model's answers to the samples of the one before."""
        self._planned: Mapping[str, Choice] = {}
        self._held: Mapping[str, ServiceReport] = {}
        self._reports = Reports()

    # --- what the runner tells ----------------------------------------------------------------------------------------

    def look(self, services: dict[str, Entry], models: dict[str, Entry], plan: Plan) -> None:
        """This is wanted now, and planned for it."""
        self.entries, self.model_entries, self.missing, self._held = services, models, plan.missing, plan.held
        self._planned = _by_name(plan)
        self._reports.forget(services)

    def accept(self, plan: Plan, comparisons: Iterable[Comparison] = ()) -> None:
        """The present worker runs this plan."""
        self.accepted = _by_name(plan)
        self.comparisons |= {compared.service: compared for compared in comparisons}

    def started(self, worker: Worker) -> None:
        """Its reports count from now on."""
        self._reports.started(worker)

    def ended(self, worker: Worker) -> None:
        """It says nothing more."""
        self._reports.ended(worker)

    # --- what others ask ----------------------------------------------------------------------------------------------

    @property
    def planned(self) -> Mapping[str, Choice]:
        """What the worker should run by now, by service."""
        return {name: choice for name, choice in self._planned.items() if not is_model(name)}

    @property
    def as_planned(self) -> bool:
        """The present worker became ready with exactly what is planned."""
        return self.accepted == self._planned

    def runs(self, plan: Plan) -> bool:
        """The present worker runs what another plan wants, too."""
        return plan.key == what_runs(self.accepted.values())

    def running(self, name: str) -> Choice | None:
        """What runs (or starts) as this service now."""
        return self.accepted.get(name) or self._planned.get(name)

    @property
    def held(self) -> list[str]:
        """Names of the wanted services that no worker runs now."""
        return sorted(name for name in self._held if not is_model(name))

    @property
    def failed(self) -> bool:
        """Something that the present worker has could not be loaded."""
        states = [report.state for report in live_services(self._present())]
        return "failed" in states or any(report.state == "failed" for report in live_models(self._present()))

    def reports(self) -> list[ServiceReport]:
        """The newest report of every wanted service, by name."""
        held = {name: report for name, report in self._held.items() if not is_model(name)}
        return self._reports.services(held, self.planned.values(), self._present())

    def model_report(self, name: str) -> ServiceReport:
        """Where a model without a service stands; `name` is that of its entry."""
        if name in self._held:
            return self._held[name]
        choice = self.running(name)
        ref = choice.ref if choice is not None else ""
        for report in live_models(self._present()):
            if report.model == ref:
                return ServiceReport(name=name, model=ref, state=report.state, detail=report.detail)
        return ServiceReport(name=name, model=ref, state="loading", detail="it is loading")

    def model_statistics(self) -> list[ModelStatistics]:
        """What each model version that is served now did over the Open Inference Protocol, by name and version."""
        return self._reports.statistics(self._present())

    @property
    def uplink_bytes(self) -> int:
        """Bytes sent to cloudd by all workers since the supervisor started."""
        return self._reports.uplink_bytes


def _by_name(plan: Plan) -> dict[str, Choice]:
    return {choice.name: choice for choice in plan.choices}
