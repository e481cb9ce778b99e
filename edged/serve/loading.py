"""From service definitions to loaded, proved models. Blocking: run it beside the event loop."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edged.hardware.settings import Setting
from edged.serve import settings
from edged.serve.footprint import Footprint
from edged.serve.heads import LoadedHeads, load_heads
from edged.serve.inspecting import Inspect, Vision, inspector
from edged.serve.plain_model import Model, PlainModel, as_model
from edged.serve.settings import Failed, Unusable
from edgekit.messages import Comparison, ModelReport, SettingFailed
from edgekit.packages import Package, PackageError, open_package, split_ref
from edgekit.runtimes import ModelError
from edgekit.services import Service, ServiceError, label_problem, parse_service


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A package in memory, proved on its own samples; shared by all services that use it."""

    package: Package
    vision: Vision

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
    inspect: Inspect | None = None  # what it does with each picture, where it has a model
    heads: LoadedHeads | None = None  # of its [split]
    why_no_heads: str = ""  # what is wrong with them: the service runs without


@dataclass(frozen=True, slots=True)
class LoadedAlone:
    """A model that is served without a service, or the sentence that says why it is not."""

    ref: str  # name@version
    model: Model | None
    failure: str = ""
    setting: Setting | None = None  # that it runs with; None: in the safe way

    @property
    def report(self) -> ModelReport:
        """What the supervisor shows."""
        return ModelReport(model=self.ref, state="failed" if self.model is None else "ready", detail=self.failure)


@dataclass(slots=True)
class Loaded:
    """All that a worker has loaded."""

    services: list[LoadedService]
    alone: list[LoadedAlone]
    footprint: Footprint
    comparisons: list[Comparison] = field(default_factory=list)


@dataclass(slots=True)
class Loader:
    """Loads each package directory once for each way to run it. `announce` hears the service whose turn it is.

    `settings` says how a service's model runs; one that cannot be used is told to `failed`, and the service runs in the
    safe way instead. `footprint` learns what each model needs of the memory.
    """

    packages: Mapping[str, str]
    announce: Callable[[str], None] = lambda name: None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    failed: Failed = lambda message: None
    state_dir: Path = Path()
    footprint: Footprint = field(default_factory=Footprint)
    _loaded: dict[tuple[str, str], LoadedModel | Unusable | str] = field(default_factory=dict)
    _used: dict[str, Setting] = field(default_factory=dict)
    _hung: set[str] = field(default_factory=set)
    _heads: dict[tuple[str | None, str, str], LoadedHeads | str] = field(default_factory=dict)

    def load_all(self, texts: list[str]) -> list[LoadedService]:
        """Load every service. A bad one fails alone; a definition that cannot even be parsed raises ServiceError."""
        services = [parse_service(text, "configuration") for text in texts]
        names = [service.name for service in services]
        if len(set(names)) != len(names):
            raise ServiceError(f"two services have the same name among {', '.join(sorted(names))}")
        loaded = [self.load(service) for service in services]
        gc.collect()
        return loaded

    def load_models(self, refs: Iterable[str]) -> list[LoadedAlone]:
        """Load models without a service, after `load_all`: one that a service runs is not loaded a second time."""
        loaded = [self._load_alone(ref) for ref in refs]
        gc.collect()
        return loaded

    def _load_alone(self, ref: str) -> LoadedAlone:
        directory = self.packages.get(ref)
        if directory is None:
            return LoadedAlone(ref, None, f"the model {ref} is not installed")
        for (where, _), found in self._loaded.items():
            if where == directory and isinstance(found, LoadedModel):
                shared = as_model(found.vision)
                if isinstance(shared, str):
                    return LoadedAlone(ref, None, shared)
                return LoadedAlone(ref, shared, setting=self._used.get(directory))
        self.announce(ref)
        with self.footprint.of(directory):
            model = _load_plain(Path(directory))
        if isinstance(model, str):
            return LoadedAlone(ref, None, model)
        if model.package.ref != ref:
            return LoadedAlone(ref, None, f"the package of {ref} says that it is {model.package.ref}")
        return LoadedAlone(ref, model)

    def load(self, service: Service) -> LoadedService:
        """One service; what is wrong with it is its `failure`."""
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
        problem = label_problem(service, found.vision.labels)
        if problem:
            return LoadedService(service, None, problem)
        try:
            inspect = inspector(service, found.vision)
        except (ModelError, PackageError, OSError) as error:
            return LoadedService(service, None, f"the model {found.ref} cannot be used by this service: {error}")
        loaded = LoadedService(service, found, setting=setting, inspect=inspect)
        if service.split is None:
            return loaded
        heads = self._split(service, setting)
        return replace(loaded, why_no_heads=heads) if isinstance(heads, str) else replace(loaded, heads=heads)

    def _split(self, service: Service, setting: Setting | None) -> LoadedHeads | str:
        """Once for each way to run it; and for each answer model, to which it must belong."""
        assert service.split is not None
        directory = self.packages.get(service.split.heads)
        key = (directory, service.hard_samples.answer_model, setting.key if setting is not None else "")
        if key not in self._heads:
            with self.footprint.of(directory or service.split.heads):
                self._heads[key] = load_heads(service, directory, setting)
        return self._heads[key]

    def _model(self, directory: str, setting: Setting | None) -> LoadedModel | Unusable | str:
        key = (directory, setting.key if setting is not None else "")
        if key not in self._loaded:
            if setting is not None and setting.candidate in self._hung:
                return Unusable("hang", "it hung when it loaded another model")
            with self.footprint.of(directory):
                found = self._loaded[key] = _load_model(Path(directory), setting, self.state_dir)
            if setting is not None and isinstance(found, LoadedModel):
                self._used.setdefault(directory, setting)
            if setting is not None and isinstance(found, Unusable) and found.kind == "hang":
                self._hung.add(setting.candidate)  # the worker has to become ready, so nobody waits for it twice
        return self._loaded[key]


def _load_model(directory: Path, setting: Setting | None, state_dir: Path) -> LoadedModel | Unusable | str:
    """The model, why the setting cannot be used, or one sentence about why there is no model at all."""
    try:
        package = open_package(directory, verify=True)
    except (PackageError, OSError) as error:
        return f"the package in {directory} cannot be used: {error}"
    if not package.manifest.variants:
        return f"{package.ref} is a {package.manifest.task} of a split model and no model by itself"
    try:
        vision = settings.load(package, setting, state_dir)
    except Unusable as error:
        return error
    except (ModelError, PackageError, OSError) as error:
        return f"the model {package.ref} cannot be used: {error}"
    except Exception as error:  # a runtime's own exception, or memory: this service fails, the others go on
        return f"the model {package.ref} cannot be used: {type(error).__name__}: {error}"
    return LoadedModel(package, vision)


def _load_plain(directory: Path) -> Model | str:
    """A model of a known task, proved; else whatever it is, run once; or one sentence about why not."""
    try:
        package = open_package(directory, verify=True)
    except (PackageError, OSError) as error:
        return f"the package in {directory} cannot be used: {error}"
    manifest = package.manifest
    if not manifest.variants:
        return f"{package.ref} is a {manifest.task} of a split model and no model by itself"
    try:
        told = manifest.anomaly is not None or manifest.embedding is not None or manifest.task == "detection"
        if told or (manifest.task == "classification" and manifest.output.kind != "none"):
            return as_model(settings.load(package, None, Path()))
        model = PlainModel.load(package)
        model.prove()
        return model
    except (ModelError, PackageError, OSError) as error:
        return f"the model {package.ref} cannot be used: {error}"
    except Exception as error:  # as above
        return f"the model {package.ref} cannot be used: {type(error).__name__}: {error}"
