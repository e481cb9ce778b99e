"""`[split]` and `may_leave`: what may leave is said once, and what could never be asked for is refused."""

from __future__ import annotations

import pytest

from edgekit.services import ServiceError, Split, dump_service, parse_service

ASKS = '[hard_samples]\nanswer_model = "large"\n'
SPLIT = '[split]\nheads = "large-head@2"\n'


def definition(top: str = "", tables: str = ASKS + SPLIT) -> str:
    return f'name = "solder"\nmodel = "small"\n{top}\n{tables}'


def test_a_service_whose_features_may_leave_names_a_head() -> None:
    service = parse_service(definition('may_leave = "features"'), "test")
    assert (service.may_leave, service.split) == ("features", Split(heads="large-head@2"))
    assert parse_service(dump_service(service), "again") == service


def test_a_split_is_one_more_way_where_pictures_may_leave() -> None:
    assert parse_service(definition(), "test").may_leave == "raw"


def test_a_service_that_asks_nobody_may_say_features_without_a_head() -> None:
    assert parse_service(definition('may_leave = "features"', ""), "test").split is None


@pytest.mark.parametrize(
    ("top", "tables", "words"),
    [
        ('may_leave = "features"', ASKS, '"split.heads" is missing'),
        ('may_leave = "nothing"', ASKS + SPLIT, '"may_leave" is "nothing"'),
        ("", SPLIT, '"split" is set in service "solder" (test): nobody is asked'),
        ('task = "detection"', ASKS + SPLIT, 'it belongs to task = "classification" only'),
        ("", ASKS + SPLIT + "[pipeline]\nroi = [0, 0, 1, 0.5]\n", '"pipeline" is set'),
        ("", ASKS + '[split]\nheads = "Large Head"\n', '"split.heads"'),
        ("", ASKS + "[split]\n", '"split.heads" is missing'),
        ("", ASKS + SPLIT + "cut = 3\n", 'unknown key "split.cut"'),
        ('may_leave = "feature"', ASKS, '"may_leave" is "feature"'),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_the_key_and_what_belongs_there(
    top: str, tables: str, words: str
) -> None:
    with pytest.raises(ServiceError) as error:
        parse_service(definition(top, tables), "test")
    assert words in str(error.value)
