"""What a device demands of a round, from its own configuration: cloudd can propose less, but not get it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.secagg import parameters
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import MAX_COHORT, MAX_WORDS, RoundConfig
from edgekit.secagg.parameters import GraphParameters

_ROUNDING = 1 + 2e-6
"""By so much a round's clip may be above what a job says: a norm that is computed in another order has to fit."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The `[federation]` table of a device; read with edgekit.toml. Every method raises Refusal("policy")."""

    min_cohort: Annotated[int, Meta(ge=3, le=MAX_COHORT)] = 5
    """Devices whose keys are in the roll, at least. With two, each would learn the other's update."""
    min_owners: Annotated[int, Meta(ge=1, le=MAX_COHORT)] = 1
    """Different plants among the survivors, at least."""
    one_in: Annotated[int, Meta(ge=2, le=MAX_COHORT)] = 3
    """One in so many devices may collude with cloudd, in cohorts up to `complete_to`."""
    one_in_large: Annotated[int, Meta(ge=2, le=MAX_COHORT)] = 10
    """The same in larger cohorts."""
    colluders: Annotated[int, Meta(ge=0, le=MAX_COHORT)] = 0
    """So many devices of the whole roster may collude, and cloudd may pick a cohort that holds them all."""
    complete_to: Annotated[int, Meta(ge=3, le=MAX_COHORT)] = 128
    """Up to so many devices everybody must mask with everybody."""
    sparse_bits: Annotated[int, Meta(ge=1, le=256)] = parameters.SPARSE_BITS
    """Privacy of a random graph: an adversary's chance is 2^-sparse_bits for each roll that it tries."""
    max_clip: Annotated[float, Meta(gt=0, le=1e9)] = 1000.0
    """Largest norm to which this device's updates may be clipped."""
    max_weight: Annotated[int, Meta(ge=1, le=1 << 20)] = 1
    """Largest weight that a round may allow: a larger one coarsens everybody's values."""
    max_parameters: Annotated[int, Meta(ge=1, le=MAX_WORDS)] = 1 << 27
    """What this device has memory for."""
    repeats: Annotated[int, Meta(ge=0, le=100)] = 0
    """How often the device may contribute to the same model again, after a round that cloudd called void.

    Each time lets a lying cloudd subtract two sums: with 1, it can single out a device that is in one of them only.
    """

    def expected_colluders(self, count: int) -> int:
        """c for a cohort of `count`, as this device counts it."""
        share = self.one_in if count <= self.complete_to else self.one_in_large
        return max(count // share, self.colluders)

    def check_config(self, config: RoundConfig) -> None:
        """What a configuration alone can violate."""
        if config.clip > self.max_clip * _ROUNDING:
            raise _refused("clips updates to a norm of", config.clip, "at most", self.max_clip, "max_clip")
        if config.max_weight > self.max_weight:
            raise _refused("allows weights up to", config.max_weight, "at most", self.max_weight, "max_weight")
        if config.parameters > self.max_parameters:
            raise _refused("has parameters:", config.parameters, "at most", self.max_parameters, "max_parameters")
        if config.invited < self.min_cohort:
            raise _refused("invites devices:", config.invited, "at least", self.min_cohort, "min_cohort")

    def check_roll(self, count: int, colluders: int, graph: GraphParameters) -> None:
        """Cohort size, colluders and graph of a roll."""
        if count < self.min_cohort:
            raise _refused("has a cohort of", count, "at least", self.min_cohort, "min_cohort")
        expected = self.expected_colluders(count)
        if colluders < expected:
            raise _refused("assumes colluding devices:", colluders, "at least", expected, "one_in, colluders")
        if colluders > count - 2:
            raise Refusal("policy", f"{colluders} colluding devices of {count} leave nobody to hide among")
        if graph == parameters.complete(count, colluders):
            return
        if count <= self.complete_to:
            raise Refusal(
                "policy",
                f"a cohort of {count} must mask everybody with everybody with threshold "
                f"{parameters.quorum(count, colluders)}, not degree {graph.degree} with threshold {graph.threshold}",
            )
        if graph.degree >= count - 1 or graph.threshold > graph.degree:
            raise Refusal("policy", f"degree {graph.degree}, threshold {graph.threshold} fit no cohort of {count}")
        bits = parameters.privacy_bits(count, colluders, graph)
        if bits < self.sparse_bits:
            raise _refused(
                "has a graph with privacy bits:", round(bits, 1), "at least", self.sparse_bits, "sparse_bits"
            )

    def check_owners(self, owners: set[str]) -> None:
        """The plants that the survivors belong to."""
        if len(owners) < self.min_owners:
            raise _refused("has survivors of plants:", len(owners), "at least", self.min_owners, "min_owners")


def _refused(what: str, found: float, bound: str, allowed: float, key: str) -> Refusal:
    return Refusal("policy", f"the round {what} {found:g}; this device wants {bound} {allowed:g} ({key})")
