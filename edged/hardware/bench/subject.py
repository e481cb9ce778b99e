"""One model in one setting, with something to feed it: the package's own pictures, else made-up ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.hardware.bench.answers import MAX_BOXES, Answers
from edged.hardware.settings import Setting
from edgekit.packages import Package, Variant
from edgekit.runtimes import ModelError, Session, TensorInfo, open_session
from edgekit.runtimes.base import dequantise
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import ImageError, decode
from edgekit.vision.model import declared_input, files_beside
from edgekit.vision.preprocess import check_input, prepare, reduced_size

Feeds = dict[str, NDArray[Any]]
Picture = NDArray[np.uint8]
_SORTED = ("yolov10",)
"""Heads of models that sort and suppress their boxes themselves."""
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
        self.vision = self._vision()
        self._samples = samples
        self.feeds: list[Feeds] = [self._feed(picture) for picture in self._pictures()] or self._made_up()

    def run(self, feeds: Feeds) -> list[NDArray[Any]]:
        return self.session.run(feeds)

    def answers(self) -> Answers:
        """What the model says to every feed. Raises ModelError for NaN, infinity or integers without scale."""
        found = []
        for feeds in self.feeds:
            for array, tensor in zip(self.session.run(feeds), self.session.outputs, strict=True):
                values = dequantise(array, tensor) if _real(array, tensor) else array.astype(np.float32)
                if not np.isfinite(values).all():
                    raise ModelError("the model gives values that are not numbers (NaN or infinity)")
                found.append(values.reshape(-1))
        if not isinstance(self.vision, Detector):
            return Answers(found)
        detector = _before_suppression(self.vision)
        boxes = [detector.detect_image(picture) for picture in self._pictures()]
        return Answers([] if detector.spec.head in _SORTED else found, boxes)

    def close(self) -> None:
        self.session.close()

    def _vision(self) -> Classifier | Detector | None:
        manifest = self.package.manifest
        if manifest.task == "detection":
            return Detector(self.package, self.variant, self.session)
        if manifest.task != "classification" or manifest.output.kind == "none":
            return None
        return Classifier(self.package, self.variant, self.session)

    def _pictures(self) -> Iterator[Picture]:
        """The package's own, else made-up ones; none for a model that takes no pictures."""
        spec = self.package.manifest.input
        manifest = self.package.manifest
        files = dict.fromkeys(sample.file for sample in manifest.samples)
        takes_pictures = self.vision is not None or manifest.anomaly is not None or manifest.embedding is not None
        if takes_pictures and files:
            for file in list(files)[: self._samples]:
                try:
                    data = self.package.path(file).read_bytes()
                    yield decode(data, spec.colour, reduce_to=reduced_size(spec))
                except (ImageError, OSError) as error:
                    raise ModelError(f"the sample {file} cannot be used: {error}") from error
            return
        if len(self.session.inputs) != 1:
            return
        try:
            check_input(spec, self.session.inputs[0])
        except ModelError:
            return  # the package describes no picture: the tensors alone say what fits
        generator = np.random.default_rng(_SEED)
        for _ in range(_SYNTHETIC):
            yield _picture(generator, spec.height, spec.width, 1 if spec.colour == "grey" else 3)

    def _feed(self, picture: Picture) -> Feeds:
        (tensor,) = self.session.inputs
        return {tensor.name: prepare(picture, self.package.manifest.input, tensor)}

    def _made_up(self) -> list[Feeds]:
        """Values by type alone."""
        generator = np.random.default_rng(_SEED)
        return [{tensor.name: _values(generator, tensor) for tensor in self.session.inputs} for _ in range(_SYNTHETIC)]


def _before_suppression(detector: Detector) -> Detector:
    """The same, but it keeps repeated boxes: which of two is suppressed may hang on the last digit of a score."""
    spec = msgspec.structs.replace(detector.spec, nms_iou=1.0, max_candidates=MAX_BOXES, max_detections=MAX_BOXES)
    manifest = msgspec.structs.replace(detector.package.manifest, detection=spec)
    return Detector(replace(detector.package, manifest=manifest), detector.variant, detector.session)


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
