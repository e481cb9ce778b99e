"""The parts of `benchmarks.federation` that need no daemon."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import federation
from benchmarks.federation import CLASSES, Run
from benchmarks.federation_device import MadeUp
from cloudd.federation.definition import read
from cloudd.federation.preparing import prepare
from edgekit.federated.strategy import LocalTerm, State
from edgekit.packages import open_package
from tests.support.federation import Plant


@pytest.mark.parametrize("secure", [True, False])
def test_its_job_is_one_and_its_model_has_the_values_that_it_says(tmp_path: Path, secure: bool) -> None:
    run = Run("secure-3", 3, 4, secure, 2)
    definition, plan = read(federation.job_text(run, Plant(0).public))
    assert (definition.secure, definition.least, definition.most) == (secure, 3, 3)
    package = open_package(federation.package(tmp_path, run.side))
    assert prepare(package, definition, plan, tmp_path / "plan") == run.values == 17 * CLASSES


def test_made_up_updates_differ_with_device_and_version() -> None:
    state = State(np.zeros(100, np.float32))
    term = LocalTerm(state.model)
    updates = [MadeUp(place, 100).train(state, term, version).delta for place in (0, 1) for version in (0, 1)]
    assert len({update.tobytes() for update in updates}) == 4


def test_memory_and_cpu_time_of_a_process_are_read() -> None:
    assert federation.memory_mb(os.getpid(), "VmHWM") >= federation.memory_mb(os.getpid(), "VmRSS") - 1 > 1
    assert federation.cpu_s(os.getpid()) > 0
