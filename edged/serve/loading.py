"""From service definitions to loaded, proved models. Blocking: run it beside the event loop."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edged.hardware.settings import Setting
from edged.serve import settings
from edged.serve.settings import Failed, Unusable
from edgekit.messages import SettingFailed
from edgekit.packages import Package, PackageError, open_package, split_ref
from edgekit.runtimes import ModelError
from edgekit.services import Service, ServiceError, parse_service
from edgekit.vision.classification import Classifier


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A package in memory, proved on its own samples; shared by all services that use it."""

    package: Package
    classifier: Classifier

    @property
    def ref(self) -> str:
        """name@version"""
        return self.package.ref


@dataclass(frozen=True, slots=True)
class LoadedService:
    """A service with its model, or with the sentence that says why it has none."""

    service: Service
    model: LoadedModel | None
    failure: str = ""
    setting: Setting | None = None  # that it runs with; None: in the safe way


@dataclass(slots=True)
class Loader:
    """Loads each package directory once for each way to run it. `announce` hears the service whose turn it is.

    `settings` says how a service's model runs; one that cannot be used is told to `failed`, and the service runs in the
    safe way instead.
    """

    packages: Mapping[str, str]
    announce: Callable[[str], None] = lambda name: None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    failed: Failed = lambda message: None
    state_dir: Path = Path()
    _loaded: dict[tuple[str, str], LoadedModel | Unusable | str] = field(default_factory=dict)
    _hung: set[str] = field(default_factory=set)

    def load_all(self, texts: list[str]) -> list[LoadedService]:
        """Load every service. A bad one fails alone; a definition that cannot even be parsed raises ServiceError."""
        services = [parse_service(text, "configuration") for text in texts]
        names = [service.name for service in services]
        if len(set(names)) != len(names):
            raise ServiceError(f"two services have the same name among {', '.join(sorted(names))}")
        loaded = [self._load(service) for service in services]
        gc.collect()
        return loaded

    def _load(self, service: Service) -> LoadedService:
        directory = self.packages.get(service.model)
        if directory is None:
            return LoadedService(service, None, f"the model {service.model} is not installed")
        self.announce(service.name)
        setting = self.settings.get(service.name)
        found = self._model(directory, setting)
        if isinstance(found, Unusable):
            assert setting is not None
            told = SettingFailed(
                service=service.name, setting=settings.sent(setting), kind=found.kind, reason=str(found)
            )
            self.failed(told)
            setting = None
            found = self._model(directory, None)
        assert not isinstance(found, Unusable)
        if isinstance(found, str):
            return LoadedService(service, None, found)
        name, version = split_ref(service.model)
        manifest = found.package.manifest
        if manifest.name != name or version not in (None, manifest.version):
            return LoadedService(service, None, f"the package of {service.model} says that it is {found.ref}")
        if manifest.task != service.task:
            failure = f"{found.ref} is a model for {manifest.task}, but the service wants {service.task}"
            return LoadedService(service, None, failure)
        return LoadedService(service, found, setting=setting)

    def _model(self, directory: str, setting: Setting | None) -> LoadedModel | Unusable | str:
        key = (directory, setting.key if setting is not None else "")
        if key not in self._loaded:
            if setting is not None and setting.candidate in self._hung:
                return Unusable("hang", "it hung when it loaded another model")
            found = self._loaded[key] = _load_model(Path(directory), setting, self.state_dir)
            if setting is not None and isinstance(found, Unusable) and found.kind == "hang":
                self._hung.add(setting.candidate)  # the worker has to become ready, so nobody waits for it twice
        return self._loaded[key]


def _load_model(directory: Path, setting: Setting | None, state_dir: Path) -> LoadedModel | Unusable | str:
    """The model, why the setting cannot be used, or one sentence about why there is no model at all."""
    try:
        package = open_package(directory, verify=True)
    except (PackageError, OSError) as error:
        return f"the package in {directory} cannot be used: {error}"
    try:
        classifier = settings.load(package, setting, state_dir)
    except Unusable as error:
        return error
    except (ModelError, PackageError, OSError) as error:
        return f"the model {package.ref} cannot be used: {error}"
    except Exception as error:  # a runtime's own exception, or memory: this service fails, the others go on
        return f"the model {package.ref} cannot be used: {type(error).__name__}: {error}"
    return LoadedModel(package, classifier)
