"""What the wanted services say of themselves, for the parts of the supervisor that ask for one by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edged.federation.front import Subject
from edged.plan import service_of
from edged.standing import Standing
from edgekit.packages import find
from edgekit.services import Samples, Service


class Wanted:
    """Answers from the runner's newest look at the wishes. Belongs to the supervisor's event loop."""

    def __init__(self, standing: Standing, packages: Callable[[], dict[str, Path]]) -> None:
        """`packages` tells the installed ones, by name@version."""
        self._standing, self._packages = standing, packages

    def service(self, name: str) -> Service | None:
        """The newest definition; None if there is none, or none that this version of edged can read."""
        entry = self._standing.entries.get(name)
        return service_of(entry) if entry is not None else None

    def task(self, name: str) -> str | None:
        """What the service is for."""
        service = self.service(name)
        return service.task if service is not None else None

    def samples(self, name: str) -> Samples:
        """What it keeps of its pictures. Those of a service that is gone are kept by the defaults."""
        service = self.service(name)
        return service.samples if service is not None else Samples()

    def gate(self, name: str) -> str:
        """What the running service says of its gate or gallery."""
        return next((report.gate for report in self._standing.reports() if report.name == name), "")

    def subject(self, name: str) -> Subject | None:
        """A service that runs, with the package that its definition means: what a federated job would begin with."""
        entry, service, packages = self._standing.entries.get(name), self.service(name), self._packages()
        ref = find(service.model, packages) if service is not None else None
        if entry is None or ref is None or self._standing.running(name) is None:
            return None
        return Subject(entry.text, ref, packages[ref])
