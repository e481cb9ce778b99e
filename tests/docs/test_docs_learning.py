"""The first steps of docs/learning.md: their numbers against the judgement and the defaults."""

from __future__ import annotations

import re
from pathlib import Path

from edged.learning.settings import labels_wanted
from edgekit.gates.paired import drop_bound
from edgekit.services import Learning, LearningJudging

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "learning.md").read_text("utf-8")
STEPS = " ".join(TEXT[TEXT.index("## First steps") : TEXT.index("## When a job starts")].split())
DEFAULTS = Learning()


def wanted(items: int) -> str:
    return f"{labels_wanted(Learning(judging=LearningJudging(items=items))):,}"


def test_the_count_of_labelled_pictures_is_that_of_the_defaults() -> None:
    assert f"about {wanted(DEFAULTS.judging.items)} labelled pictures" in STEPS
    assert f"{DEFAULTS.triggers.labels} new labels, or {DEFAULTS.triggers.new_class} of a class" in STEPS
    shadow, probation = DEFAULTS.shadow, DEFAULTS.probation
    assert f"{shadow.items} live pictures ({shadow.audits} of them" in STEPS
    assert f"then {probation.items} and a day" in STEPS and probation.hours == 24
    assert f"`items = 150` with `drop = 0.05` in `[learning.judging]` needs about {wanted(150)} labelled" in STEPS
    assert drop_bound(2, 2, 150, 0.05) <= 0.05, "150 can prove that"


def test_each_cell_of_the_table_is_the_least_with_which_a_candidate_passes() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| (.+?) \| (.+?) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 3
    for items, labelled, *cells in rows:
        held = int(items.replace(",", ""))
        assert labelled == wanted(held)
        for cell, changed in zip(cells, (10, 30), strict=True):
            gained, lost = map(int, re.findall(r"\d+", cell))
            assert gained + lost == changed
            assert drop_bound(lost, gained, held, 0.05) <= DEFAULTS.judging.drop
            if gained:
                assert drop_bound(lost + 1, gained - 1, held, 0.05) > DEFAULTS.judging.drop
