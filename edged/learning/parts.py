"""What learning needs of the rest of the supervisor."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from edged.desired import Entry
from edged.health import Health
from edged.models import ModelStore
from edged.plan import Choice
from edged.samples.desk import SampleDesk
from edgekit.messages import ServiceReport
from edgekit.messages.worker import ToWorker

LOOK_S = 5.0
LABELS_S = 30.0
"""How often labels are counted: that reads every row."""
MAX_LOG = 1000
"""Records of each service that are kept."""
SAVE_S = 60.0
"""What only counts up is stored this often: flash wears out."""


def train_command() -> list[str]:
    """The command line of `edged.train`. -P keeps the working directory out of the module path."""
    return [sys.executable, "-P", "-m", "edged.train"]


class Runs(Protocol):
    """What is needed of the runner."""

    def changed(self) -> None: ...
    def swap(self) -> None: ...
    def send(self, message: ToWorker) -> bool: ...


class Standing(Protocol):
    """What is asked about that which runs."""

    @property
    def planned(self) -> Mapping[str, Choice]: ...
    def running(self, name: str) -> Choice | None: ...
    def reports(self) -> list[ServiceReport]: ...


class Cloudd(NamedTuple):
    """The cloudd that this device has joined."""

    url: str  # https://host:port
    identity: str  # directory with key.pem, certificate.pem, authority.pem; "" before it has joined


@dataclass(frozen=True)
class Parts:
    """`entries` blocks; the rest is asked in the event loop."""

    state_dir: Path
    empty: Path
    """Where training processes run: nothing that a hostile model names relative to it exists there."""
    entries: Callable[[], list[Entry]]
    models: ModelStore
    samples: SampleDesk
    runs: Runs
    standing: Standing
    health: Health
    device_id: Callable[[], str]
    link_up: Callable[[], bool]
    settling: Callable[[str], bool] = lambda ref: False
    """Whether it is still being measured how this model (name@version) runs best."""
    cloudd: Callable[[], Cloudd] = lambda: Cloudd("", "")
    served: Callable[[], frozenset[str]] = frozenset
    """name@version of what runs without a service."""
    threads: int = 1
    """Of a training process."""
    command: Callable[[], Sequence[str]] = train_command
    wall: Callable[[], float] = time.time
    """Seconds of a clock that goes on over restarts."""
    look_s: float = LOOK_S
    labels_s: float = LABELS_S


class Reserved(NamedTuple):
    """What a candidate that is made elsewhere must be called, and what decides now."""

    name: str
    version: str
    base_ref: str  # name@version
    base: Path  # its directory
