"""The table [local] of a job: what goes together, and what of it is in the train step."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudd.federation.definition import read
from cloudd.federation.errors import FederationError
from cloudd.federation.preparing import prepare
from edgekit.autodiff.manifest import read_manifest
from edgekit.packages import Package
from edgekit.training import STEP_FOLDER
from tests.support.federation import Plant, definition

FEDAVG = '[plan.strategy]\nstrategy = "fedavg"\nclip = 1.0\n'


def job(local: str, strategy: str = FEDAVG) -> str:
    return definition(Plant(3), f"[local]\n{local}\n{strategy}")


@pytest.mark.parametrize(
    ("local", "strategy", "says"),
    [
        ('optimiser = "adamw"\nmomentum = 0.9', FEDAVG, "belongs to sgd"),
        ("steps = 4\nepochs = 2", FEDAVG, "write one of the two"),
        ("steps = -1", FEDAVG, "at least 0|>= 0"),
        ('optimiser = "adam"', FEDAVG, "local.optimiser"),
        ('schedule = "steps"', FEDAVG, "local.schedule"),
        (
            'optimiser = "adamw"',
            '[plan.strategy]\nstrategy = "scaffold"\nclip = 1.0\ndevices = 3\ncontrol_scale = 1.0\n',
            "SCAFFOLD's correction",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(local: str, strategy: str, says: str) -> None:
    with pytest.raises(FederationError, match=says):
        read(job(local, strategy))


def test_the_step_has_the_optimiser_that_the_job_names(package: Package, tmp_path: Path) -> None:
    states = {}
    for name in ("sgd", "adamw"):
        prepare(package, *read(job(f'optimiser = "{name}"')), tmp_path / name)
        manifest = read_manifest(tmp_path / name / STEP_FOLDER)
        states[name] = {one.name for one in manifest.of("optimiser")}
    assert not states["sgd"]
    assert "optimiser.step" in states["adamw"] and any(name.endswith(".second") for name in states["adamw"])


def test_adamw_goes_with_a_proximal_term(package: Package, tmp_path: Path) -> None:
    prepare(package, *read(job('optimiser = "adamw"', FEDAVG + "proximal = 0.1\n")), tmp_path / "plan")
    assert read_manifest(tmp_path / "plan" / STEP_FOLDER).of("optimiser")
