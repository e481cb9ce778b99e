"""What could run a model here: the candidates of the matched profiles, and below them the CPU, which needs none."""

from __future__ import annotations

import msgspec

from edged.hardware.matching import Matched
from edged.hardware.profiles import Artefact, Requires, Status
from edgekit.packages.manifest import Precision, Runtime

FLOOR = "floor"
"""Stands for the profile in the ids of the candidates that are code."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way of running models that is worth a try here: a guess until gate, probe and benchmark agree."""

    id: str  # profile#candidate
    runtime: Runtime
    provider: str = "cpu"
    precision: list[Precision]  # in order of preference
    artefact: Artefact
    options: dict[str, str] = {}
    search: dict[str, list[str]] = {}  # option -> values that the benchmark may try
    workers: list[int] = []  # concurrent runs that the benchmark may try; empty: as it likes
    prior: int = 0  # the higher, the earlier it is measured
    requires: Requires = Requires()
    status: Status = "untested"
    warmup_s: float = 0.0
    probe_timeout_s: float = 60.0
    notes: str = ""
    profile_version: int = 0  # 0: code
    disabled_by: str = ""  # id of the board or site profile that forbids it

    @property
    def road(self) -> str:
        """runtime/provider, for people."""
        return f"{self.runtime}/{self.provider}"


_ALL: list[Precision] = ["fp32", "int8", "fp16"]
CPU_FLOOR = (
    Candidate(id=f"{FLOOR}#onnxruntime", runtime="onnxruntime", precision=_ALL, artefact=Artefact(format="onnx")),
    Candidate(id=f"{FLOOR}#litert", runtime="litert", precision=_ALL, artefact=Artefact(format="tflite")),
)
"""What works when nothing matches, and what no file can take away."""


def propose(matched: Matched) -> list[Candidate]:
    """All candidates, those to be tried first in front, the CPU floor last. Forbidden ones are in it, marked so.

    The floor's candidate is left out where a profile already says the same, without requirements and for every
    precision.
    """
    found = [
        Candidate(
            id=f"{profile.id}#{spec.id}",
            runtime=spec.runtime,
            provider=spec.provider,
            precision=spec.precision,
            artefact=spec.artefact,
            options=spec.options,
            search=spec.search,
            workers=spec.workers,
            prior=spec.prior,
            requires=spec.requires,
            status=profile.status,
            warmup_s=spec.warmup_s,
            probe_timeout_s=spec.probe_timeout_s,
            notes=spec.notes,
            profile_version=profile.version,
            disabled_by=matched.disabled_by(profile.id, spec.id),
        )
        for profile in matched.profiles
        for spec in profile.candidate
    ]
    found.sort(key=lambda candidate: (-candidate.prior, candidate.id))
    return found + [floor for floor in CPU_FLOOR if not any(_covers(one, floor) for one in found)]


def _covers(candidate: Candidate, floor: Candidate) -> bool:
    return (
        candidate.road == floor.road
        and not candidate.disabled_by
        and candidate.requires == Requires()
        and not candidate.artefact.targets
        and set(candidate.precision) >= set(floor.precision)
    )
