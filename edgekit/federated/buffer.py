"""Asynchronous rounds: devices train when they can, and as soon as enough are done they form a cohort.

Nguyen et al. 2022 (FedBuff, arXiv 2106.06639): an update to a model that is `age` sums old counts 1 / sqrt(1 + age),
and the sum is divided by the number of updates, not by the sum of these factors. With secure aggregation the buffer
*is* a cohort: no update waits at cloudd, only the word that one is ready. All members hold the newest state when the
round begins (they apply published sums themselves), each knows its own age and discounts its update; cloudd need not.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.federated.errors import FederatedError
from edgekit.secagg.messages import MAX_COHORT, Node

MAX_OFFERS = 1 << 16


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """A device has an update to the state `version`."""

    node: Node
    version: int


class Buffer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is ready, in the order in which they said so. What cloudd stores."""

    size: Annotated[int, Meta(ge=3, le=MAX_COHORT)]
    """Devices of a cohort."""
    max_age: Annotated[int, Meta(ge=0, le=1000)] = 10
    """An older update is not worth its bias: the device trains again."""
    offers: Annotated[tuple[Offer, ...], Meta(max_length=MAX_OFFERS)] = ()

    def offer(self, node: bytes, version: int) -> Buffer:
        """With one more; the same device again replaces what it said and keeps its place. Raises FederatedError."""
        places = {one.node: place for place, one in enumerate(self.offers)}
        new = Offer(node, version)
        if version < 0 or (node not in places and len(self.offers) >= MAX_OFFERS):
            raise FederatedError(f"the buffer holds {len(self.offers)} offers, or the version {version} cannot be")
        offers = list(self.offers)
        if node in places:
            offers[places[node]] = new
        else:
            offers.append(new)
        return msgspec.structs.replace(self, offers=tuple(offers))

    def withdraw(self, node: bytes) -> Buffer:
        """Without a device that went away."""
        return msgspec.structs.replace(self, offers=tuple(one for one in self.offers if one.node != node))

    def take(self, version: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...], Buffer]:
        """(the next cohort, or nobody yet; who is too old and must train again; the buffer without both)."""
        old = tuple(one.node for one in self.offers if version - one.version > self.max_age)
        fresh = tuple(one for one in self.offers if one.node not in set(old) and one.version <= version)
        if len(fresh) < self.size:
            return (), old, msgspec.structs.replace(self, offers=fresh)
        cohort = tuple(one.node for one in fresh[: self.size])
        return cohort, old, msgspec.structs.replace(self, offers=fresh[self.size :])


def discount(age: int) -> float:
    """How much an update to a model that is `age` sums old counts."""
    if age < 0:
        raise FederatedError(f"an update cannot be {age} rounds old")
    return 1 / math.sqrt(1 + age)
