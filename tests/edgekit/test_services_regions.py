"""Services that detect, and services that send regions: what is read, what is refused, what a model must know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.gates import classwise
from edgekit.messages import NOTHING_FOUND
from edgekit.regions.header import MAX_REGIONS
from edgekit.services import NOTHING_LABEL, Regions, Service, ServiceError, dump_service, label_problem, parse_service
from edgekit.services.regions import MAX_GROUPS

HEAD = 'name = "x"\nmodel = "m"\n'
ASKS = '[hard_samples]\nanswer_model = "big"\n'
TILES = '[pipeline.tiles]\nwidth = 64\nheight = 64\nworst = ["short", "open"]\n'
TILED = HEAD + ASKS + TILES + '[regions]\nclean = "good"\n'
BOXES = 'name = "x"\nmodel = "m"\ntask = "detection"\n'
GROUPS = """
[[regions.groups]]
name = "defect"
labels = ["short", "open"]
risk = 0.05

[[regions.groups]]
name = "rest"
risk = 0.01
"""
DETECTED = (
    BOXES
    + ASKS
    + """
[detection]
threshold = 0.4
thresholds = { short = 0.3, "größer als" = 0.6 }

[decision]
pass = ["nothing"]
fail = ["short", "open"]

[regions]
most = 16
context = 0.5
silent = 0.1
quality = 85
"""
    + GROUPS
)


def test_tiles_that_are_sent_one_by_one_are_read_and_written() -> None:
    service = parse_service(TILED, "t")
    assert service.regions == Regions(clean="good")
    assert (service.regions.most, service.regions.silent, service.regions.quality) == (64, 0.02, 90)
    assert parse_service(dump_service(service), "t") == service


def test_a_detector_with_everything_is_read_and_written() -> None:
    service = parse_service(DETECTED, "t")
    assert service.detection is not None and service.regions is not None
    assert service.detection.thresholds == {"short": 0.3, "größer als": 0.6}
    assert [group.risk for group in service.regions.groups] == [0.05, 0.01]
    assert parse_service(dump_service(service), "t") == service


def test_without_these_tables_a_definition_is_written_as_before() -> None:
    text = dump_service(parse_service(HEAD, "t"))
    assert "regions" not in text and "detection" not in text, "older releases read what does not use them"
    assert Service(name="x", model="m").task == "classification"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "[detection]\nthreshold = 0.4", '"detection" is set .* it belongs to task = "detection" only'),
        (BOXES + "[detection]\nthreshold = 1.0", '"detection.threshold" is 1.0'),
        (BOXES + "[detection]\nthresholds = { short = 0 }", '"detection.thresholds.short" is 0'),
        (BOXES + '[regions]\nclean = "good"', '"regions.clean" is set .* a detector has no label'),
        (BOXES + "[regions]\nmost = 257", '"regions.most" is 257'),
        (BOXES + "[regions]\nmsot = 3", 'unknown key "regions.msot" .* did you mean "most"'),
        (BOXES + "[regions]\nsilent = 1.5", '"regions.silent" is 1.5'),
        (BOXES + "[regions]\nquality = 0", '"regions.quality" is 0'),
        (HEAD + '[regions]\nclean = "good"', '"pipeline.tiles" is missing'),
        (HEAD + TILES + "[regions]", '"regions.clean" is missing'),
        (TILED + "silent = 0.5", '"regions.silent" is set .* task = "detection" only'),
        (TILED + "context = 0.5", '"regions.context" is set .* task = "detection" only'),
        (TILED.replace('"short", "open"', '"good", "open"'), '"pipeline.tiles.worst" has "good" before other labels'),
        (TILED.replace('worst = ["short", "open"]', 'aggregate = "mean"'), 'use "worst"'),
        (BOXES + '[pipeline.tiles]\nwidth = 64\nheight = 64\naggregate = "mean"', "boxes have no mean"),
        (
            BOXES + '[hard_samples]\nmode = "filter"\nfilter = "CrossEntropy"\nanswer_model = "b"',
            '"hard_samples.filter" is "CrossEntropy" .* boxes have none',
        ),
        (
            BOXES + '[hard_samples]\nmode = "filter"\nfilter = "IBT"\nanswer_model = "b"\n[regions]',
            '"hard_samples.mode" is "filter" .* judges whole pictures',
        ),
        (BOXES + '[hard_samples]\nmode = "budget"\nanswer_model = "b"' + GROUPS, 'mode = "risk" only'),
        (BOXES + ASKS + GROUPS.replace('name = "rest"', 'name = "defect"'), 'the name "defect" twice'),
        (BOXES + ASKS + GROUPS.replace('name = "rest"', 'name = ""'), r'"regions.groups\[1\].name" is ""'),
        (BOXES + ASKS + GROUPS.replace('name = "rest"', 'name = "rest"\nlabels = ["open"]'), '"open" in two groups'),
        (BOXES + ASKS + GROUPS.replace('name = "rest"', 'name = "rest"\nlabels = ["hole"]'), "0 groups without labels"),
        (BOXES + ASKS + GROUPS.replace('labels = ["short", "open"]', ""), "2 groups without labels"),
        (BOXES + ASKS + GROUPS.replace("risk = 0.01", ""), r'"regions.groups\[1\].risk" is missing'),
        (BOXES + ASKS + GROUPS.replace("risk = 0.01", "risk = 1"), r'"regions.groups\[1\].risk" is 1'),
        (
            BOXES + ASKS + "".join(f'[[regions.groups]]\nname = "g{i}"\nrisk = 0.1\n' for i in range(17)),
            "has 17 tables",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        parse_service(text, "t")


def test_the_clean_label_may_be_the_last_of_the_worst() -> None:
    assert parse_service(TILED.replace('"short", "open"', '"short", "open", "good"'), "t").regions is not None


def test_every_label_that_is_named_must_be_the_models() -> None:
    tiled = parse_service(TILED, "t")
    assert label_problem(tiled, ["good", "short", "open"]) == ""
    assert label_problem(tiled, ["short", "open"]).startswith('"regions.clean" names "good"')
    detected = parse_service(DETECTED, "t")
    assert label_problem(detected, ["short", "open", "größer als"]) == "", '"nothing" is no label of a model'
    assert label_problem(detected, ["short", "open"]).startswith('"detection.thresholds" names "größer als"')
    grouped = parse_service(BOXES + ASKS + GROUPS, "t")
    assert label_problem(grouped, ["short"]).startswith('"regions.groups[0].labels" names "open"')
    classified = parse_service(HEAD + '[decision]\npass = ["nothing"]', "t")
    assert label_problem(classified, ["good"]).startswith('"decision.pass" names "nothing"')


def test_bounds_and_words_are_those_of_the_gate_and_of_the_messages() -> None:
    assert MAX_GROUPS == classwise.MAX_GROUPS
    assert NOTHING_LABEL == NOTHING_FOUND
    assert parse_service(BOXES + f"[regions]\nmost = {MAX_REGIONS}", "t").regions is not None


@given(
    labels=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3), min_size=1, max_size=5),
    names=st.lists(st.sampled_from(["p", "q", "r", "s", "t"]), min_size=5, max_size=5),
)
def test_groups_that_are_read_are_groups_that_a_gate_takes(labels: list[list[str]], names: list[str]) -> None:
    tables = "".join(
        f'[[regions.groups]]\nname = "{name}"\nlabels = {one!r}\nrisk = 0.1\n'
        for name, one in zip(names, labels, strict=False)
    )
    groups = [classwise.Group(name=name, labels=one) for name, one in zip(names, labels, strict=False)]
    try:
        classwise.ClasswiseSettings(groups=groups)
        fits = all(len(set(one)) == len(one) for one in labels)
    except ValueError:
        fits = False
    try:
        parse_service(BOXES + ASKS + tables, "t")
        read = True
    except ServiceError:
        read = False
    assert read is fits
