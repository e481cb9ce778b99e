"""From a picture on the line to a sample: the whole way through the worker."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from edged.samples.records import Sample, SampleStats
from tests.support.edged import Edged, wait_for
from tests.support.models import make_package, picture


def test_pictures_of_the_line_are_kept_by_policy_and_outlive_the_daemon(tmp_path: Path) -> None:
    make_package(tmp_path / "package")
    definition = 'name = "solder"\nmodel = "brightness"\ndeadline_ms = 5000\n'
    state = tmp_path / "state"
    with Edged(state) as edged:
        edged.add_model(tmp_path / "package")
        edged.add_service(definition)
        _inspect(edged, 0.3)
        assert edged.client.get("/samples/stats", SampleStats).items == 0, "without [samples] nothing is kept"
        edged.add_service(definition + '[samples]\nkeep = "all"\n')
        for brightness in (0.1, 0.5, 0.9, 0.9):
            _inspect(edged, brightness)
        stats = wait_for(lambda: _when(edged, items=3, repeated=1))
        assert stats.sources == {"random": 3}
    with Edged(state) as edged:
        kept = edged.client.get("/samples?service=solder", list[Sample])
        assert len(kept) == 3 and all(one.edge is not None and one.edge.model == "brightness@1" for one in kept)
        data = edged.client.data(f"/samples/{kept[0].id}/picture", 1 << 20)
        assert data in {picture(value) for value in (0.1, 0.5, 0.9)}


def _when(edged: Edged, items: int, repeated: int) -> SampleStats | None:
    stats = edged.client.get("/samples/stats", SampleStats)
    return stats if (stats.items, stats.counters.get("repeated")) == (items, repeated) else None


def _inspect(edged: Edged, brightness: float) -> None:
    url = f"http://{edged.status().addresses.inference}/v1/services/solder/inspect"
    request = urllib.request.Request(url, picture(brightness), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        assert json.load(reply)["service"] == "solder"
