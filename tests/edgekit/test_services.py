"""Service definitions: defaults, round trip, and errors that name the key."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.services import (
    MAX_SERVICE,
    HardSamples,
    Output,
    Retention,
    Service,
    ServiceError,
    Source,
    dump_service,
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
        (MINIMAL + 'may_leave = "features"', "reserved"),
        (MINIMAL + "[hard_samples]\n", '"hard_samples.answer_model" is missing'),
        (MINIMAL + 'hard_samples = {answer_model = "A B"}', "no model name"),
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
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
refs = names | st.builds("{}@{}".format, names, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True))
open_share = st.floats(0.001, 0.999)
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
    ),
    may_leave=st.sampled_from(["raw", "nothing"]),
    outputs=st.lists(st.builds(Output, path=paths), max_size=3),
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
