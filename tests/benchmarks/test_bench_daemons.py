from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.daemons import Cloud, DaemonError, Fleet
from tests.support.models import make_package, picture


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the daemons' unix sockets lie under it."""
    with tempfile.TemporaryDirectory(prefix="edb-") as name:
        yield Path(name)


def test_a_fleet_does_the_main_job_and_leaves_nothing_behind(folder: Path) -> None:
    make_package(folder / "large", name="large")
    make_package(folder / "small", name="small")
    with Fleet(folder) as fleet:
        cloud = fleet.start_cloud(flags=["--heartbeat", "1"])
        cloud.add_model(folder / "large")
        edge = fleet.start_edge("line")
        edge.join(cloud)
        assert edge.add_model(folder / "small") == "small@1"
        edge.add_service('name = "s"\nmodel = "small"\ndeadline_ms = 20000\n[hard_samples]\nanswer_model = "large"\n')
        decision = edge.inspect("s", picture(0.9))
        assert (decision.label, decision.decided, decision.sent) == ("bright", "cloud", "calibrating")
        assert "Calibrating" in edge.service("s").report.gate or edge.service("s").report.inspected <= 1
        with pytest.raises(DaemonError, match="404"):
            edge.inspect("nothing", picture(0.9))

        url = cloud.url
        cloud.stop()
        edge.wait_for_link(False)
        cloud.start()
        assert cloud.url == url
        edge.wait_for_link(True)
        processes = [d.process for d in (cloud, edge)]
    assert all(p is not None and p.poll() == 0 for p in processes)


def test_a_daemon_that_cannot_start_shows_its_log(folder: Path) -> None:
    cloud = Cloud(folder / "cloud", flags=["--heartbeat", "-3"])
    with pytest.raises(DaemonError, match="ended with status 1") as caught:
        cloud.start()
    assert "heartbeat" in str(caught.value)
