"""Service definitions: defaults, round trip, and errors that name the key."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.gates.filters import FILTERS, FilterParameters
from edgekit.services import (
    MAX_SERVICE,
    HardSamples,
    Output,
    Retention,
    Service,
    ServiceError,
    Source,
    dump_service,
    label_problem,
    parse_service,
)

MINIMAL = 'name = "solder"\nmodel = "solder-small"\n'


def test_minimal_definition_has_the_documented_defaults() -> None:
    service = parse_service(MINIMAL, "solder.toml")
    assert service == Service(name="solder", model="solder-small")
    assert (service.task, service.priority, service.deadline_ms) == ("classification", "inline", 300.0)
    assert service.source.kind == "http"
    assert service.may_leave == "raw"
    assert service.retention.spool_days == 30.0


def test_without_a_cloud_model_nobody_is_asked_and_with_one_risk_is_the_mode() -> None:
    assert parse_service(MINIMAL, "x").hard_samples.mode == "off"
    service = parse_service(MINIMAL + '[hard_samples]\nanswer_model = "big@2"\n', "x")
    assert service.hard_samples == HardSamples(mode="risk", answer_model="big@2")


@pytest.mark.parametrize(
    ("policy", "asks"),
    [
        ('mode = "off"', False),
        ('answer_model = "big"', True),
        ('mode = "budget"\nanswer_model = "big"', True),
        ('mode = "filter"\nfilter = "EdgeOnly"', False),
        ('mode = "filter"\nfilter = "CloudOnly"\nanswer_model = "big"', True),
        (
            'mode = "filter"\nfilter = "Random"\nanswer_model = "big"\n[hard_samples.parameters]\nrandom_ratio = 0.0',
            True,
        ),
    ],
)
def test_who_asks_nobody_needs_no_cloud_model(policy: str, asks: bool) -> None:
    assert parse_service(f"{MINIMAL}[hard_samples]\n{policy}\n", "x").hard_samples.asks is asks


def test_a_filter_of_sedna_is_taken_with_its_parameters() -> None:
    text = MINIMAL + (
        '[hard_samples]\nmode = "filter"\nfilter = "IBT"\nanswer_model = "big"\n'
        "[hard_samples.parameters]\nthreshold_img = 0.9\nthreshold_box = 1\n"
    )
    hard = parse_service(text, "x").hard_samples
    assert hard.filter == "IBT"
    assert hard.parameters == FilterParameters(threshold_img=0.9, threshold_box=1.0)


def test_entropy_needs_two_classes() -> None:
    text = MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "CrossEntropy"\nanswer_model = "big"\n'
    assert "compares classes" in label_problem(parse_service(text, "x"), ["defect"])
    assert label_problem(parse_service(text, "x"), ["good", "defect"]) == ""
    assert label_problem(parse_service(text.replace("CrossEntropy", "Threshold"), "x"), ["defect"]) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name = "solder"\nmodle = "a"',
            'unknown key "modle" in service "solder" (solder.toml): did you mean "model"?',
        ),
        (
            MINIMAL + "[hard_samples]\nriks = 0.1",
            'unknown key "hard_samples.riks" in service "solder" (solder.toml): did you mean "risk"?',
        ),
        (
            MINIMAL + 'priority = "urgent"',
            '"priority" is "urgent" in service "solder" (solder.toml): '
            'one of "alarm", "audit", "inline" belongs there',
        ),
        (
            MINIMAL + '[hard_samples]\nanswer_model = "b"\nrisk = 1.0',
            '"hard_samples.risk" is 1.0 in service "solder" (solder.toml): a number above 0 and below 1 belongs there',
        ),
        (
            MINIMAL + "deadline_ms = nan",
            '"deadline_ms" is nan in service "solder" (solder.toml): a number above 0 and at most 600000 belongs there',
        ),
        (MINIMAL + "deadline_ms = true", '"deadline_ms" is true'),
        ('name = "solder"\nmodel = 3', '"model" is 3 in service "solder" (solder.toml): text belongs there'),
        ('model = "a"', '"name" is missing in solder.toml: text belongs there'),
        (MINIMAL + "source = 3", '"source" is 3'),
        (MINIMAL + "outputs = [1]", '"outputs[0]" is 1'),
        (MINIMAL + '[[outputs]]\nkind = "jsonl"', '"outputs[0].path" is missing'),
        (MINIMAL + '[[outputs]]\npath = "decisions.jsonl"', "absolute path"),
        (MINIMAL + '[[outputs]]\npath = "/data/../etc/passwd"', "absolute path"),
        (MINIMAL + '[source]\nkind = "folder"', '"source.path" is ""'),
        (MINIMAL + '[source]\npath = "/in"', '"source.path" is set'),
        (MINIMAL + '[source]\nkind = "folder"\npath = "/in"\npattern = "../*"', '"source.pattern"'),
        (MINIMAL + "[hard_samples]\n", '"hard_samples.answer_model" is missing'),
        (MINIMAL + 'hard_samples = {answer_model = "A B"}', "no model name"),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nanswer_model = "b"',
            '"hard_samples.filter" is missing in service "solder" (solder.toml): one of "IBT", "CrossEntropy", '
            '"Threshold", "Random", "EdgeOnly", "CloudOnly" belongs there',
        ),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "ibt"\nanswer_model = "b"',
            '"hard_samples.filter" is "ibt" in service "solder" (solder.toml): did you mean "IBT"?',
        ),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "CrossEntropyFilter"\nanswer_model = "b"',
            'did you mean "CrossEntropy"?',
        ),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "BertRouter"\nanswer_model = "b"',
            '"hard_samples.filter" is "BertRouter" in service "solder" (solder.toml): one of "IBT"',
        ),
        (
            MINIMAL + '[hard_samples]\nfilter = "IBT"\nanswer_model = "b"',
            '"hard_samples.filter" is set in service "solder" (solder.toml): '
            'it belongs to hard_samples.mode = "filter" only',
        ),
        (
            MINIMAL + '[hard_samples]\nanswer_model = "b"\n[hard_samples.parameters]',
            '"hard_samples.parameters" is set',
        ),
        (MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "IBT"', '"hard_samples.answer_model" is missing'),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "IBT"\nanswer_model = "b"\n'
            "[hard_samples.parameters]\ntreshold_img = 0.9",
            'unknown key "hard_samples.parameters.treshold_img" in service "solder" (solder.toml): '
            'did you mean "threshold_img"?',
        ),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "IBT"\nanswer_model = "b"\n'
            "[hard_samples.parameters]\nthreshold = 0.9",
            '"hard_samples.parameters.threshold" is set in service "solder" (solder.toml): '
            'it belongs to the filter "Threshold"; "IBT" has threshold_img and threshold_box',
        ),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "EdgeOnly"\nparameters = {random_ratio = 0.3}',
            'it belongs to the filter "Random"; "EdgeOnly" has no parameters',
        ),
        (
            MINIMAL + '[hard_samples]\nmode = "filter"\nfilter = "IBT"\nanswer_model = "b"\n'
            '[hard_samples.parameters]\nthreshold_img = "0.9"',
            '"hard_samples.parameters.threshold_img" is "0.9" in service "solder" (solder.toml): '
            "a number at least 0 and at most 1 belongs there",
        ),
        ('name = "solder"\nmodel = "a@"', "no model version"),
        ('name = "../x"\nmodel = "a"', '"name" is "../x"'),
        ('name = "a"\nname = "b"', "not valid TOML"),
        ("name = ", "not valid TOML"),
        ("x = " + "9" * 4000 * 2, "4096 bytes"),
        ("a = " + "[" * 4000, "nested too deeply"),
        ("x = " + "a" * MAX_SERVICE, "are allowed"),
        (MINIMAL + 'description = "\udcff"', "not UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_definition_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse_service(text, "solder.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-a", "a" * 65, "a\n"])
def test_bad_service_names_are_refused(name: str) -> None:
    with pytest.raises(ServiceError):
        parse_service(f'name = {json.dumps(name)}\nmodel = "m"\n', "solder.toml")


texts = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=40)
paths = texts.map(lambda t: "/" + t).filter(lambda p: ".." not in p)
lines_paths = paths.filter(lambda p: not p.lower().endswith(".csv"))  # that ending is for another kind of output
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
refs = names | st.builds("{}@{}".format, names, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True))
open_share = st.floats(0.001, 0.999)
filters = st.sampled_from(list(FILTERS)).flatmap(
    lambda name: st.builds(
        HardSamples,
        mode=st.just("filter"),
        filter=st.just(name),
        parameters=st.none()
        | st.fixed_dictionaries({}, optional={key: st.floats(0, 1) for key in FILTERS[name]}).map(
            lambda given: FilterParameters(**given)
        ),
        answer_model=refs,
    )
)
services = st.builds(
    Service,
    name=names,
    model=refs,
    priority=st.sampled_from(["alarm", "inline", "audit"]),
    deadline_ms=st.floats(0.001, 600_000.0),
    source=st.just(Source())
    | st.builds(
        Source,
        kind=st.just("folder"),
        path=paths,
        pattern=texts.filter(lambda t: t and "/" not in t),
        after=st.sampled_from(["keep", "move", "delete"]),
    ),
    hard_samples=st.builds(
        HardSamples,
        mode=st.sampled_from(["risk", "budget", "off"]),
        risk=open_share,
        confidence=open_share,
        budget=st.floats(0, 1),
        answer_model=refs,
        wait_ms=st.none() | st.floats(0, 600_000),
    )
    | filters,
    may_leave=st.sampled_from(["raw", "nothing"]),
    outputs=st.lists(st.builds(Output, path=lines_paths), max_size=3),
    retention=st.builds(Retention, spool_days=st.floats(0.1, 3650)),
)


@given(services)
def test_dumped_definitions_read_back_equal(service: Service) -> None:
    assert parse_service(dump_service(service), "x") == service


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_no_text_does_anything_but_parse_or_explain(text: str) -> None:
    with contextlib.suppress(ServiceError):
        parse_service(text, "x")


@given(services, st.data())
def test_every_misspelt_key_is_refused(service: Service, data: st.DataObject) -> None:
    table = msgspec.to_builtins(service)
    key = data.draw(st.sampled_from(sorted(table)))
    lines = [line for line in dump_service(service).split("\n") if not line.startswith(f"{key} =")]
    with pytest.raises(ServiceError, match="unknown key"):
        parse_service(f"{key}x = 1\n" + "\n".join(lines), "x")
