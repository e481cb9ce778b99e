"""Which labels a job's dataset version is made of: boxes where the model learns boxes, labels of pictures elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from learning_bench import DEFINITION, Bench
from support.models import picture

from edged.learning.settings import label_kind
from edged.samples.bodies import AddHeader
from edged.samples.records import Label, LabelRecord, NewSample
from edgekit.datasets.dataset import LabelledBox
from edgekit.services import parse_service

TILES = "[pipeline.tiles]\nwidth = 8\nheight = 8\n"


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ("", "labels"),
        ('task = "detection"\n', "boxes"),
        (TILES + 'worst = ["dark"]\n', "boxes"),
        (TILES + 'aggregate = "mean"\n', "labels"),
    ],
)
def test_a_service_learns_from_the_labels_that_say_where(more: str, kind: str) -> None:
    assert label_kind(parse_service('name = "solder"\nmodel = "small"\n' + more, "test")) == kind


async def test_a_job_of_tiles_gets_the_pictures_with_boxes_and_no_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path, definition=DEFINITION + TILES + 'worst = ["dark", "dim", "bright"]\n')
    try:
        await bench.label(6, "bridge")
        for number in range(5):
            new = NewSample(service="solder", source="asked", captured_at=bench.now + number)
            label = Label(boxes=(LabelledBox("dark", 1, 1, 7, 7),))
            record = LabelRecord(label=label, kind="operator", author="anna", at=bench.now)
            await bench.samples.add(AddHeader(new=new, label=record), picture(0.9, seed=100 + number))
        await bench.look(5)
        assert not bench.orders, "a class whose rank the definition cannot name starts no job"
        await bench.desk.start("solder", "head", "anna")
        await bench.until_ordered(1)
        (order,) = bench.orders
        (version,) = [one for one in await bench.samples.versions() if one.name == order.dataset]
        assert version.pictures == 5 and version.summary.labels == {"dark": 5}
    finally:
        await bench.end()
