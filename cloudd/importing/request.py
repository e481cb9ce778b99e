"""What is asked of an import, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from cloudd.importing.bring import Wanted, values_of
from cloudd.importing.description import Wishes
from cloudd.importing.errors import ImportRefused
from cloudd.importing.kinds import Kind
from cloudd.importing.lineage import Foreign, Lineage
from edgekit.packages import InputSpec, tree
from edgekit.packages.manifest import MAX_SIDE
from edgekit.runtimes import TensorInfo

OtherTask = Literal["", "embedding", "anomaly"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is imported, and what the user says of it. `input`, `output` and `detection` are keys of package.toml."""

    source: Path
    name: str
    version: str = "1"
    out: Path
    labels: tuple[str, ...] = ()  # in the order of the outputs; (): as the file says
    pictures: Path | None = None  # None: nothing proves the package
    group: str = ""
    normalise: str = ""
    input: Wishes = field(default_factory=dict)
    output: Wishes = field(default_factory=dict)
    detection: Wishes | None = None  # None: no detector
    task: OtherTask = ""  # "": a classifier, or a detector
    good: str = ""  # anomaly: the label of good parts; "": all pictures show good ones
    false_alarms: float = 0.05  # anomaly: share of good parts that may be called anomalous
    python: str = ""  # interpreter with PyTorch or TensorFlow
    checkpoint: Path | None = None  # the same network un-folded, for devices to learn on


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    model: str  # name@version
    package: str  # its directory
    bytes: int  # of the model and what lies beside it
    labels: int
    samples: int
    input: InputSpec
    lineage: Lineage


def check_request(request: Request) -> None:
    """Raises ImportRefused for wishes that do not go together."""
    task = request.task
    if task and request.detection is not None:
        raise ImportRefused(f"--task {task} and --detection are two tasks; say one of them")
    if task and request.checkpoint is not None:
        raise ImportRefused(f"--checkpoint is for devices to learn on, and no {task} model learns on a device")
    if task == "embedding" and request.labels:
        raise ImportRefused("--labels: an embedding model has none; the gallery on the device knows the identities")
    if task == "anomaly" and len(request.labels) not in (0, 2):
        raise ImportRefused(f"--labels has {len(request.labels)}; two belong there, of a good part and of any other")
    if task == "anomaly" and request.pictures is None:
        raise ImportRefused(
            "from which score on a part is anomalous is learned from good parts that the model has not seen; bring "
            "some with --pictures"
        )
    if task != "anomaly" and request.good:
        raise ImportRefused("--good belongs to --task anomaly")
    if not 0.0 < request.false_alarms < 0.5:
        raise ImportRefused(f"--false-alarms {request.false_alarms:g}: a share above 0 and below 0.5 belongs there")


def wanted_of(request: Request) -> Wanted:
    """What the user says that a road needs. Raises ImportRefused."""
    width, height = (request.input.get(key) for key in ("width", "height"))
    size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    if size is not None and not all(0 < side <= MAX_SIDE for side in size):
        raise ImportRefused(f"--input width={width} height={height}: 1 to {MAX_SIDE} pixels are allowed")

    def choose(outputs: Sequence[TensorInfo]) -> str:
        """The output whose ending may go: the one that the user names, the only one, or the only one that fits."""
        if request.detection is not None or request.task:
            return ""
        if name := request.output.get("name"):
            return str(name)
        fitting = [one for one in outputs if len(outputs) == 1 or values_of(one) == len(request.labels)]
        return fitting[0].name if len(fitting) == 1 else ""

    channels, logit = 1 if request.input.get("colour") == "grey" else 3, request.output.get("kind") == "logits"
    return Wanted(size, channels, request.python, choose, len(request.labels), logit)


def sized(tensor: TensorInfo, spec: InputSpec) -> TensorInfo:
    """The input with a batch of one and the package's size."""
    planar = spec.layout == "nchw"
    wanted = (1, None, spec.height, spec.width) if planar else (1, spec.height, spec.width, None)
    shape = tuple(size if size is not None else have for size, have in zip(wanted, tensor.shape, strict=True))
    return replace(tensor, shape=shape)


def foreign_of(source: Path, kind: Kind) -> Foreign:
    """The record of a file; of a directory, over the names and hashes of its files."""
    if kind != "saved_model":
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Foreign(file=source.name, kind=kind, sha256=digest, bytes=source.stat().st_size)
    total, size = hashlib.sha256(), 0
    with tree.open_root(source) as root:
        for path in tree.list_files(root):
            with tree.open_file(root, path) as (descriptor, count):
                total.update(f"{path}\0{tree.digest_file(descriptor)[0]}\n".encode())
            size += count
    return Foreign(file=source.name, kind=kind, sha256=total.hexdigest(), bytes=size)
