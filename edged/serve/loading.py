"""From service definitions to loaded, proved models. Blocking: run it beside the event loop."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(slots=True)
class Loader:
    """Loads each package directory once. `announce` hears the name of the service whose turn it is."""

    packages: Mapping[str, str]
    announce: Callable[[str], None] = lambda name: None
    _loaded: dict[str, LoadedModel | str] = field(default_factory=dict)

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
        if directory not in self._loaded:
            self._loaded[directory] = _load_model(Path(directory))
        found = self._loaded[directory]
        if isinstance(found, str):
            return LoadedService(service, None, found)
        name, version = split_ref(service.model)
        manifest = found.package.manifest
        if manifest.name != name or version not in (None, manifest.version):
            return LoadedService(service, None, f"the package of {service.model} says that it is {found.ref}")
        if manifest.task != service.task:
            failure = f"{found.ref} is a model for {manifest.task}, but the service wants {service.task}"
            return LoadedService(service, None, failure)
        return LoadedService(service, found)


def _load_model(directory: Path) -> LoadedModel | str:
    """The model, or one sentence about why there is none."""
    try:
        package = open_package(directory, verify=True)
    except (PackageError, OSError) as error:
        return f"the package in {directory} cannot be used: {error}"
    try:
        classifier = Classifier.load(package)
        classifier.prove()
    except (ModelError, PackageError, OSError) as error:
        return f"the model {package.ref} cannot be used: {error}"
    except Exception as error:  # a runtime's own exception, or memory: this service fails, the others go on
        return f"the model {package.ref} cannot be used: {type(error).__name__}: {error}"
    return LoadedModel(package, classifier)
