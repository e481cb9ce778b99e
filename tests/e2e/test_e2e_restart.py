"""cloudd starts again: the first hard sample after that is answered in time, because the model is loaded before."""

from __future__ import annotations

from tests.support.edged import wait_for
from tests.support.stage import Plant, Template


def test_the_first_hard_sample_after_a_restart_of_cloudd_is_decided_by_the_cloud(template: Template) -> None:
    with Plant(template) as plant:
        plant.cloud.log_path.unlink()  # of the life before
        plant.start()
        plant.wait_for_link()
        before = plant.cloud.status()["totals"]["answered"]
        wait_for(lambda: "the model large@1 is loaded" in plant.cloud.log_tail())
        assert plant.cloud.status()["totals"]["answered"] == before
        first = plant.send()
        assert first.decided == "cloud", first
