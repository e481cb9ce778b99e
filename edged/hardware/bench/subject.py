"""One model in one setting, with something to feed it: the package's own pictures, else made-up ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.hardware.settings import Setting
from edgekit.packages import Package, Variant
from edgekit.runtimes import ModelError, Session, TensorInfo, open_session
from edgekit.runtimes.base import dequantise
from edgekit.vision.classification import Classifier, declared_input, files_beside
from edgekit.vision.images import ImageError
from edgekit.vision.preprocess import check_input, prepare

Feeds = dict[str, NDArray[Any]]
_MAX_VALUES = 64 << 20
_SYNTHETIC = 3
_SEED = 20


class Subject:
    """A loaded model with its feeds. Raises ModelError as the driver does."""

    def __init__(self, package: Package, setting: Setting, cache: str, samples: int, *, strict: bool) -> None:
        self.package = package
        self.variant = _variant(package, setting)
        options = replace(
            setting.options(), cache=cache, strict=strict, declared=declared_input(package.manifest.input)
        )
        self.session: Session = open_session(
            package.path(self.variant.file), setting.runtime, options, files_beside(package, self.variant)
        )
        self.classifier = self._classifier()
        self.feeds, self.real = self._feeds(samples)

    def run(self, feeds: Feeds) -> list[NDArray[Any]]:
        return self.session.run(feeds)

    def answers(self) -> list[NDArray[np.float32]]:
        """Every output of every feed as real values. Raises ModelError for NaN, infinity or integers without scale."""
        found = []
        for feeds in self.feeds:
            for array, tensor in zip(self.session.run(feeds), self.session.outputs, strict=True):
                values = dequantise(array, tensor) if _real(array, tensor) else array.astype(np.float32)
                if not np.isfinite(values).all():
                    raise ModelError("the model gives values that are not numbers (NaN or infinity)")
                found.append(values.reshape(-1))
        return found

    def close(self) -> None:
        self.session.close()

    def _classifier(self) -> Classifier | None:
        manifest = self.package.manifest
        if manifest.task != "classification" or manifest.output.kind == "none":
            return None
        return Classifier(self.package, self.variant, self.session)

    def _feeds(self, samples: int) -> tuple[list[Feeds], bool]:
        if self.classifier is not None:
            found = []
            for sample in self.package.manifest.samples[:samples]:
                try:
                    data = self.package.path(sample.file).read_bytes()
                    found.append({self._pixels().name: self.classifier.tensor(data)})
                except (ImageError, OSError) as error:
                    raise ModelError(f"the sample {sample.file} cannot be used: {error}") from error
            if found:
                return found, True
        generator = np.random.default_rng(_SEED)
        return [self._synthetic(generator) for _ in range(_SYNTHETIC)], False

    def _pixels(self) -> TensorInfo:
        name = self.package.manifest.input.name
        return next((tensor for tensor in self.session.inputs if tensor.name == name), self.session.inputs[0])

    def _synthetic(self, generator: np.random.Generator) -> Feeds:
        """A smooth picture with noise where the model takes one as the package says, else values by type alone."""
        spec = self.package.manifest.input
        if len(self.session.inputs) == 1:
            try:
                check_input(spec, self.session.inputs[0])
                picture = _picture(generator, spec.height, spec.width, 1 if spec.colour == "grey" else 3)
                return {self.session.inputs[0].name: prepare(picture, spec, self.session.inputs[0])}
            except ModelError:
                pass  # the package describes no picture: the tensors alone say what fits
        return {tensor.name: _values(generator, tensor) for tensor in self.session.inputs}


def _variant(package: Package, setting: Setting) -> Variant:
    """The manifest's row of the setting's file; a file without a row is one more variant of the same model."""
    for variant in package.manifest.variants:
        if variant.file == setting.variant:
            return variant
    if setting.variant not in package.manifest.files:
        raise ModelError(f"the package has no file {setting.variant[:100]!r}")
    return Variant(file=setting.variant, precision=setting.precision)


def _real(array: NDArray[Any], tensor: TensorInfo) -> bool:
    return array.dtype.kind == "f" or tensor.quantisation is not None


def _picture(generator: np.random.Generator, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    waves = generator.uniform(1, 6, (2, channels))
    phase = generator.uniform(0, 6.28, channels)
    smooth = 127 + 90 * np.sin(6.28 * (rows * waves[0] + columns * waves[1]) + phase)
    noisy: NDArray[np.uint8] = np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    return noisy[:, :, 0] if channels == 1 else noisy


def _values(generator: np.random.Generator, tensor: TensorInfo) -> NDArray[Any]:
    shape = [1 if size is None else size for size in tensor.shape]
    if np.prod(shape, dtype=float) > _MAX_VALUES:
        raise ModelError(f'the input "{tensor.name}" is too large to be made up')
    if tensor.dtype == "bool":
        return generator.random(shape) < 0.5
    kind = np.dtype(tensor.dtype)
    if kind.kind == "f":
        return generator.random(shape).astype(kind)
    low = max(np.iinfo(kind).min, -128)
    return generator.integers(low, low + 256 if kind.itemsize == 1 else 2, shape, dtype=kind)


def save_answers(path: Path, answers: list[NDArray[np.float32]]) -> None:
    """Write the reference that other settings are compared with."""
    with path.open("wb") as file:
        np.savez(file, *answers)


def load_answers(path: Path) -> list[NDArray[np.float32]]:
    """Read a reference. Raises OSError or ValueError."""
    with np.load(path, allow_pickle=False) as stored:
        return [stored[f"arr_{index}"] for index in range(len(stored.files))]
