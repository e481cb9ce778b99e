"""The state that every device of a job holds too: first values, published sums, and nothing else.

The newest state is also kept in a file, so that a restart need not apply all sums again; it is only a shortcut.
Blocking: for threads.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloudd.federation.files import PLAN_FOLDER, STEP_FOLDER
from cloudd.federation.store import FiguresRecord
from edgekit import atomic, tensors
from edgekit.autodiff.manifest import read_manifest, read_states
from edgekit.federated.errors import FederatedError
from edgekit.federated.rounds import CohortSum, JobRules
from edgekit.federated.strategy import State
from edgekit.messages.federation import FederatedJob

log = logging.getLogger("cloudd.federation")

_FILE = re.compile(r"state-(\d{1,9})\.safetensors")
_MAX_BYTES = 16 << 30
_KEEP_EVERY = 10


class Progress:
    """Of one job. `folder` holds the train step in PLAN_FOLDER. Raises FederatedError, AutodiffError."""

    def __init__(self, job: FederatedJob, folder: Path) -> None:
        self._folder = folder
        step = folder / PLAN_FOLDER / STEP_FOLDER
        manifest = read_manifest(step)
        self.names = tuple(one.name for one in manifest.of("parameter", "batch_norm"))
        self.rules = JobRules(job, {one.name: one.shape for one in manifest.of("parameter", "batch_norm")})
        kept = self._kept()
        if kept is None:
            values = read_states(step, manifest)
            kept = self.rules.start({name: values[name] for name in self.names})
        self._set(kept)

    state: State
    digest: bytes
    """Of the state."""

    @property
    def version(self) -> int:
        """Sums applied."""
        return self.state.version

    def after(self, sums: Sequence[CohortSum]) -> tuple[State, float]:
        """The next state, and the norm of the change. Changes nothing. Raises FederatedError."""
        following = self.rules.apply(self.state, sums)
        total, block = 0.0, 1 << 20
        for start in range(0, following.model.size, block):
            part = following.model[start : start + block] - self.state.model[start : start + block]
            total += float(np.dot(part, part))
        if not math.isfinite(total):
            raise FederatedError("the sum leads to values that are not finite")
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
        """The shared tensors as they stand."""
        return dict(self.rules.strategy.layout.unflatten(self.state.model))

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
        self.state, self.digest = state, self.rules.digest(state)

    def _kept(self) -> State | None:
        """The newest state on the disk, if it is one of this job."""
        found = {int(match[1]): path for path in self._folder.iterdir() if (match := _FILE.fullmatch(path.name))}
        for version in sorted(found, reverse=True):
            try:
                state = State.from_tensors(tensors.load(found[version].read_bytes(), _MAX_BYTES), version)
                self.rules.strategy.layout.unflatten(state.model)
                return state
            except (OSError, ValueError) as error:
                log.warning("%s is left aside: %s", found[version], error)
                found[version].unlink(missing_ok=True)
        return None
