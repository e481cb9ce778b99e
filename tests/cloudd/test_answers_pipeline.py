"""cloudd judges the part of a picture that the edge looked at, and refuses a pipeline that cannot be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler

from cloudd.answers.routes import routes
from cloudd.web import DEVICE_ID, new_app
from edgekit.envelope import seal
from edgekit.services import Pipeline, Tiles
from edgekit.vision.images import encode_png
from tests.support.answers import Cloud, cloud, sample
from tests.support.models import make_package


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with cloud(tmp_path) as opened:
        await opened.registry.add(make_package(tmp_path / "p", "big", "1").root)
        yield opened


def halves() -> bytes:
    """Dark on the left, bright on the right, grey on the average."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 32:] = 230
    return encode_png(image)


async def test_a_sample_is_judged_by_the_part_that_the_edge_looked_at(here: Cloud) -> None:
    whole = await here.answers.answer("DEV", sample(1), halves())
    right = await here.answers.answer("DEV", sample(2, pipeline=Pipeline(roi=[0.5, 0.0, 1.0, 1.0])), halves())
    tiles = Tiles(width=32, height=32, worst=["only the edge knows this label", "dark"])
    worst = await here.answers.answer("DEV", sample(3, pipeline=Pipeline(tiles=tiles)), halves())
    assert right.verdict.label == "bright"
    assert worst.verdict.label == "dark"
    assert whole.verdict.label not in ("bright",)


async def test_a_pipeline_that_cannot_be_is_refused_and_harms_no_worker(here: Cloud) -> None:
    @web.middleware
    async def as_device(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[DEVICE_ID] = "DEV"
        return await handler(request)

    app = new_app(as_device)
    app.add_routes(routes(here.answers))
    async with TestClient(TestServer(app)) as client:
        hostile = (
            (Pipeline(roi=[0.1]), "left, top, right and bottom"),
            (Pipeline(roi=[1e300, -1.0, 2.0, 3.0]), "left, top, right and bottom"),
            (Pipeline(tiles=Tiles(width=8, height=8, overlap=16_000)), "overlap"),
            (Pipeline(tiles=Tiles(width=0, height=8, aggregate="mean")), "tiles.width"),
        )
        for number, (pipeline, words) in enumerate(hostile):
            reply = await client.post("/v1/answers", data=seal(sample(number, pipeline=pipeline), halves()))
            assert reply.status == 400
            assert words in await reply.text()
        outside = Pipeline(roi=[0, 0, 9000, 9000], roi_unit="pixel")
        reply = await client.post("/v1/answers", data=seal(sample(8, pipeline=outside), halves()))
        assert reply.status == 422 and "outside of this picture" in await reply.text()
        assert (await client.post("/v1/answers", data=seal(sample(9), halves()))).status == 200
