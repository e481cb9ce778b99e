"""What a model is to answer, and whether an answer fits that; needs neither model nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.messages import FeaturesHeader, HardSample, ModelAnswer
from edgekit.packages import PackageError, split_ref
from edgekit.regions.header import Cell, MosaicHeader, RegionError, Size, check_answer, check_header
from edgekit.services import Pipeline
from edgekit.vision.sniff import sniff

MAX_TEXT = 200
"""Characters of a label or a name in a sample."""
PART = 16
"""Regions of a mosaic that may take as much time as one picture."""


@dataclass(frozen=True)
class Look:
    """The whole picture, a part of it, the cells of a mosaic, or features; see edgekit.messages.HardSample."""

    pipeline: Pipeline | None = None
    mosaic: MosaicHeader | None = None
    clean: str = ""
    features: FeaturesHeader | None = None

    @property
    def cut(self) -> str:
        """The cut of a tail package that is to answer, "" for pictures."""
        return self.features.cut if self.features is not None else ""

    @property
    def kind(self) -> str:
        """Looks of one kind take a model about as long as each other, for each of `pictures`."""
        return "regions" if self.mosaic is not None else self.cut

    @property
    def pictures(self) -> int:
        """As how many pictures this counts where time is limited."""
        return 1 if self.mosaic is None else -(-len(self.mosaic.regions()) // PART)


WHOLE = Look()


def whole_frame(size: Size) -> MosaicHeader:
    """The header that the boxes of a whole picture belong to: one cell without a question."""
    return MosaicHeader(frame=size, size=size, cells=[Cell(place=(0, 0, *size), box=(0, 0, *size), regions=[])])


def check_mosaic(sample: HardSample, size: Size) -> None:
    """Raise RegionError if the sample's mosaic cannot be looked at. `size`: of its picture, as its header says."""
    mosaic = sample.mosaic
    if mosaic is None:
        return
    if sample.pipeline is not None:
        raise RegionError("it has a pipeline, which belongs to whole pictures")
    labels = (sample.clean, *(region.label for region in mosaic.regions()))
    if not all(len(label) <= MAX_TEXT and label.isprintable() for label in labels):
        raise RegionError(f"labels of regions have up to {MAX_TEXT} printable characters")
    check_header(mosaic)
    if size != mosaic.size:
        raise RegionError(f"the picture has {size[0]}x{size[1]} pixels, its header says {mosaic.size}")


def check_features(sample: HardSample) -> None:
    """Raise PackageError if the sample's features name no tail, RegionError if it says more than features can be."""
    wanted = sample.features
    if wanted is None:
        return
    if sample.pipeline is not None or sample.mosaic is not None:
        raise RegionError("it has a pipeline or a mosaic, which belong to pictures")
    if not 0 < len(wanted.cut) <= MAX_TEXT or not wanted.cut.isprintable():
        raise RegionError(f"the name of a cut has 1 to {MAX_TEXT} printable characters")
    if split_ref(wanted.tail, key="features.tail")[1] is None:
        raise PackageError(f'"features.tail" is "{wanted.tail}", without the version; a head fits one tail only')


def check_fit(answer: ModelAnswer, look: Look, picture: bytes) -> None:
    """Raise RegionError if a worker's answer is not about what it was asked. Errors are always about that."""
    if answer.verdict is None:
        return
    if look.mosaic is None:
        if answer.mosaic is None and not answer.differing:
            return
        if look.features is not None:
            raise RegionError("the answer worker answered something else")
        info = sniff(picture)
        header, tasks = whole_frame((info.width, info.height)), {"detection"}
    else:
        header, tasks = look.mosaic, {"detection", "classification"}
    if answer.mosaic is None or answer.mosaic.task not in tasks:
        raise RegionError("the answer worker answered something else")
    check_answer(header, answer.mosaic)
    if not {region.index for region in header.regions()}.issuperset(answer.differing):
        raise RegionError("the answer worker answered regions that were not asked")
