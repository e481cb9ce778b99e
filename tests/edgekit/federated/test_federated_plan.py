"""A job is written in TOML, strictly; combinations that would be wrong are refused before anybody trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.federated.averaging import AveragingStrategy
from edgekit.federated.nova import NovaStrategy
from edgekit.federated.plan import Plan
from edgekit.federated.scaffold import ScaffoldStrategy
from edgekit.federated.sums import Room

SHAPES = {"body.weight": (4, 3), "norm.scale": (4,), "head.weight": (2, 4)}
JOB = """
personal = ["norm.*"]

[strategy]
strategy = "adaptive"
kind = "yogi"
clip = 2.0
"""


def plan(**changes: Any) -> Plan:
    return msgspec.convert({"strategy": {"strategy": "fedavg", "clip": 1.0}} | changes, Plan)


def test_a_job_is_read_from_toml_and_built_for_a_model() -> None:
    strategy = msgspec.toml.decode(JOB, type=Plan).build(SHAPES)
    assert isinstance(strategy, AveragingStrategy)
    assert strategy.slots == ("momentum", "variance")
    assert strategy.layout.personal == ("norm.scale",)
    assert strategy.numbers.parameters == 20


def test_the_documented_job_is_accepted() -> None:
    page = (Path(__file__).parents[3] / "docs/federated.md").read_text("utf-8")
    job = msgspec.toml.decode(page.split("```\n")[1], type=Plan)
    assert isinstance(job.build(SHAPES), ScaffoldStrategy)
    assert job.privacy is not None


@pytest.mark.parametrize(
    ("settings", "kind", "parameters"),
    [
        ({"strategy": "fedavg", "clip": 1.0, "proximal": 0.1}, AveragingStrategy, 24),
        ({"strategy": "fedavgm", "clip": 1.0}, AveragingStrategy, 24),
        ({"strategy": "scaffold", "clip": 1.0, "devices": 9, "control_scale": 2.0}, ScaffoldStrategy, 48),
        ({"strategy": "fednova", "clip": 1.0, "most_steps": 50}, NovaStrategy, 25),
    ],
)
def test_every_strategy_is_built_by_its_name(settings: dict[str, Any], kind: type, parameters: int) -> None:
    strategy = plan(strategy=settings).build(SHAPES)
    assert isinstance(strategy, kind)
    assert strategy.numbers.parameters == parameters
    assert strategy.start(np.zeros(24, np.float32)).version == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"strategy": {"strategy": "krum", "clip": 1.0}}, "krum"),
        ({"strategy": {"strategy": "fedavg", "clip": 0.0}}, "clip"),
        ({"strategy": {"strategy": "fedavg", "clip": 1.0, "momentum": 0.9}}, "momentum"),
        ({"robust": {"kind": "median", "buckets": 5, "min_bucket": 1}}, "min_bucket"),
        ({"robust": {"kind": "trimmed-mean", "buckets": 4, "trim": 2}}, "can be trimmed"),
        (
            {
                "strategy": {"strategy": "fedavg", "clip": 1.0, "weighting": {"most": 9}},
                "privacy": {"noise_multiplier": 1.0},
            },
            "weigh 1",
        ),
        (
            {"strategy": {"strategy": "scaffold", "clip": 1.0, "devices": 9, "control_scale": 2.0}, "max_age": 3},
            "older model",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=text):
        plan(**changes)


def test_privacy_hides_the_whole_vector_of_the_strategy() -> None:
    scaffold = {"strategy": "scaffold", "clip": 1.0, "devices": 9, "control_scale": 2.0}
    job = plan(strategy=scaffold, privacy={"noise_multiplier": 1.0})
    strategy = job.build(SHAPES)
    mechanism = job.mechanism(strategy, Room(invited=9))
    assert mechanism is not None
    assert (mechanism.parameters, mechanism.clip) == (48, strategy.numbers.clip)
    assert plan().mechanism(strategy, Room(invited=9)) is None
