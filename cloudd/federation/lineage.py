"""Where a merged model comes from, and what the process that packs it is told and tells."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudd.derived import Source
from cloudd.federation.store import FiguresRecord
from edgekit.messages import FileEntry
from edgekit.messages.federation import LocalTraining

FOLDER = "federated"
LINEAGE = f"{FOLDER}/lineage.json"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the model was taught by."""

    name: str
    id: str
    service: str
    plan: msgspec.Raw
    local: LocalTraining
    secure: bool
    sums: int  # published
    least: int  # devices of each sum, at least
    rosters: tuple[FileEntry, ...]
    upper: str = ""  # of a site's job: id of the job between sites, whose sums these are


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of LINEAGE. It holds no time and no place."""

    schema: Literal[1] = 1
    source: Source
    job: Job
    state: str  # digest of the last state, which every device that held it can compute
    personal: tuple[str, ...]  # tensors that stayed on the devices
    figures: FiguresRecord | None  # of the last evaluation, over all devices
    tools: dict[str, str]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of what. Paths are absolute."""

    base: str  # the base's package
    plan: str  # the folder of the train step
    tensors: str  # safetensors of the merged ones
    out: str  # gets NAME@VERSION
    name: str
    version: str
    job: Job
    state: str
    personal: tuple[str, ...] = ()
    figures: FiguresRecord | None = None
    labels: tuple[str, ...] = ()  # of the merged model; (): the base's


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it, on stdout."""

    directory: str = ""
    error: str = ""
