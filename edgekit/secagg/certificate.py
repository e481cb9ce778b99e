"""The quorum certificate: more than (n + c) / 2 survivors have each signed one survivor set and their own list A.

Honest devices sign one set a round, so two sets cannot both be certified (docs/secagg.md, lemma 1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgekit.secagg import bitmap
from edgekit.secagg.cohort import Cohort, verify_masked, verify_vote
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import Masked, Unmask, Vote
from edgekit.secagg.roster import Membership
from edgekit.secagg.signatures import SIGNATURE


def request(cohort: Cohort, survivors: bytes, votes: Mapping[int, Vote], absent: tuple[Masked, ...]) -> Unmask:
    """Put the certificate together from votes by place, with the lists of survivors who did not vote."""
    voters = sorted(votes)
    return Unmask(
        roll=cohort.digest,
        survivors=survivors,
        voters=bitmap.pack(voters, cohort.count),
        lists=b"".join(votes[v].masks_with for v in voters),
        signatures=b"".join(votes[v].signature for v in voters),
        absent=absent,
    )


def check(
    unmask: Unmask, cohort: Cohort, membership: Membership, around: Collection[int], own: Vote | None
) -> frozenset[int]:
    """The certified survivors.

    `around`: the places whose shares will be revealed; `own`: the vote of the device that asks, which it knows.

    Raises Refusal unless at least a quorum of survivors signed this set, and each survivor in `around` has signed a
    list of devices it masked with that holds all its surviving neighbours.
    """
    if unmask.roll != cohort.digest:
        raise Refusal("binding", "the certificate belongs to another roll")
    survivors = frozenset(bitmap.unpack(unmask.survivors, cohort.count))
    voters = bitmap.unpack(unmask.voters, cohort.count)
    if len(voters) < cohort.quorum:
        raise Refusal("certificate", f"{len(voters)} devices signed the survivor set; {cohort.quorum} are a quorum")
    if not survivors.issuperset(voters):
        raise Refusal("certificate", "a device signed the survivor set that is not in it")
    lists = _votes(unmask, voters, cohort, membership, own)
    for masked in unmask.absent:
        if cohort.position.get(masked.node) not in lists:
            lists[verify_masked(masked, cohort, membership)] = masked.masks_with
    for place in around:
        if place not in survivors:
            continue
        if place not in lists:
            raise Refusal("lists", f"the survivor {cohort.node(place)[:4].hex()} does not prove whom it masked with")
        if not cohort.covers(place, lists[place], survivors):
            raise Refusal(
                "lists", f"the survivor {cohort.node(place)[:4].hex()} did not mask with a surviving neighbour"
            )
    return survivors


def _votes(
    unmask: Unmask, voters: list[int], cohort: Cohort, membership: Membership, own: Vote | None
) -> dict[int, bytes]:
    lists: dict[int, bytes] = {}
    start = 0
    sizes = [bitmap.size(len(cohort.neighbours[v])) for v in voters]
    if len(unmask.signatures) != SIGNATURE * len(voters) or len(unmask.lists) != sum(sizes):
        raise Refusal("malformed", "the certificate's signatures or lists do not fit its voters")
    for index, (voter, size) in enumerate(zip(voters, sizes, strict=True)):
        vote = Vote(
            node=cohort.node(voter),
            roll=cohort.digest,
            survivors=unmask.survivors,
            masks_with=unmask.lists[start : start + size],
            signature=unmask.signatures[SIGNATURE * index : SIGNATURE * (index + 1)],
        )
        if vote != own:
            verify_vote(vote, cohort, membership)
        lists[voter] = vote.masks_with
        start += size
    return lists
