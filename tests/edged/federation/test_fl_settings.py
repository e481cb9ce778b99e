"""The `[federation]` table: strict, and shut by default."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config import ConfigError, Flags, load
from edged.federation.settings import Federation, key_bytes, key_text, open_at
from edgekit.federated.sums import value_numbers
from edgekit.identity import generate_key
from edgekit.secagg import signatures
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import RoundConfig

KEY = signatures.point(generate_key().public_key()).hex()


def _load(tmp_path: Path, text: str) -> Federation:
    path = tmp_path / "edged.toml"
    path.write_text(text)
    found = load(Flags(state=str(tmp_path), config=str(path)), {}).federation
    assert found is not None
    return found


def test_a_device_takes_part_in_nothing_that_its_table_does_not_say(tmp_path: Path) -> None:
    assert load(Flags(state=str(tmp_path)), {}).federation is None
    table = _load(tmp_path, "[federation]\n")
    assert not table.enabled and not table.plain and table.min_cohort == 5 and table.repeats == 0


def test_all_keys_of_the_policy_are_keys_of_the_table(tmp_path: Path) -> None:
    table = _load(
        tmp_path,
        f'[federation]\nenabled = true\nmin_owners = 2\nmax_clip = 5.0\nepsilon = 4\nhours = "22:00-06:00"\n'
        f'services = ["solder"]\n[federation.plants]\nnorth = "{KEY}"\n',
    )
    assert (table.min_owners, table.max_clip, table.epsilon, table.services) == (2, 5.0, 4.0, ["solder"])
    assert signatures.point(table.trusted()["north"]).hex() == KEY


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[federation]\nenable = true\n", 'did you mean "enabled"'),
        ("[federation]\nmin_cohort = 2\n", "at least 3"),
        ("[federation]\nepsilon = nan\n", "epsilon"),
        ('[federation]\nhours = "22-6"\n', "22:00-06:00"),
        ("[federation]\nenabled = true\n", "federation.plants"),
        ('[federation.plants]\nnorth = "02ff"\n', "66 hex digits"),
        (f'[federation.plants]\nnorth = "{KEY}"\nsouth = "{KEY}"\n', "one plant is one owner"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match="federation") as caught:
        _load(tmp_path, text)
    assert sentence in str(caught.value)


def test_a_key_that_is_no_point_of_the_curve_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no point"):
        _load(tmp_path, f'[federation.plants]\nnorth = "02{"f" * 64}"\n')


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_hours_that_go_over_midnight_are_the_rest_of_those_that_do_not(a: int, b: int, now: int) -> None:
    def text(x: int, y: int) -> str:
        return f"{x // 60:02}:{x % 60:02}-{y // 60:02}:{y % 60:02}"

    assert open_at("", now)
    if a != b:
        assert open_at(text(a, b), now) != open_at(text(b, a), now)


def test_keys_read_back_as_they_are_printed() -> None:
    assert key_text(key_bytes(KEY)) == KEY


@pytest.mark.parametrize(("clip", "fits"), [(1000.0, True), (1000.1, False)])
def test_a_job_may_clip_at_exactly_what_the_device_allows(clip: float, fits: bool) -> None:
    numbers = value_numbers(10, clip, 1.0, 1)
    config = numbers.put_into(
        RoundConfig(
            session=bytes(16), round=0, invited=5, colluders=1, parameters=1, clip=1.0, limit=1.0, max_weight=1,
            bits=32, prg="aes-256-ctr", model=bytes(32), rosters=bytes(32),
        )
    )  # fmt: skip
    with contextlib.nullcontext() if fits else pytest.raises(Refusal, match="max_clip"):
        Federation(max_clip=1000.0).check_config(config)
