"""What is counted of a candidate in the shadow, and what it would send at the risk that was asked for."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edged.serve.shadow.figures import MAX_AWAITED, Figures, Said
from edged.serve.shadow.wire import Look
from edgekit.learning.tally import Tally
from edgekit.messages import SendReason
from edgekit.services import HardSamples

RISK = HardSamples(mode="risk", risk=0.02, answer_model="large")
LABELS = ["ok", "short", "open"]
SENT: list[SendReason | None] = [None, "hard", "audit", "calibrating", "safe-mode"]


def figures(hard: HardSamples = RISK, asks: bool = True) -> Figures:
    return Figures("m.s@1-1", hard, LABELS, asks)


def look(number: int, present: str = "ok", sent: SendReason | None = None, cloud: str | None = None) -> Look:
    return Look(sample_id=str(number), present=present, sent=sent, cloud=cloud)


def said(label: str = "ok", hardness: float = 0.01, hard: bool = False, ms: float = 1.0) -> Said:
    return Said(label, hardness, hard, ms)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(LABELS),
            st.one_of(st.none(), st.sampled_from(LABELS)),
            st.sampled_from(SENT),
            st.one_of(st.none(), st.sampled_from(LABELS)),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_the_counts_are_those_of_a_trials_tally_whenever_the_answer_comes(
    items: list[tuple[str, str | None, SendReason | None, str | None, bool]],
) -> None:
    """An answer that is there at once and one that comes later count the same."""
    tally, counted = Tally(), figures()
    later = []
    for number, (present, candidate, sent, cloud, late) in enumerate(items):
        cloud = cloud if sent is not None else None
        tally = tally.item(present, candidate, cloud, sent=sent not in (None, "audit"), would_send=False)
        counted.looked(
            look(number, present, sent, None if late else cloud), said(candidate) if candidate is not None else None
        )
        if late and cloud is not None:
            later.append((str(number), cloud))
    for sample_id, cloud in later:
        counted.answered(sample_id, cloud)
        counted.answered(sample_id, cloud)  # delivered twice
    report = counted.report()
    for name in set(Tally.__struct_fields__) - {"would_send"}:
        assert getattr(report, name) == getattr(tally, name), name
    assert 0 <= report.would_send <= report.items


def test_answers_to_pictures_that_it_has_not_seen_count_nothing() -> None:
    counted = figures()
    counted.answered("77", "ok")
    assert counted.report().audits == 0


def test_a_cloud_that_does_not_know_the_new_class_cannot_say_that_it_is_wrong() -> None:
    counted = figures()
    counted.looked(look(1, "ok", "audit", "ok"), said("scratch"))
    report = counted.report()
    assert (report.audits, report.lost) == (0, 0)
    counted.looked(look(2, "ok", "audit", "scratch"), said("scratch"))
    counted.looked(look(3, "ok", "audit", "ok"), said("scratch"))
    report = counted.report()
    assert (report.audits, report.lost, report.gained) == (2, 1, 1), "it has said that word itself by now"


def test_answers_that_never_come_are_given_up_from_the_oldest_on() -> None:
    counted = figures()
    for number in range(MAX_AWAITED + 5):
        counted.looked(look(number, sent="audit"), said())
    counted.answered("4", "ok")
    counted.answered("5", "ok")
    assert counted.report().audits == 1


def test_an_item_without_an_answer_would_be_sent() -> None:
    counted = figures(HardSamples(mode="filter", filter="Threshold", answer_model="large"))
    counted.looked(look(1), None)
    counted.looked(look(2), said(hard=True))
    counted.looked(look(3), said())
    report = counted.report()
    assert (report.unusable, report.would_send) == (1, 2)


def test_the_run_time_is_the_95th_percentile_of_the_last_ones() -> None:
    counted = figures()
    assert counted.report().p95_ms is None
    for number in range(1, 101):
        counted.looked(look(number), said(ms=float(number)))
    assert counted.report().p95_ms == 95.0


def test_a_budget_sends_its_share_whatever_the_model_and_who_asks_nobody_sends_nothing() -> None:
    for hard, asks, expected in (
        (HardSamples(mode="budget", answer_model="large"), True, 1),
        (RISK, False, 0),
        (HardSamples(mode="off"), False, 0),
    ):
        counted = figures(hard, asks)
        counted.looked(look(1, sent="hard"), said(hardness=0.9))
        counted.looked(look(2), said(hardness=0.9))
        assert counted.report().would_send == expected


def line(seed: int, n: int, *, worse: float = 0.0, scale: float = 1.0) -> tuple[int, int, int]:
    """A certified line: hardness by a beta law, errors by its square; 3 % audits. (items, sent, would_send).

    `worse`: share of sure answers that the candidate gets wrong besides. `scale`: exponent of its hardness; a monotone
    change of its scores changes nothing about what it can tell apart.
    """
    rng = np.random.default_rng(seed)
    counted = figures()
    for number in range(n):
        hardness = float(rng.beta(0.3, 3.0))
        truth = "ok" if rng.random() < 1 - 0.8 * hardness**1.5 else "short"
        answer = "open" if rng.random() < worse else "ok"
        sent: SendReason | None = "hard" if hardness > 0.12 else "audit" if rng.random() < 0.03 else None
        cloud = truth if sent is not None else None
        counted.looked(look(number, "ok", sent, cloud), said(answer, hardness**scale))
    report = counted.report()
    return report.items, report.sent, report.would_send


def test_an_equally_good_candidate_would_hardly_ever_send_more_whatever_its_scores_look_like() -> None:
    for scale in (1.0, 0.3, 4.0):
        more = [
            (would - sent) / items > 0.03 for seed in range(60) for items, sent, would in [line(seed, 900, scale=scale)]
        ]
        assert sum(more) <= 3, "0.03 is what a trial allows"


def test_a_candidate_that_is_sure_and_wrong_would_send_nearly_everything() -> None:
    more = [(would - sent) / items for seed in range(20) for items, sent, would in [line(seed, 1500, worse=0.4)]]
    assert sum(one > 0.03 for one in more) >= 18


def test_hardness_of_any_size_finds_its_place() -> None:
    counted = figures()
    for number, hardness in enumerate((0.0, 1e-300, 2.0**-20, 1e-3, 1.0, math.nextafter(1.0, 0.0))):
        counted.looked(look(number, sent="hard", cloud="short"), said(hardness=hardness))
    assert counted.report().would_send == 6, "all of them differ"
