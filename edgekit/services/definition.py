"""The tables of a service definition. Rules that span more than one key are in `checks`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.gates.filters import FilterParameters, Share
from edgekit.outputs import Output
from edgekit.regions.header import MAX_REGIONS
from edgekit.services.learning import Learning

NOTHING_LABEL = "nothing"
"""What the label of a detector's frame is when nothing is found in it, and what `decision` may call it."""

Text = Annotated[str, Meta(max_length=1024)]
Score = Annotated[float, Meta(gt=0.0, lt=1.0)]


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every table in a service definition."""


class Source(_Table, frozen=True, kw_only=True):
    """Where pictures come from. `http`: clients post them to /v1/services/NAME/inspect, and nothing else is needed.

    `folder` watches a directory. The others are cameras, read by a process of their own: `v4l2` a camera of this
    machine, `rtsp` and `mjpeg` one on the network, `replay` a recording, with its own timing.
    """

    kind: Literal["http", "folder", "v4l2", "rtsp", "mjpeg", "replay"] = "http"
    path: Text = ""  # absolute: the folder; /dev/videoN; the video file or folder of pictures to replay
    pattern: Text = "*"  # shell pattern for file names in the folder, watched or replayed
    after: Literal["keep", "move", "delete"] = "move"  # what happens to a file once its decision is durable
    settle_ms: Annotated[float, Meta(ge=0.0, le=60_000.0)] = 200.0  # a file unchanged for this long is complete
    url: Text = ""  # rtsp and mjpeg, without user and password
    credentials: Text = ""  # rtsp and mjpeg: absolute path of a file with USER:PASSWORD
    transport: Literal["tcp", "udp"] = "tcp"  # rtsp
    width: Annotated[int, Meta(ge=0, le=16_384)] = 0  # v4l2, pixels; 0: as the camera is set
    height: Annotated[int, Meta(ge=0, le=16_384)] = 0
    fps: Annotated[float, Meta(ge=0.0, le=240.0)] = 0.0  # cameras: at most so many pictures a second; 0: all
    silent_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = (
        5.0  # cameras: so long without a picture is a fault; 0: never
    )
    speed: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0  # replay: times the original
    repeat: bool = False  # replay: begin again at the end


CAMERAS = frozenset({"v4l2", "rtsp", "mjpeg", "replay"})
"""Kinds of source that a process of their own reads."""


class HardSamples(_Table, frozen=True, kw_only=True):
    """Which samples the cloud is asked about.

    `risk`: at most a share `risk` of the answers trusted at the edge differs from the cloud's, with `confidence`.
    `budget`: the hardest share `budget` of the samples is sent. `filter`: those that one of Sedna's filters calls hard.
    `off`: none.
    """

    mode: Literal["risk", "budget", "filter", "off"] = "risk"
    risk: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.02
    confidence: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.9
    budget: Share = 0.3
    filter: Text = ""  # a name in edgekit.gates.filters.FILTERS, with mode = "filter" only
    parameters: FilterParameters | None = None  # of the filter; None: Sedna's defaults
    answer_model: Text = ""  # name, or name@version, of the model on cloudd; needed unless nobody is asked
    calibration: Annotated[int, Meta(ge=20, le=1_000_000)] = 1000  # samples wanted before a certificate
    audit_share: Share = 0.03  # of the trusted samples, sent in the background to keep the certificate honest
    wait_ms: Annotated[float, Meta(ge=0.0, le=600_000.0)] | None = (
        None  # longest wait for the cloud; None: the deadline
    )

    @property
    def asks(self) -> bool:
        """Whether there is any sample that the cloud would be asked about."""
        return self.mode != "off" and not (self.mode == "filter" and self.filter == "EdgeOnly")


class Tiles(_Table, frozen=True, kw_only=True):
    """Look at the picture piece by piece and make one answer of the pieces' answers.

    `worst`: the picture gets the worst label that a tile got, by the order in `worst`. `mean`: the label that is
    likeliest by the mean of the tiles' probabilities.
    """

    width: Annotated[int, Meta(ge=8, le=16_384)]  # pixels of the picture
    height: Annotated[int, Meta(ge=8, le=16_384)]
    overlap: Annotated[int, Meta(ge=0, le=16_383)] = 0  # pixels that neighbours share
    aggregate: Literal["worst", "mean"] = "worst"
    worst: list[str] = []  # labels, the worst first; those that are not named come after them, in the model's order


class Pipeline(_Table, frozen=True, kw_only=True):
    """What of a picture the model sees, before its package's own preparation."""

    roi: list[float] = []  # left, top, right, bottom of the region of interest; empty: the whole picture
    roi_unit: Literal["fraction", "pixel"] = "fraction"  # of width and height, or pixels of the picture as it came
    tiles: Tiles | None = None


VerdictWord = Literal["pass", "fail", "review"]


class DecisionRules(_Table, frozen=True, kw_only=True):
    """What a label means for the line: pass, fail, or let a person look."""

    passes: list[str] = msgspec.field(default_factory=list, name="pass")
    fail: list[str] = []
    min_score: Share = 0.0  # an answer with less is for review, whatever its label
    min_margin: Share = 0.0

    def verdict(self, label: str, score: float, margin: float) -> VerdictWord:
        """What becomes of a sample with this final answer; a label in neither list is for review."""
        if score < self.min_score or margin < self.min_margin:
            return "review"
        return "pass" if label in self.passes else "fail" if label in self.fail else "review"


class Detection(_Table, frozen=True, kw_only=True):
    """From which score on a box of the model counts as found; the others are only there to be asked about."""

    threshold: Score | None = None  # None: as the model's package says
    thresholds: dict[str, Score] = {}  # by label, instead of `threshold`


class RegionGroup(_Table, frozen=True, kw_only=True):
    """Labels with a risk of their own: at most a share `risk` of the regions *to which the edge gives one of them* is
    answered here and differs."""

    name: Text
    labels: list[str] = []  # of the edge's model; empty: all that no other group names, and nothing found at all
    risk: Annotated[float, Meta(gt=0.0, lt=1.0)]


class Regions(_Table, frozen=True, kw_only=True):
    """Send the doubtful parts of a picture instead of the whole: tiles of `pipeline.tiles`, or a detector's boxes.

    Each is a sample of the gate, so `hard_samples` speaks of regions where it says samples.
    """

    clean: Text = ""  # classification: the label of a tile without a defect
    most: Annotated[int, Meta(ge=1, le=MAX_REGIONS)] = 64  # regions of a frame about which the gate is asked
    context: Annotated[float, Meta(ge=0.0, le=4.0)] = 0.25  # detection: share of a box's sides added on each side
    silent: Share = 0.02  # detection: share of the frames without any candidate that are looked at all the same
    quality: Annotated[int, Meta(ge=1, le=100)] = 90  # of the JPEG in which the regions travel
    groups: list[RegionGroup] = []  # mode "risk" only; empty: `hard_samples.risk` for all regions together


class Split(_Table, frozen=True, kw_only=True):
    """The device runs the first part of the answer model itself, and features leave it instead of the picture."""

    heads: Text  # name, or name@version, of the head package that `cloudd split` made of the answer model


class Gallery(_Table, frozen=True, kw_only=True):
    """When an enrolled identity counts as recognised.

    The threshold is the cosine that strangers exceed at a certified rate only (`edgekit.heads.unknown`), found by the
    device with its own gallery; `threshold` fixes it instead.
    """

    false_accept_rate: Score = 0.01  # of strangers that are taken for somebody
    confidence: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.9  # with which the rate holds
    threshold: Score | None = None  # None: certified, or what the package or the gallery suggests until it can be


class Samples(_Table, frozen=True, kw_only=True):
    """Which pictures stay on the device for learning. They never leave by themselves.

    `asked`: those about which the cloud was asked or differs, those that `decision` leaves to a person, and a share
    `random` of all others. `all`: every one.
    """

    keep: Literal["asked", "none", "all"] = "asked"
    random: Share = 0.01  # with "asked": of the pictures that the edge was trusted with
    quota_mb: Annotated[int, Meta(ge=1, le=16_777_216)] = 1024
    count: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    days: Annotated[float, Meta(gt=0.0, le=3650.0)] = 365.0  # what a dataset version names stays longer


class Retention(_Table, frozen=True, kw_only=True):
    """How long things are kept."""

    spool_days: Annotated[float, Meta(gt=0.0, le=3650.0)] = 30.0  # samples waiting for the link


class Service(_Table, frozen=True, kw_only=True):
    """One running inspection: a task, a model, a source and its policies."""

    name: str
    task: Literal["classification", "detection", "anomaly", "embedding"] = "classification"
    model: str  # name, or name@version
    priority: Literal["alarm", "inline", "audit"] = "inline"
    deadline_ms: Annotated[float, Meta(gt=0.0, le=600_000.0)] = 300.0
    source: Source = Source()
    # A service without this table asks nobody; one that has the table is calibrated for risk unless it says otherwise.
    hard_samples: HardSamples = HardSamples(mode="off")
    may_leave: Literal["raw", "features", "nothing"] = "raw"
    # What the device's hardware is chosen for, and by which the way of asked samples to the cloud is.
    objective: Literal["latency", "throughput", "efficiency"] = "latency"
    outputs: list[Output] = []
    retention: Retention = Retention()
    # A service without this table keeps no pictures; one that has it keeps those that a label would teach most from.
    samples: Samples = Samples(keep="none")
    pipeline: Pipeline | None = None  # None: the whole picture
    decision: DecisionRules | None = None  # None: labels only, no verdict
    detection: Detection | None = None  # detection only; None: as the model's package says
    regions: Regions | None = None  # None: the whole picture is sent
    split: Split | None = None  # None: the answer model's head is not on this device
    learning: Learning | None = None  # None: its model stays as it is
    gallery: Gallery | None = None  # embedding only; None: its defaults
