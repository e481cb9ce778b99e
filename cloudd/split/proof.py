"""Makes the halves of one cut and proves them: as they are, and with the features rounded as they are sent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudd.split.lineage import CutRecord
from edgekit.packages import Variant
from edgekit.runtimes import ModelError, Session, TensorInfo, open_session
from edgekit.runtimes.base import shape_text
from edgekit.splitting import features, halves
from edgekit.splitting.cuts import Cut
from edgekit.splitting.features import FeatureError
from edgekit.splitting.graph import Graph
from edgekit.splitting.halves import SplitError
from edgekit.splitting.profile import time_runs
from edgekit.vision.classification import Classifier
from edgekit.vision.model import files_beside, look_at_sample, picture_shape

_MADE_UP = 2
"""Pictures of noise, which reach values that samples do not."""
_MOST_SAMPLES = 16
_TIMED_S = 2.0
"""For the time of one model."""
_USUAL_SHARE = 80
"""Percentile of the samples' bytes that is promised: a large picture's share of a link is what counts."""

Feed = dict[str, NDArray[Any]]


@dataclass
class Sent:
    """Both halves as one session, with what crosses coded and decoded again. `sizes`: bytes of each frame."""

    head: Session
    tail: Session
    sizes: list[int] = field(default_factory=list)

    @property
    def inputs(self) -> list[TensorInfo]:
        return self.head.inputs

    @property
    def outputs(self) -> list[TensorInfo]:
        return self.tail.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See Session.run. Raises FeatureError for features that cannot be sent."""
        given = self.head.run(feeds)
        frame = features.encode({tensor.name: array for tensor, array in zip(self.head.outputs, given, strict=True)})
        self.sizes.append(len(frame))
        return self.tail.run(features.decode(frame, self.tail.inputs))

    def close(self) -> None:
        self.head.close()
        self.tail.close()


@dataclass(frozen=True)
class Proved:
    """A cut with its halves; `tail_ms` is the tail's time on this host."""

    record: CutRecord
    head: Path
    tail: Path
    tail_ms: float


@dataclass(frozen=True)
class Whole:
    """The whole model, opened and proved on its package's samples. `feeds`: first those of `samples` pictures."""

    model: Classifier
    feeds: Sequence[Feed]
    samples: int

    @classmethod
    def open(cls, model: Classifier) -> Whole:
        """Prepare the pictures. Raises ModelError if the model fails its own proof."""
        model.prove()
        package, name = model.package, model.session.inputs[0].name
        files = list(dict.fromkeys(one.file for one in package.manifest.samples))[:_MOST_SAMPLES]
        feeds = [{name: look_at_sample(package, file, model.tensor)} for file in files]
        size = picture_shape(package.manifest.input)
        for seed in range(_MADE_UP):
            noise = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
            feeds.append({name: model.image_tensor(noise)})
        return cls(model, feeds, len(files))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of its input, for `read_graph`."""
        return {name: array.shape for name, array in self.feeds[0].items()}

    def time_ms(self, clock: Callable[[], float]) -> float:
        """Of one run on this host."""
        return time_runs(lambda: self.model.session.run(self.feeds[0]), clock, clock() + _TIMED_S)


def prove(whole: Whole, graph: Graph, cut: Cut, folder: Path, clock: Callable[[], float] = time.perf_counter) -> Proved:
    """Make the halves of `cut` in `folder` and prove them.

    Raises SplitError, with the reason, for a cut that cannot be made, whose halves together are not the whole model,
    or that lets a sample of the package fail when its features are rounded as they are sent.
    """
    model, name = whole.model, f"c{cut.index}"
    head, tail = folder / f"{name}-head.onnx", folder / f"{name}-tail.onnx"
    package, variant = model.package, model.variant
    beside = files_beside(package, variant)
    difference = halves.make_halves(package.path(variant.file), graph, cut, head, tail, whole.feeds, beside)
    with closing(Sent(open_session(head, "onnxruntime"), open_session(tail, "onnxruntime"))) as sent:
        try:
            Classifier(package, Variant(file=head.name), sent).prove()
            sent.sizes.clear()
            sent_difference = max(_difference(whole, feed, sent) for feed in whole.feeds)
        except (ModelError, FeatureError) as error:
            raise SplitError(f"with the features as they are sent, {error}") from error
        usual = np.percentile(sent.sizes[: whole.samples], _USUAL_SHARE) if whole.samples else cut.wire_bytes
        crossing = {
            tensor.name: array for tensor, array in zip(sent.head.outputs, sent.head.run(whole.feeds[0]), strict=True)
        }
        tail_ms = time_runs(lambda: sent.tail.run(crossing), clock, clock() + _TIMED_S)
    return Proved(
        CutRecord(
            name=name,
            index=cut.index,
            tensors=[tensor.name for tensor in cut.tensors],
            shapes=[shape_text(tensor.shape) for tensor in cut.tensors],
            work=cut.work,
            wire_bytes=int(usual),
            difference=difference,
            sent_difference=sent_difference,
            head_sha256=hashlib.sha256(head.read_bytes()).hexdigest(),
            tail_sha256=hashlib.sha256(tail.read_bytes()).hexdigest(),
        ),
        head,
        tail,
        tail_ms,
    )


def _difference(whole: Whole, feed: Feed, sent: Sent) -> float:
    """max|sent - whole| / max|whole| over the outputs of floats."""
    worst = 0.0
    for expected, found in zip(whole.model.session.run(feed), sent.run(feed), strict=True):
        if expected.dtype.kind == "f" and expected.size and (scale := float(np.abs(expected).max())):
            gap = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
            worst = max(worst, float(gap) / scale)
    return worst
