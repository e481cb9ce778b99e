"""The service definition: what a user wants to run, as one strict TOML file.

    name = "solder"
    model = "solder-small"            # newest installed version, or "solder-small@1.2.0"

    [hard_samples]
    answer_model = "solder-large"     # what cloudd answers with

Everything else has a default. An unknown key, a wrong type or a value out of range is an error that names the key and
what is allowed; nothing is guessed and nothing is ignored.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from edgekit import toml
from edgekit.gates.filters import FILTERS, FilterParameters, Share
from edgekit.outputs import Output, check_outputs
from edgekit.packages.manifest import PackageError, split_ref

MAX_SERVICE = 65_536
"""Bytes of one service definition."""

MAX_RULE_BYTES = 4096
"""UTF-8 of the labels in one list of a definition; the list of tiles goes to cloudd with every hard sample."""
MAX_SHOWN_LABELS = 12
"""Labels of a model that an error names."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAME_RULE = "use 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit"

Text = Annotated[str, Meta(max_length=1024)]


class ServiceError(ValueError):
    """The service definition cannot be used; the message says which key, why, and what is allowed."""


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


class Retention(_Table, frozen=True, kw_only=True):
    """How long things are kept."""

    spool_days: Annotated[float, Meta(gt=0.0, le=3650.0)] = 30.0  # samples waiting for the link


class Service(_Table, frozen=True, kw_only=True):
    """One running inspection: a task, a model, a source and its policies."""

    name: str
    task: Literal["classification"] = "classification"
    model: str  # name, or name@version
    priority: Literal["alarm", "inline", "audit"] = "inline"
    deadline_ms: Annotated[float, Meta(gt=0.0, le=600_000.0)] = 300.0
    source: Source = Source()
    # A service without this table asks nobody; one that has the table is calibrated for risk unless it says otherwise.
    hard_samples: HardSamples = HardSamples(mode="off")
    may_leave: Literal["raw", "nothing"] = "raw"
    objective: Literal["latency", "throughput", "efficiency"] = "latency"  # what the device's hardware is chosen for
    outputs: list[Output] = []
    retention: Retention = Retention()
    pipeline: Pipeline | None = None  # None: the whole picture
    decision: DecisionRules | None = None  # None: labels only, no verdict


def parse_service(text: str, origin: str) -> Service:
    """Read one definition; `origin` (a file name, "cloudd") appears in every error. Raises ServiceError."""
    name = ""
    try:
        table = toml.read(text.encode("utf-8", "surrogatepass"), MAX_SERVICE)
        name = table["name"] if isinstance(table.get("name"), str) else ""
        if table.get("may_leave") == "features":
            raise toml.TomlError(
                '"may_leave" is "features"', 'that needs split inference and is reserved; use "raw" or "nothing"'
            )
        service = toml.convert(table, Service)
        _check(service)
    except toml.TomlError as error:
        raise ServiceError(error.at(f"service {toml.show(name)} ({origin})" if name else origin)) from None
    except PackageError as error:
        raise ServiceError(f"service {toml.show(name)} ({origin}): {error}") from None
    return service


def dump_service(service: Service) -> str:
    """The definition as TOML text; `parse_service` reads it back to an equal Service."""
    return toml.dump(service)


def _check(service: Service) -> None:
    """Rules that span more than one key, or that a type cannot say. Raises TomlError or PackageError."""
    if not _NAME.fullmatch(service.name):
        raise toml.TomlError(f'"name" is {toml.show(service.name)}', _NAME_RULE)
    split_ref(service.model, key="model")
    hard = service.hard_samples
    _check_filter(hard)
    if hard.asks:
        if not hard.answer_model:
            raise toml.TomlError(
                '"hard_samples.answer_model" is missing',
                'name the model that cloudd answers with, or set hard_samples.mode = "off"',
            )
        split_ref(hard.answer_model, key="hard_samples.answer_model")
    _check_source(service.source)
    if service.pipeline is not None:
        check_pipeline(service.pipeline)
    if service.decision is not None:
        _check_decision(service.decision)
    check_outputs(service.outputs)


def _check_filter(hard: HardSamples) -> None:
    """The filter has a name that Sedna knows, and only its own parameters."""
    given = hard.parameters.given() if hard.parameters is not None else {}
    if hard.mode != "filter":
        for key, there in (("filter", bool(hard.filter)), ("parameters", hard.parameters is not None)):
            if there:
                raise toml.TomlError(f'"hard_samples.{key}" is set', 'it belongs to hard_samples.mode = "filter" only')
        return
    if hard.filter not in FILTERS:
        lower = {name.lower(): name for name in FILTERS}
        near = difflib.get_close_matches(hard.filter.lower(), lower, n=1)
        what = f"is {toml.show(hard.filter)}" if hard.filter else "is missing"
        known = ", ".join(f'"{name}"' for name in FILTERS)
        advice = f'did you mean "{lower[near[0]]}"?' if near else f"one of {known} belongs there"
        raise toml.TomlError(f'"hard_samples.filter" {what}', advice)
    for key in given:
        if key in FILTERS[hard.filter]:
            continue
        owner = next(name for name, parameters in FILTERS.items() if key in parameters)
        mine = " and ".join(FILTERS[hard.filter]) or "no parameters"
        raise toml.TomlError(
            f'"hard_samples.parameters.{key}" is set', f'it belongs to the filter "{owner}"; "{hard.filter}" has {mine}'
        )


_SOURCE_KEYS = {
    "path": ("folder", "v4l2", "replay"),
    "url": ("rtsp", "mjpeg"),
    "credentials": ("rtsp", "mjpeg"),
    "transport": ("rtsp",),
    "width": ("v4l2",),
    "height": ("v4l2",),
    "fps": ("v4l2", "rtsp", "mjpeg", "replay"),
    "silent_s": ("v4l2", "rtsp", "mjpeg"),
    "speed": ("replay",),
    "repeat": ("replay",),
}
"""Which kinds of source have a key; the others have all kinds, and ignore them where they mean nothing."""
_DEVICE = re.compile(r"/dev/video\d{1,3}|/dev/v4l/by-(?:id|path)/[A-Za-z0-9._:+-]{1,200}")
_SCHEMES = {"rtsp": ("rtsp", "rtsps"), "mjpeg": ("http", "https")}


def _check_source(source: Source) -> None:
    default = Source()
    for key, kinds in _SOURCE_KEYS.items():
        if source.kind not in kinds and getattr(source, key) != getattr(default, key):
            only = " or ".join(f'"{kind}"' for kind in kinds)
            raise toml.TomlError(f'"source.{key}" is set', f"it belongs to source.kind = {only} only")
    if "path" in _keys_of(source.kind):
        _check_path("source.path", source.path)
    if not source.pattern or "/" in source.pattern or "\0" in source.pattern:
        raise toml.TomlError(f'"source.pattern" is {toml.show(source.pattern)}', "a file name pattern belongs there")
    if source.kind == "v4l2" and not _DEVICE.fullmatch(source.path):
        raise toml.TomlError(
            f'"source.path" is {toml.show(source.path)}',
            "a camera like /dev/video0 or /dev/v4l/by-id/... belongs there",
        )
    if bool(source.width) != bool(source.height):
        raise toml.TomlError('"source.width" and "source.height" belong together', "set both or neither")
    if source.kind in _SCHEMES:
        _check_url(source)
        if source.credentials:
            _check_path("source.credentials", source.credentials)


def _keys_of(kind: str) -> list[str]:
    return [key for key, kinds in _SOURCE_KEYS.items() if kind in kinds]


def _check_url(source: Source) -> None:
    """Nothing that is not printable ASCII: the URL goes to foreign parsers, and into messages."""
    schemes = _SCHEMES[source.kind]
    wanted = f"a URL like {schemes[0]}://10.0.0.9/stream belongs there"
    found = f'"source.url" is {toml.show(_without_user(source.url))}'
    if not all("!" <= character <= "~" for character in source.url):
        raise toml.TomlError(found, wanted)
    try:
        parts = urlsplit(source.url)
        known = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise toml.TomlError(found, wanted)
    if "@" in parts.netloc:
        raise toml.TomlError(
            '"source.url" has a user in it', "put USER:PASSWORD into a file and name that in source.credentials"
        )


def place(source: Source) -> str:
    """Where the pictures come from, for people: without the query of a URL, which often holds a password."""
    if source.kind in _SCHEMES:
        address = source.url.partition("?")[0].partition("#")[0]
        return address if source.kind == "rtsp" else f"{source.kind} {address}"
    return f"{source.kind} {source.path}".strip()


def _without_user(url: str) -> str:
    """For messages: what stands before an @ may be a password."""
    return re.sub(r"(?<=//)[^/]*@", "", url)


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise TomlError for a pipeline that no picture could go through."""
    roi, tiles = pipeline.roi, pipeline.tiles
    if roi:
        whole = pipeline.roi_unit == "pixel"
        inside = all(value.is_integer() if whole else value <= 1.0 for value in map(float, roi))
        ordered = len(roi) == 4 and 0 <= roi[0] < roi[2] and 0 <= roi[1] < roi[3]
        if not (inside and ordered):
            unit = "whole pixels" if whole else 'fractions from 0 to 1 (or pixels, with roi_unit = "pixel")'
            raise toml.TomlError(
                f'"pipeline.roi" is {roi}',
                f"left, top, right and bottom belong there, left < right, top < bottom, in {unit}",
            )
    if tiles is None:
        return
    if tiles.overlap >= min(tiles.width, tiles.height):
        raise toml.TomlError(
            f'"pipeline.tiles.overlap" is {tiles.overlap}',
            f"tiles of {tiles.width}x{tiles.height} must overlap by less",
        )
    if tiles.aggregate == "worst" and not tiles.worst:
        raise toml.TomlError(
            '"pipeline.tiles.worst" is missing',
            'list the labels of the model, the worst first, or set pipeline.tiles.aggregate = "mean"',
        )
    _check_labels("pipeline.tiles.worst", tiles.worst)


def _check_decision(rules: DecisionRules) -> None:
    if not rules.passes and not rules.fail:
        raise toml.TomlError('"decision" names no label', "list labels under decision.pass, decision.fail or both")
    _check_labels("decision.pass", rules.passes)
    _check_labels("decision.fail", rules.fail)
    both = [label for label in rules.passes if label in rules.fail]
    if both:
        raise toml.TomlError(
            f'"decision" has {toml.show(both[0])} under pass and under fail', "a label means one thing"
        )


def _check_labels(key: str, labels: list[str]) -> None:
    if sum(len(label.encode("utf-8", "replace")) for label in labels) > MAX_RULE_BYTES:
        raise toml.TomlError(f'"{key}" is too long', f"labels of at most {MAX_RULE_BYTES} bytes together belong there")
    twice = [label for index, label in enumerate(labels) if label in labels[:index]]
    if twice:
        raise toml.TomlError(f'"{key}" has {toml.show(twice[0])} twice', "each label belongs there once")


def label_problem(service: Service, labels: Sequence[str]) -> str:
    """Why the service's rules do not fit a model with these `labels`, without a full stop; "" if they do."""
    if service.hard_samples.filter == "CrossEntropy" and len(labels) < 2:
        return '"hard_samples.filter" is "CrossEntropy", which compares classes, and the model has only one'
    tiles = service.pipeline.tiles if service.pipeline is not None else None
    rules = service.decision
    named = [("pipeline.tiles.worst", tiles.worst)] if tiles is not None else []
    if rules is not None:
        named += [("decision.pass", rules.passes), ("decision.fail", rules.fail)]
    for key, wanted in named:
        for label in wanted:
            if label not in labels:
                known = ", ".join(labels[:MAX_SHOWN_LABELS]) + (", ..." if len(labels) > MAX_SHOWN_LABELS else "")
                return f'"{key}" names {toml.show(label)}, which the model does not know; its labels are {known}'
    return ""


def _check_path(key: str, path: str) -> None:
    """A worker runs in an empty directory, so a relative path would mean nothing to it."""
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise toml.TomlError(f'"{key}" is {toml.show(path)}', 'an absolute path without ".." belongs there')
