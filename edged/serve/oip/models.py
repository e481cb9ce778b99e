"""The models that can be asked for, and how the protocol's names and version numbers find them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edged.serve.engine import Priority
from edged.serve.http import HttpError
from edged.serve.oip.counters import Counters
from edged.serve.oip.reply import model_prefix
from edged.serve.oip.signature import Signature, signature
from edged.serve.plain_model import Model, PlainModel, as_model
from edged.serve.service_runtime import ServiceRuntime
from edged.serve.statistics import ServiceStatistics
from edgekit.packages import Package, version_key
from edgekit.vision.classification import Classifier

log = logging.getLogger("edged.serve")

MODEL_DEADLINE_MS = 5000.0
"""Deadline of requests to a model without a service, which could say another."""

_DOTTED = re.compile(r"(0|[1-9][0-9]{0,2})(?:\.(0|[1-9][0-9]{0,2})){1,2}")


def protocol_version(version: str) -> str:
    """The number by which the protocol knows a package's version, which may be more than a number.

    Whole numbers stay; 1.2.0 and 1.2 become 1002000 (three digits a part), so that newer ones are larger; of anything
    else the number is made of its SHA-256.
    """
    if version.isdigit() and len(version) <= 18:
        return str(int(version))
    if _DOTTED.fullmatch(version):
        major, minor, patch = [*map(int, version.split(".")), 0][:3]
        return str(major * 1_000_000 + minor * 1000 + patch)
    return str(int.from_bytes(hashlib.sha256(version.encode()).digest()[:6], "big"))


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model version: what runs it, and whose place in the queue its requests take."""

    name: str
    version: str  # the package's
    number: str  # the protocol's
    package: Package
    loaded: Model
    lane: str
    priority: Priority
    deadline_ms: float
    signature: Signature
    prefix: bytes  # of every reply
    counters: Counters = field(default_factory=Counters)
    service: ServiceStatistics | None = None  # that of the service, where there is one

    @property
    def classifier(self) -> Classifier | None:
        """It, if the model is one."""
        return self.loaded if isinstance(self.loaded, Classifier) else None

    @property
    def takes_pictures(self) -> bool:
        """Whether its input can be given as a picture."""
        return any(port.picture for port in self.signature.inputs.values())

    def picture(self, data: bytes) -> NDArray[Any]:
        """A JPEG or PNG as the model's input."""
        return self.loaded.tensor(data)

    def pixels(self, array: NDArray[Any]) -> NDArray[Any]:
        """Raw pixels, H x W x C of uint8, as the model's input."""
        return self.loaded.pixels(array)


def of_service(runtime: ServiceRuntime) -> ServedModel | None:
    """The model of a ready service; its requests wait in the service's lane. None if it has no model, or no tensors."""
    loaded = as_model(runtime.model.vision) if runtime.model is not None else ""
    if isinstance(loaded, str):
        return None
    service = runtime.service
    return _served(loaded, service.name, service.priority, service.deadline_ms, runtime.statistics)


def without_service(loaded: Model) -> ServedModel:
    """A model of its own: class "inline", and a lane that no service can have."""
    return _served(loaded, f"model:{loaded.package.ref}", "inline", MODEL_DEADLINE_MS, None)


def _served(
    loaded: Model, lane: str, priority: Priority, deadline_ms: float, statistics: ServiceStatistics | None
) -> ServedModel:
    manifest, session = loaded.package.manifest, loaded.session
    classifier = isinstance(loaded, Classifier)
    picture = session.inputs[0].name if not isinstance(loaded, PlainModel) or loaded.takes_pictures else ""
    found = signature(manifest.name, session.inputs, session.outputs, picture, loaded.labels, strict=classifier)
    number = protocol_version(manifest.version)
    prefix = model_prefix(manifest.name, number)
    return ServedModel(
        manifest.name,
        manifest.version,
        number,
        loaded.package,
        loaded,
        lane,
        priority,
        deadline_ms,
        found,
        prefix,
        service=statistics,
    )


class ModelTable:
    """The models that can be asked for, by name and version. The first of two with the same reference counts."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        for model in models:
            self._models.setdefault(model.name, {}).setdefault(model.version, model)
        self._found: dict[tuple[str, str | None], ServedModel] = {}
        for name, versions in self._models.items():
            ordered = sorted(versions, key=version_key)
            for version in ordered:
                model = versions[version]
                taken = self._found.get((name, model.number))
                if taken is not None:
                    log.warning("%s@%s and %s share a version number", name, version, taken.version)
                self._found[name, model.number] = model
                self._found[f"{name}@{version}", None] = model
                self._found[f"{name}@{version}", model.number] = model
            for version in ordered:  # after the numbers: a version that is one of them means that package
                self._found[name, version] = versions[version]
            self._found[name, None] = versions[ordered[-1]]

    def __iter__(self) -> Iterator[ServedModel]:
        return (self._models[name][version] for name in sorted(self._models) for version in self._ordered(name))

    def _ordered(self, name: str) -> list[str]:
        return sorted(self._models.get(name, {}), key=version_key)

    def versions(self, name: str) -> list[ServedModel]:
        """All versions of a model, oldest first; empty for an unknown one. `name` may be name@version."""
        model = self._found.get((name, None))
        return [self._models[model.name][version] for version in self._ordered(model.name)] if model else []

    def find(self, name: str, version: str | None) -> ServedModel | None:
        """This version (the protocol's number or the package's own), or the newest for None."""
        return self._found.get((name, version))

    def require(self, name: str, version: str | None) -> ServedModel:
        """As `find`. Raises HttpError 404 that names the known models."""
        model = self._found.get((name, version))
        if model is None:
            if version is not None and not version.isdigit() and (name, None) in self._found:
                raise HttpError(404, "Not Found")
            wanted = f"'{name[:64]}'" + (f" version {version[:32]}" if version is not None else "")
            known = ", ".join(f"{model.name}@{model.version}" for model in self) or "none"
            raise HttpError(404, f"Request for unknown model: {wanted} is not found; known models: {known}")
        return model
