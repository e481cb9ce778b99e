"""What a worker is told before it starts: the plan with exact models, and the rules in force."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec.structs import replace

from edged.config import Settings
from edged.desired import is_model
from edged.link.service import LinkService
from edged.plan import Choice, Plan
from edgekit.messages import Configure, RunSetting
from edgekit.services import dump_service, parse_service


class Briefing:
    """Belongs to the supervisor's event loop."""

    def __init__(
        self,
        settings: Settings,
        packages: Callable[[], dict[str, Path]],
        link: LinkService,
        run_settings: Callable[[Iterable[Choice]], dict[str, RunSetting]],
    ) -> None:
        """`packages` tells the installed ones, by name@version; `run_settings` how the models of services run best."""
        self._settings, self._packages, self._link, self._run_settings = settings, packages, link, run_settings
        self.dispatch = settings.dispatch
        """Where requests go when more comes than can be done."""
        self.management_token = ""
        """Opens the worker's management endpoints. Known before the first worker is configured."""

    def configure(self, plan: Plan) -> Configure:
        """For a worker that shall run `plan`."""
        packages = self._packages()
        return Configure(
            state_dir=str(self._settings.state_dir),
            # With the exact model: a last good service may run an older version of what another one means by its name.
            services=[pinned(choice) for choice in plan.services],
            packages={ref: str(packages[ref]) for ref in sorted(plan.packages)},
            link=self._link.link,
            spool_quota=self._settings.spool_quota,
            spool_reserve=self._settings.spool_reserve,
            threads=self._settings.threads,
            device_id=self._link.device_id,
            held=sorted(name for name in plan.held if not is_model(name)),
            settings=self._run_settings(plan.services),
            models=list(plan.models),
            management_token=self.management_token,
            dispatch=self.dispatch,
            shadows={choice.name: choice.shadow for choice in plan.services if choice.shadow},
        )


def pinned(choice: Choice) -> str:
    """The definition of a service with its model, and the heads of its [split] if they are here, as name@version."""
    service = replace(parse_service(choice.text, "stored definition"), model=choice.ref)
    if service.split is not None and choice.head:
        service = replace(service, split=replace(service.split, heads=choice.head))
    return dump_service(service)
