"""What the workers have counted, put together so that no counter ever falls: across swaps, drains and crashes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from edged.plan import Choice
from edged.tally import Tally, add, add_model
from edged.worker import Worker
from edgekit.messages import ModelReport, ModelStatistics, ServiceReport


class Reports:
    """The reports of all workers since the supervisor started."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._uncounted: set[Worker] = set()  # workers whose counters are not in the tally yet
        self._served: frozenset[tuple[str, str]] = frozenset()  # names and versions of models, as last reported

    def started(self, worker: Worker) -> None:
        """Its reports count from now on."""
        self._uncounted.add(worker)

    def ended(self, worker: Worker) -> None:
        """It says nothing more: what it counted to the last is kept."""
        if worker in self._uncounted and worker.report is not None:
            self._tally.retire(worker.report.services, worker.report.uplink_bytes, worker.report.models)
        self._uncounted.discard(worker)

    def forget(self, services: Collection[str]) -> None:
        """Only these are wanted."""
        self._tally.forget(services)

    def services(
        self, held: Mapping[str, ServiceReport], planned: Iterable[Choice], present: Worker | None
    ) -> list[ServiceReport]:
        """The newest report of every wanted service, by name."""
        found = dict(held)
        for choice in planned:
            loading = ServiceReport(name=choice.name, model=choice.ref, state="loading", detail="its model is loading")
            found[choice.name] = loading
        live = {report.name: report for report in live_services(present)}
        found.update(live)
        # Until a worker's last counters are in the tally they are added here, so that no counter ever falls: also while
        # a predecessor drains, and between a crash and its discovery.
        for worker in self._uncounted:
            for report in worker.report.services if worker.report is not None else []:
                if report.name in found and not (worker is present and report.name in live):
                    found[report.name] = add(found[report.name], report)
        return [self._tally.total(report) for _, report in sorted(found.items())]

    def statistics(self, present: Worker | None) -> list[ModelStatistics]:
        """What each model version that is served now did over the Open Inference Protocol, by name and version."""
        live = present.report if present is not None else None
        if live is not None:
            found = {(model.name, model.version): model for model in live.models}
            self._served = frozenset(found)
        else:  # until a new worker's first report what the one before served goes on without it
            found = {key: ModelStatistics(name=key[0], version=key[1]) for key in self._served}
        for other in self._uncounted:
            if other.report is None or other.report is live:
                continue
            for model in other.report.models:
                key = (model.name, model.version)
                if key in found:
                    found[key] = add_model(found[key], model)
        return [self._tally.total_model(model) for _, model in sorted(found.items())]

    @property
    def uplink_bytes(self) -> int:
        """Bytes sent to cloudd by all workers."""
        live = (worker.report.uplink_bytes for worker in self._uncounted if worker.report is not None)
        return self._tally.uplink_bytes + sum(live)


def live_services(worker: Worker | None) -> list[ServiceReport]:
    """The newest reports of a worker that is ready; nothing of another."""
    if worker is None or not worker.alive or not worker.ready.done():
        return []
    return (worker.report or worker.ready.result()).services


def live_models(worker: Worker | None) -> list[ModelReport]:
    """The models without a service of a worker that is ready."""
    return worker.ready.result().models if worker is not None and worker.alive and worker.ready.done() else []
