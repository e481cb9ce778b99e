"""The pipeline and decision tables of a service definition: what is read, what is refused, what a verdict is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.services import DecisionRules, ServiceError, Tiles, dump_service, label_problem, parse_service

HEAD = 'name = "x"\nmodel = "m"\n'
WHOLE = (
    HEAD
    + """
[pipeline]
roi = [100, 50, 1100, 850]
roi_unit = "pixel"

[pipeline.tiles]
width = 224
height = 224
overlap = 32
worst = ["bridge", "missing"]

[decision]
pass = ["normal"]
fail = ["bridge", "missing"]
min_score = 0.8
min_margin = 0.3
"""
)


def test_both_tables_are_read_and_written() -> None:
    service = parse_service(WHOLE, "t")
    assert service.pipeline is not None and service.decision is not None
    assert service.pipeline.roi == [100, 50, 1100, 850]
    assert service.pipeline.tiles == Tiles(width=224, height=224, overlap=32, worst=["bridge", "missing"])
    assert service.decision.passes == ["normal"]
    assert parse_service(dump_service(service), "t") == service
    assert "pipeline" not in dump_service(parse_service(HEAD, "t")), "older releases read what does not use it"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[decision]", '"decision" names no label'),
        ("[decision]\nmin_score = 0.5", '"decision" names no label'),
        ('[decision]\npasses = ["a"]', 'unknown key "decision.passes" in .* did you mean "pass"'),
        ('[decision]\npass = ["a"]\nfail = ["b", "a"]', '"a" under pass and under fail'),
        ('[decision]\npass = ["a", "a"]', '"decision.pass" has "a" twice'),
        ('[decision]\npass = ["a"]\nmin_score = 1.5', '"decision.min_score" is 1.5'),
        ("[decision]\npass = [1]", r'"decision.pass\[0\]" is 1'),
        ("[pipeline]\nroi = [0, 0, 640, 480]", 'pixels, with roi_unit = "pixel"'),
        ("[pipeline]\nroi = [0.0, nan, 1.0, 1.0]", r'"pipeline.roi\[1\]" is nan'),
        ("[pipeline.tiles]\nwidth = 4\nheight = 8", '"pipeline.tiles.width" is 4'),
        ("[pipeline.tiles]\nwidth = 64", '"pipeline.tiles.height" is missing'),
        ("[pipeline.tiles]\nwidth = 64\nheight = 64", '"pipeline.tiles.worst" is missing'),
        ('[pipeline.tiles]\nwidth = 64\nheight = 64\naggregate = "vote"', 'one of "mean", "worst"'),
        (f'[decision]\npass = [\n"{"é" * 900}",\n"{"ö" * 900}",\n"{"ü" * 900}"]', "labels of at most 4096 bytes"),
    ],
)
def test_what_cannot_be_meant_is_refused(table: str, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        parse_service(HEAD + table, "t")


def test_labels_that_the_model_does_not_know_are_named_with_those_it_knows() -> None:
    service = parse_service(WHOLE, "t")
    assert label_problem(service, ["normal", "bridge", "missing"]) == ""
    assert label_problem(service, ["normal", "bridge"]) == (
        '"pipeline.tiles.worst" names "missing", which the model does not know; its labels are normal, bridge'
    )
    rules = parse_service(HEAD + '[decision]\nfail = ["crack"]', "t")
    many = [f"l{number}" for number in range(50)]
    assert label_problem(rules, many).endswith(
        '"crack", which the model does not know; its labels are ' + ", ".join(many[:12]) + ", ..."
    )
    assert label_problem(parse_service(HEAD, "t"), []) == ""


@given(
    label=st.sampled_from(["good", "bad", "odd"]), score=st.floats(0, 1), margin=st.floats(0, 1),
    least_score=st.floats(0, 1), least_margin=st.floats(0, 1),
)  # fmt: skip
def test_a_verdict_is_pass_or_fail_only_when_the_answer_is_sure(
    label: str, score: float, margin: float, least_score: float, least_margin: float
) -> None:
    rules = DecisionRules(passes=["good"], fail=["bad"], min_score=least_score, min_margin=least_margin)
    sure = score >= least_score and margin >= least_margin
    expected = {"good": "pass", "bad": "fail", "odd": "review"}[label] if sure else "review"
    assert rules.verdict(label, score, margin) == expected
