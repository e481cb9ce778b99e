"""Mosaics and detectors through a real answer worker: every region answered, kept and repeated."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler
from msgspec.structs import replace
from numpy.typing import NDArray

from cloudd.answers.looks import WHOLE, Look
from cloudd.answers.pool import Busy, PictureRefused
from cloudd.answers.process import Worker
from cloudd.answers.routes import routes
from cloudd.answers.store import Retention
from cloudd.web import DEVICE_ID, new_app
from edgekit.envelope import seal
from edgekit.messages import Answer, HardSample, ModelAnswer, Verdict, in_full, packed
from edgekit.regions.answers import compare
from edgekit.regions.cutouts import EXACT, Context, region
from edgekit.regions.header import FloatBox, MosaicHeader, RegionReason, check_answer
from edgekit.regions.mosaic import Mosaic, compose
from edgekit.regions.select import Candidate
from edgekit.services import Pipeline, Tiles
from edgekit.vision.images import encode_png
from tests.edgekit.vision.detection.detection_models import board, rectangle_package, template_package
from tests.support.answers import Cloud, cloud, sample
from tests.support.models import make_package

WIDE, HIGH = 320, 240
BRIGHT = [(20.0, 20.0, 60.0, 50.0), (200.0, 30.0, 240.0, 90.0)]  # rectangles of the frame
DARK = (120.0, 150.0, 160.0, 190.0)  # nothing is there
AROUND = Context(0.5, 8)


def frame() -> NDArray[np.uint8]:
    image = np.zeros((HIGH, WIDE, 3), np.uint8)
    for left, top, right, bottom in BRIGHT:
        image[int(top) : int(bottom), int(left) : int(right)] = 255
    return image


def cut(
    asked: Sequence[tuple[FloatBox, str, float]],
    context: Context = EXACT,
    reason: RegionReason = "hard",
    longest: int = 512,
) -> Mosaic:
    """A mosaic of (box, the edge's label, its margin); the indices are 10, 11, ..."""
    regions = [
        region(10 + i, Candidate(box, label, 0.6, margin), reason, context, WIDE, HIGH)
        for i, (box, label, margin) in enumerate(asked)
    ]
    return compose(frame(), regions, longest=longest)


def question(number: int, mosaic: Mosaic, model: str, **changes: object) -> HardSample:
    return sample(number, model, mosaic=mosaic.header, **changes)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with cloud(tmp_path) as opened:
        await opened.registry.add(make_package(tmp_path / "p", "big", "1").root)
        await opened.registry.add(rectangle_package(tmp_path / "q").root)
        yield opened


# --- a classifier answers -------------------------------------------------------------------------------------------


async def test_a_classifier_answers_every_region_by_its_own_view(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1), (BRIGHT[1], "bright", 0.9)])
    answer = await here.answers.answer("DEV", question(1, mosaic, "big"), mosaic.encode())
    assert answer.mosaic is not None
    check_answer(mosaic.header, answer.mosaic)
    assert {one.index: one.label for one in answer.mosaic.regions} == {10: "bright", 11: "dark", 12: "bright"}
    assert (answer.verdict.label, answer.verdict.model) == ("dark", "big@1"), "of the edge's least sure region"
    (kept,) = await here.store.recent(10)
    assert (kept.regions, kept.differing, kept.agrees) == (3, [11], False)
    assert await here.store.mosaic(kept.id) == (mosaic.header, answer.mosaic)


async def test_a_mosaic_agrees_only_if_every_region_does(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "dark", 0.1)])
    await here.answers.answer("DEV", question(1, mosaic, "big"), mosaic.encode())
    (kept,) = await here.store.recent(10)
    assert (kept.regions, kept.differing, kept.agrees) == (2, [], True)


async def test_a_repeated_mosaic_gets_the_same_answer(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
    first = await here.answers.answer("DEV", question(1, mosaic, "big"), mosaic.encode())
    again = await here.answers.answer("DEV", question(1, mosaic, "big"), mosaic.encode())
    assert again == replace(first, repeated=True, waited_ms=0.0)
    assert again.mosaic is not None


async def test_a_whole_picture_is_classified_without_regions(here: Cloud) -> None:
    answer = await here.answers.answer("DEV", sample(1), encode_png(frame()))
    assert answer.mosaic is None
    (kept,) = await here.store.recent(10)
    assert (kept.regions, kept.differing) == (0, [])
    assert await here.store.mosaic(kept.id) == (None, None)


# --- a detector answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [512, 48], ids=["as it is", "scaled down"])
async def test_a_detector_finds_boxes_in_pixels_of_the_frame(here: Cloud, longest: int) -> None:
    mosaic = cut([(BRIGHT[0], "", 0.3), (BRIGHT[1], "other", 0.1), (DARK, "rectangle", 0.2)], AROUND, longest=longest)
    answer = await here.answers.answer("DEV", question(1, mosaic, "finder"), mosaic.encode())
    assert answer.mosaic is not None and answer.mosaic.task == "detection"
    check_answer(mosaic.header, answer.mosaic)
    outcomes, beside = compare(mosaic.header, answer.mosaic)
    said = {one.region.index: one for one in outcomes}
    assert [said[index].label for index in (10, 11, 12)] == ["rectangle", "rectangle", ""] and not beside
    for index, truth in zip((10, 11), BRIGHT, strict=True):
        assert np.abs(np.array(said[index].box) - truth).max() < 5, "a pixel of the model's input is up to 2 of these"
    assert answer.verdict.label == "rectangle"
    (kept,) = await here.store.recent(10)
    assert (kept.regions, sorted(kept.differing), kept.agrees) == (3, [10, 11, 12], False)


async def test_where_nothing_is_found_the_verdict_says_so_in_a_word(here: Cloud) -> None:
    mosaic = cut([(DARK, "rectangle", 0.2), (BRIGHT[0], "rectangle", 0.9)], AROUND)
    answer = await here.answers.answer("DEV", question(1, mosaic, "finder"), mosaic.encode())
    assert answer.verdict.label == "nothing"
    (kept,) = await here.store.recent(10)
    assert kept.differing == [10]


async def test_a_frame_without_a_finding_that_was_looked_at_all_the_same_differs_if_something_is_there(
    here: Cloud,
) -> None:
    for number, box in enumerate((DARK, BRIGHT[0])):
        mosaic = cut([(box, "", 0.95)], AROUND, "silent")
        await here.answers.answer("DEV", question(number, mosaic, "finder"), mosaic.encode())
    second, first = await here.store.recent(10)
    assert (first.agrees, second.agrees) == (True, False)


async def test_a_clean_tile_in_which_a_detector_finds_nothing_is_no_difference(here: Cloud) -> None:
    mosaic = cut([(DARK, "dark", 0.2)])
    await here.answers.answer("DEV", question(1, mosaic, "finder", clean="dark"), mosaic.encode())
    await here.answers.answer("DEV", question(2, mosaic, "finder"), mosaic.encode())
    without, named = await here.store.recent(10)
    assert named.agrees
    assert without.differing == [10]


async def test_a_detector_answers_a_whole_picture_with_boxes_too(here: Cloud) -> None:
    one = np.zeros((HIGH, WIDE), np.uint8)
    one[30:90, 200:240] = 255
    edge = Verdict(label="rectangle", score=0.6, margin=0.2, model="small@1")
    seen = await here.answers.answer("DEV", sample(1, "finder", edge=edge), encode_png(one))
    assert seen.verdict.label == "rectangle" and seen.mosaic is not None
    (box,) = seen.mosaic.found
    assert (box.cell, box.label) == (0, "rectangle") and np.abs(np.array(box.box) - BRIGHT[1]).max() <= 5
    none = await here.answers.answer("DEV", sample(2, "finder", edge=edge), encode_png(np.zeros_like(one)))
    assert none.verdict.label == "nothing" and none.mosaic is not None and not none.mosaic.found
    second, first = await here.store.recent(10)
    assert (first.agrees, second.agrees, first.regions) == (True, False, 0)
    assert await here.store.mosaic(first.id) == (None, seen.mosaic)


async def test_a_detector_looks_at_tiles_of_a_whole_picture_if_the_edge_did(here: Cloud) -> None:
    halves = Pipeline(tiles=Tiles(width=WIDE // 2, height=HIGH))
    answer = await here.answers.answer("DEV", sample(1, "finder", pipeline=halves), encode_png(frame()))
    assert answer.mosaic is not None
    assert len(answer.mosaic.found) == 2, "the model finds one rectangle in each picture that it sees"


async def test_a_golden_picture_cannot_answer_parts(here: Cloud, tmp_path: Path) -> None:
    await here.registry.add(template_package(tmp_path / "t", board()).root)
    whole = await here.answers.answer("DEV", sample(1, "bare-board"), encode_png(board()))
    assert whole.verdict.label == "nothing"
    mosaic = cut([(BRIGHT[0], "missing", 0.5)])
    with pytest.raises(PictureRefused, match="whole pictures"):
        await here.answers.answer("DEV", question(2, mosaic, "bare-board"), mosaic.encode())


async def test_a_worker_that_answers_something_else_costs_one_question(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
    await here.answers.answer("DEV", question(1, mosaic, "big"), mosaic.encode())
    (worker,) = here.pool._live.values()
    verdict = Verdict(label="bright", score=0.9, margin=0.8, model="big@1")
    forged = ModelAnswer(ticket=next(worker._tickets) + 1, verdict=verdict)  # as if a picture had taken it over
    worker._reader.feed_data(seal(forged))
    with pytest.raises(Busy, match="failed on this sample"):
        await here.answers.answer("DEV", question(2, mosaic, "big"), mosaic.encode())
    again = await here.answers.answer("DEV", question(2, mosaic, "big"), mosaic.encode())
    assert again.mosaic is not None and here.pool.restarts == 1


async def test_many_regions_may_take_longer_than_one_picture(here: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    ask_worker = Worker.ask

    async def ask(
        self: Worker, model: str, directory: str, data: bytes, timeout: float, look: Look = WHOLE
    ) -> tuple[ModelAnswer, bytes]:
        if data:
            limits.append(timeout)
        return await ask_worker(self, model, directory, data, timeout, look)

    monkeypatch.setattr(Worker, "ask", ask)
    mosaic = cut([(DARK, "dark", 0.5)] * 17)
    await here.answers.answer("DEV", question(1, mosaic, "big"), mosaic.encode())
    await here.answers.answer("DEV", sample(2), encode_png(frame()))
    assert limits == [2 * here.pool.settings.answer_s, here.pool.settings.answer_s]


# --- at rest --------------------------------------------------------------------------------------------------------


async def test_with_the_picture_goes_what_was_where_in_it_and_a_repeat_stays_a_repeat(tmp_path: Path) -> None:
    async with cloud(tmp_path, retention=Retention(pictures=1)) as here:
        await here.registry.add(make_package(tmp_path / "p", "big", "1").root)
        mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
        answers = [
            await here.answers.answer("DEV", question(number, mosaic, "big"), mosaic.encode(80 + number))
            for number in range(2)
        ]
        await here.store.trim()
        newest, oldest = await here.store.recent(10)
        assert await here.store.mosaic(newest.id) == (mosaic.header, answers[1].mosaic)
        assert await here.store.mosaic(oldest.id) == (None, answers[0].mosaic)
        assert (oldest.regions, oldest.differing) == (2, [11])
        assert await here.store.find("DEV", "s0") == replace(answers[0], repeated=True, waited_ms=0.0)


# --- over HTTP ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(here: Cloud) -> AsyncIterator[TestClient[Any, Any]]:
    @web.middleware
    async def as_device(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[DEVICE_ID] = "DEV"
        return await handler(request)

    app = new_app(as_device)
    app.add_routes(routes(here.answers))
    async with TestClient(TestServer(app)) as client:
        yield client


def changed(header: MosaicHeader, place: str, value: object) -> HardSample:
    """A sample whose header has another value at a place like "cells.0.1"."""
    built = msgspec.to_builtins(sample(1, mosaic=header))
    at: Any = built["mosaic"]
    *path, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    for step in path:
        at[step] = list(at[step]) if isinstance(at[step], tuple) else at[step]
        at = at[step]
    at[last] = value
    return msgspec.convert(built, Loose)


class Loose(HardSample, frozen=True, kw_only=True):
    """A sample that may say anything about its mosaic."""

    mosaic: Any = None


async def test_a_mosaic_goes_over_http_and_comes_back(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
    async with served(here) as client:
        reply = await client.post("/v1/answers", data=seal(question(1, mosaic, "big"), mosaic.encode()))
        assert reply.status == 200
        answer = msgspec.json.decode(await reply.read(), type=Answer)
        assert answer.mosaic is not None
        check_answer(mosaic.header, answer.mosaic)


async def test_a_webp_is_answered_where_it_is_a_mosaic_and_nowhere_else(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
    picture = mosaic.encode(webp=True)
    assert picture[:4] == b"RIFF"
    async with served(here) as client:
        reply = await client.post("/v1/answers", data=seal(*packed(question(1, mosaic, "big"), picture)))
        assert reply.status == 200
        answer = in_full(question(1, mosaic, "big"), msgspec.json.decode(await reply.read(), type=Answer))
        assert answer.mosaic is not None and answer.webp
        assert {one.index: one.label for one in answer.mosaic.regions} == {10: "bright", 11: "dark"}
        refused = await client.post("/v1/answers", data=seal(sample(2), picture))
        assert refused.status == 422 and "not a JPEG or PNG" in await refused.text()
    (kept,) = await here.store.recent(10)
    assert await here.store.picture(kept.id) == picture
    small = await here.store.picture(kept.id, thumbnail=True)
    assert small is not None and small[:2] == b"\xff\xd8", "our own, and a JPEG"


async def test_who_understands_columns_gets_them_and_a_detectors_boxes_stay_what_they_are(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
    async with served(here) as client:
        for number, (model, brief, in_columns) in enumerate(
            (("big", True, True), ("big", False, False), ("finder", True, False))
        ):
            asked = question(number, mosaic, model, brief=brief)
            reply = await client.post("/v1/answers", data=seal(asked, mosaic.encode()))
            sent = msgspec.json.decode(await reply.read(), type=Answer)
            assert ((sent.columns is not None), (sent.mosaic is not None)) == (in_columns, not in_columns)
            whole = in_full(asked, sent)
            assert whole.mosaic is not None
            check_answer(mosaic.header, whole.mosaic)


async def test_a_packed_header_is_understood_and_refused_like_a_plain_one(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
    asked, payload = packed(question(1, mosaic, "big"), mosaic.encode())
    asked = msgspec.structs.replace(asked, brief=False)
    empty = msgspec.structs.replace(mosaic.header, size=(8, 8))
    bad, other = packed(msgspec.structs.replace(question(2, mosaic, "big"), mosaic=empty), mosaic.encode())
    async with served(here) as client:
        for sent, body, words in (
            (bad, other, "outside of the mosaic"),
            (asked, b"x" * asked.packed + mosaic.encode(), "damaged"),
            (msgspec.structs.replace(asked, packed=1 << 30), payload, "are said to be packed"),
        ):
            reply = await client.post("/v1/answers", data=seal(sent, body))
            assert reply.status == 400 and words in await reply.text()
        unknown = msgspec.structs.replace(asked, packed=0)  # as a cloudd that does not know it yet sees it
        assert (await client.post("/v1/answers", data=seal(unknown, payload))).status == 422
        reply = await client.post("/v1/answers", data=seal(asked, payload))
        assert reply.status == 200
        answer = msgspec.json.decode(await reply.read(), type=Answer)
        assert answer.mosaic is not None
        check_answer(mosaic.header, answer.mosaic)
    (kept,) = await here.store.recent(10)
    assert await here.store.mosaic(kept.id) == (mosaic.header, answer.mosaic)


async def test_a_mosaic_that_cannot_be_is_refused_before_any_model_runs(here: Cloud) -> None:
    mosaic = cut([(BRIGHT[0], "bright", 0.5), (DARK, "bright", 0.1)])
    header, picture = mosaic.header, mosaic.encode()
    one = msgspec.to_builtins(header)["cells"][0]
    hostile: list[tuple[HardSample, str]] = [
        (changed(header, "size", [8, 8]), "outside of the mosaic"),
        (changed(header, "size", [4096, 4096]), "its header says"),
        (changed(header, "size", [5000, 10]), "4096x4096 are allowed"),
        (changed(header, "frame", [0, 0]), "the frame has"),
        (changed(header, "cells", []), "length"),
        (changed(header, "cells", [one, one]), "overlap"),
        (changed(header, "cells", [one] * 257), "length"),
        (changed(header, "cells.0.0", [0, 0, 10**400, 10]), "Expected `int`"),
        (changed(header, "cells.0.0", [0, 0, 1, 10**18]), "Expected `int`"),
        (changed(header, "cells.0.0", [0, 0, 1, 10**9]), "outside of the mosaic"),
        (changed(header, "cells.0.1", [-1, 0, 20, 20]), "outside of the frame"),
        (changed(header, "cells.0.2", []), "length"),
        (changed(header, "cells.0.2.0.0", -1), "0"),
        (changed(header, "cells.0.2.0.3", "a\nb"), "printable"),
        (changed(header, "cells.0.2.0.3", "x" * 201), "200"),
        (changed(header, "cells.0.2.0.4", 1.5), "1.0"),
        (changed(header, "cells.0.2.0.6", "because"), "because"),
        (question(1, mosaic, "big", pipeline=Pipeline(roi=[0.0, 0.0, 0.5, 0.5])), "belongs to whole pictures"),
        (question(1, mosaic, "big", clean="a\tb"), "printable"),
    ]
    async with served(here) as client:
        for asked, words in hostile:
            reply = await client.post("/v1/answers", data=seal(asked, picture))
            text = await reply.text()
            assert (reply.status, words in text) == (400, True), (words, text)
            assert len(text) < 1000
        assert here.pool.pids == [], "no worker was even started"
        assert (await client.post("/v1/answers", data=seal(question(1, mosaic, "big"), picture))).status == 200
