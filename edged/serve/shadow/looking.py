"""The candidate itself, in its process: loaded as a service's model is, one picture after the other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import msgspec

from edged.collab.regions import frame_rule, local_verdict
from edged.serve.inspecting import Local
from edged.serve.loading import Loader
from edged.serve.shadow.figures import Figures, Said
from edged.serve.shadow.wire import Answered, Look, Looked, Order, ToShadow
from edgekit.gates.filters import Seen, complete, is_hard
from edgekit.gates.scores import hardness
from edgekit.regions.header import NOTHING
from edgekit.runtimes import ModelError
from edgekit.services import parse_service
from edgekit.vision.classification import Classified
from edgekit.vision.images import ImageError


class Unusable(Exception):
    """The candidate cannot look at the pictures of this service; the text says why."""


class Looker:
    """Answers the worker's frames."""

    def __init__(self, order: Order, rng: Callable[[], float] = random.random) -> None:
        """Loads and proves the candidate, in the safe way. Raises Unusable. `rng`: uniform in [0, 1), for filters."""
        service = parse_service(order.definition, "configuration")
        self._hard = service.hard_samples
        self._rule = frame_rule(service)
        self._parameters = complete(self._hard.filter, self._hard.parameters)
        self._rng = rng
        service = msgspec.structs.replace(service, model=order.candidate, split=None)
        loaded = Loader({order.candidate: order.directory}).load(service)
        if loaded.inspect is None:
            raise Unusable(loaded.failure)
        self._inspect = loaded.inspect
        self._figures = Figures(order.candidate, self._hard, order.known, order.asks)

    def take(self, message: ToShadow, picture: bytes) -> Looked:
        """What a frame brings, counted."""
        if isinstance(message, Answered):
            self._figures.answered(message.sample_id, message.cloud)
            return Looked(report=self._figures.report())
        busy_s = self._look(message, picture)
        return Looked(report=self._figures.report(), busy_s=busy_s)

    def _look(self, message: Look, picture: bytes) -> float:
        started, cpu = time.perf_counter(), time.thread_time()
        try:
            local = self._inspect(picture)
        except ImageError:  # says nothing about the candidate
            return time.thread_time() - cpu
        except ModelError:
            local = None
        busy_s, wall_s = time.thread_time() - cpu, time.perf_counter() - started
        self._figures.looked(message, self._said(local, busy_s / wall_s) if local is not None else None)
        return busy_s

    def _said(self, local: Local, share: float) -> Said:
        """`share`: how much of the time it had a CPU. Giving way must not make the candidate look slow.

        Of boxes or tiles it is the frame's one answer that is compared.
        """
        if isinstance(local, Classified):
            label, margin = local.label, local.margin
            seen = Seen([local.score], local.probabilities)
        else:
            frame = local_verdict(local, self._rule, "")
            label, margin = frame.label, frame.margin
            seen = Seen([one.score for one in local.candidates if one.label != NOTHING])
        hard = self._hard.mode == "filter" and is_hard(self._hard.filter, self._parameters, seen, self._rng())
        return Said(label, hardness(margin), hard, local.timings_ms["infer"] * min(1.0, share))
