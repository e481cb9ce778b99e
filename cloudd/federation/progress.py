"""The state that every device of a job holds too: first values, published sums, and nothing else.

The newest state is also kept in a file, so that a restart need not apply all sums again; it is only a shortcut.
Blocking: for threads.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloudd.federation.files import PLAN_FOLDER
from cloudd.federation.store import FiguresRecord
from edgekit import atomic, tensors
from edgekit.federated.errors import FederatedError
from edgekit.federated.opening import open_rules
from edgekit.federated.rounds import CohortSum, JobRules
from edgekit.federated.strategy import State
from edgekit.federated.tiers import moving_rules
from edgekit.messages.federation import FederatedJob

log = logging.getLogger("cloudd.federation")

_FILE = re.compile(r"state-(\d{1,9})\.safetensors")
_MAX_BYTES = 16 << 30
_KEEP_EVERY = 10


class Progress:
    """Of one job, whose files `folder` holds in PLAN_FOLDER. Raises FederatedError, AutodiffError, OSError."""

    def __init__(self, job: FederatedJob, folder: Path) -> None:
        self._folder = folder
        self.rules, first = open_rules(job, folder / PLAN_FOLDER)
        self._set(self._kept() or first)

    state: State
    digest: bytes
    """Of the state."""
    _ahead: tuple[State, bytes] | None = None
    """The newest state that was worked out, with its digest."""
    _moving_digest: tuple[State, bytes] | None = None

    @functools.cached_property
    def moving(self) -> JobRules:
        """The rules whose sums move the state: of a site's job the upper job's. Raises FederatedError."""
        return moving_rules(self.rules)

    def moving_digest(self) -> bytes:
        """Of the state, as the rounds of the upper job name it; of a job in one tier `digest`."""
        if self.moving is self.rules:
            return self.digest
        state, kept = self.state, self._moving_digest
        if kept is None or kept[0] is not state:
            kept = self._moving_digest = state, self.moving.digest(state)
        return kept[1]

    @property
    def version(self) -> int:
        """Sums applied."""
        return self.state.version

    def after(self, sums: Sequence[CohortSum]) -> tuple[State, float]:
        """The next state, and the norm of the change. The job still holds the present one. Raises FederatedError."""
        following = self.moving.apply(self.state, sums)
        total, block = 0.0, 1 << 20
        for start in range(0, following.model.size, block):
            part = following.model[start : start + block] - self.state.model[start : start + block]
            if part.dtype != np.float32:  # a head's whole numbers
                part = part.astype(np.float64)
            total += float(np.dot(part, part))
        if not math.isfinite(total):
            raise FederatedError("the sum leads to values that are not finite")
        self._ahead = following, self.rules.digest(following)
        return following, math.sqrt(total)

    def move(self, state: State) -> None:
        """Hold the next state: its sum is published."""
        self._set(state)
        if state.version % _KEEP_EVERY == 0:
            self.keep()

    def keep(self) -> None:
        """Write the state. A disk that is full only costs time at the next start."""
        path = self._folder / f"state-{self.version}.safetensors"
        try:
            atomic.write_file(path, tensors.save(self.state.tensors()))
        except OSError as error:
            log.warning("the state %d cannot be kept in %s: %s", self.version, self._folder, error.strerror)
            return
        for other in self._folder.glob("state-*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)

    def merged(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        """The shared tensors as they stand. Raises FederatedError where the totals of a head make none."""
        return self.rules.tensors(self.state)

    def figures(self, total: CohortSum) -> FiguresRecord:
        """Of the sum of an evaluation round. Raises FederatedError."""
        found = self.rules.figures(total)
        f1 = {
            label: None if math.isnan(value) else float(value)
            for label, value in zip(found.labels, found.f1, strict=True)
        }
        return FiguresRecord(
            accuracy=found.accuracy, loss=found.loss, f1=f1, samples=found.samples, devices=found.devices
        )

    def _set(self, state: State) -> None:
        known = self._ahead
        self.digest = known[1] if known is not None and known[0] is state else self.rules.digest(state)
        self.state, self._ahead = state, None

    def _kept(self) -> State | None:
        """The newest state on the disk, if it is one of this job."""
        found = {int(match[1]): path for path in self._folder.iterdir() if (match := _FILE.fullmatch(path.name))}
        for version in sorted(found, reverse=True):
            try:
                state = State.from_tensors(tensors.load(found[version].read_bytes(), _MAX_BYTES), version)
                self.rules.fits(state)
                return state
            except (OSError, ValueError) as error:
                log.warning("%s is left aside: %s", found[version], error)
                found[version].unlink(missing_ok=True)
        return None
