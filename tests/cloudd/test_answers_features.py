"""Features of a head are answered as the whole model answers the picture, and hostile ones harm nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudd.answers.pool import PictureRefused
from cloudd.answers.routes import routes
from cloudd.answers.service import UnfitModel, UnknownModel
from cloudd.answers.store import Used
from cloudd.answers.tails import Tail
from cloudd.web import DEVICE_ID, new_app
from edgekit.envelope import seal
from edgekit.messages import UNSEEN, Answer, FeaturesHeader, HardSample, ModelEntry, Problem, Verdict
from edgekit.runtimes import ModelError
from edgekit.services import Pipeline
from edgekit.splitting import features
from edgekit.vision.classification import Classifier
from edgekit.vision.sniff import ImageError, sniff
from tests.support.answers import EDGE, Cloud, cloud, loaded, sample, until
from tests.support.tails import Split, make_split, scene

CLOSE = 5e-3
"""What the rounding of features to eight bits changes in a score of this small model, at most."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("split"))


@pytest.fixture
async def here(tmp_path: Path, split: Split) -> AsyncIterator[Cloud]:
    async with cloud(tmp_path) as opened:
        await opened.registry.add(split.whole.root)
        await opened.registry.add(split.tail.root)
        yield opened


def asked(split: Split, cut: str, number: int = 1, **changes: object) -> HardSample:
    return sample(number, split.whole.ref, features=split.header(cut), **changes)


# --- the answer ------------------------------------------------------------------------------------------------------


async def test_features_are_answered_as_the_whole_model_answers_the_picture(here: Cloud, split: Split) -> None:
    number, labels = 0, set()
    for seed in range(6):
        picture = scene(seed)
        whole = await here.answers.answer("DEV", sample(number, split.whole.ref), picture)
        labels.add(whole.verdict.label)
        for cut in split.cuts:
            number += 1
            answer = await here.answers.answer("DEV", asked(split, cut, number), split.features(cut, picture))
            said = answer.verdict
            assert (said.label, said.model) == (whole.verdict.label, split.whole.ref)
            assert said.score == pytest.approx(whole.verdict.score, abs=CLOSE)
            assert said.margin == pytest.approx(whole.verdict.margin, abs=2 * CLOSE)
            assert answer.mosaic is None and answer.compute_ms > 0
        number += 1
    assert len(labels) > 1


async def test_a_repetition_gets_the_same_answer(here: Cloud, split: Split) -> None:
    cut = split.cuts[0]
    first = await here.answers.answer("DEV", asked(split, cut), split.features(cut, scene(1)))
    again = await here.answers.answer("DEV", asked(split, cut), split.features(cut, scene(2)))
    assert again == msgspec.structs.replace(first, repeated=True, waited_ms=0.0)


async def test_the_answer_is_kept_without_picture_and_outlives_retention(here: Cloud, split: Split) -> None:
    cut = split.cuts[1]
    await here.answers.answer("DEV", asked(split, cut), split.features(cut, scene(1)))
    (kept,) = await here.store.recent(10)
    assert (kept.tail, kept.cut, kept.picture, kept.thumbnail) == (split.tail.ref, cut, None, None)
    assert await here.store.picture(kept.id) is None and await here.store.picture(kept.id, thumbnail=True) is None
    assert await here.store.mosaic(kept.id) == (None, None)
    assert await here.store.trim() == 0
    assert len(await here.store.recent(10)) == 1
    assert {name async for name in here.blobs.list()} == {
        file.sha256 for ref in (split.whole.ref, split.tail.ref) for file in (await entry(here, ref)).files
    }


async def entry(here: Cloud, ref: str) -> ModelEntry:
    found = await here.registry.resolve(ref)
    assert found is not None
    return found


async def test_what_the_edge_did_not_see_is_no_disagreement(here: Cloud, split: Split) -> None:
    cut = split.cuts[0]
    unseen = Verdict(label=UNSEEN, score=0.0, margin=0.0, model="small@1")
    await here.answers.answer("DEV", asked(split, cut, 1, edge=unseen), split.features(cut, scene(1)))
    await here.answers.answer("DEV", asked(split, cut, 2), split.features(cut, scene(1)))
    assert [one.agrees for one in await here.store.recent(10)] == [False, True]
    assert msgspec.structs.astuple(await here.store.counts()) == (2, 1, 0)
    assert EDGE.label not in ("normal", "bridge", "missing")


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_a_question_that_does_not_fit_its_package_is_refused_before_a_worker_sees_it(
    here: Cloud, split: Split
) -> None:
    cut, frame = split.cuts[0], split.features(split.cuts[0], scene(1))
    for header, kind, text in (
        (FeaturesHeader(tail=split.whole.ref, cut=cut), UnfitModel, "it is no tail package"),
        (FeaturesHeader(tail=split.tail.ref, cut="c99"), UnfitModel, "it has the tails c2, c4"),
        (FeaturesHeader(tail="net-tail@2", cut=cut), UnknownModel, 'no model "net-tail@2"'),
    ):
        with pytest.raises(kind, match=text):
            await here.answers.answer("DEV", sample(1, split.whole.ref, features=header), frame)
    with pytest.raises(UnfitModel, match="one half of a split model and answers no pictures"):
        await here.answers.answer("DEV", sample(1, split.tail.ref), scene(1))
    assert here.pool.pids == []


async def test_frames_that_are_not_what_the_tail_takes_are_refused_and_the_worker_lives(
    here: Cloud, split: Split
) -> None:
    early, late = split.cuts
    good = split.features(early, scene(1))
    await here.answers.answer("DEV", asked(split, early, 0), good)
    pids = here.pool.pids
    name = "a2"
    shape = (1, 8, 16, 16)
    hostile = [
        b"\x00",
        scene(1),
        good[:-3],
        good + b"\x00",
        good[:40] + bytes(40) + good[80:],
        split.features(late, scene(1)),
        features.encode({"other": np.zeros(shape, np.float32)}),
        features.encode({name: np.zeros((1, 8, 16, 17), np.float32)}),
        features.encode({name: np.zeros(shape, np.float16)}),
        features.encode({name: np.zeros(shape, np.float32), "more": np.zeros(3, np.float32)}),
        features.encode({name: np.zeros((1, 8, 16, 16, 64, 64), np.float32)}),  # a bomb: 32 MiB in some KiB
    ]
    for number, frame in enumerate(hostile, 1):
        with pytest.raises(PictureRefused):
            await here.answers.answer("DEV", asked(split, early, number), frame)
    assert here.pool.pids == pids and here.pool.restarts == 0
    assert (await here.answers.answer("DEV", asked(split, early, 99), good)).verdict.score > 0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_frame_is_refused_or_answered_but_never_more(split: Split, data: st.DataObject) -> None:
    cut = split.cuts[1]
    tail = Tail.load(split.tail, cut)
    frame = bytearray(split.features(cut, scene(1)))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(features.FeatureError, ModelError):
        assert 0.0 <= tail.answer(bytes(frame)).score <= 1.0


def test_a_package_without_such_a_tail_is_not_loaded(split: Split) -> None:
    for package, cut in ((split.tail, "c99"), (split.whole, split.cuts[0])):
        with pytest.raises(ModelError, match="has no tail"):
            Tail.load(package, cut)


def test_the_whole_model_agrees_with_its_tails_in_this_process_too(split: Split) -> None:
    whole = Classifier.load(split.whole)
    for cut in split.cuts:
        tail = Tail.load(split.tail, cut)
        tail.prove()
        said, expected = tail.answer(split.features(cut, scene(3))), whole.classify(scene(3))
        assert said.label == expected.label and np.allclose(said.probabilities, expected.probabilities, atol=CLOSE)
        tail.close()


# --- loaded ahead ----------------------------------------------------------------------------------------------------


async def test_each_cut_is_loaded_once_and_again_after_a_loss_and_a_start(
    here: Cloud, split: Split, tmp_path: Path
) -> None:
    for number, cut in enumerate([*split.cuts, split.cuts[0]]):
        await here.answers.answer("DEV", asked(split, cut, number), split.features(cut, scene(number)))
    (worker,) = here.pool._live.values()
    directory = str(await here.registry.materialise(await entry(here, split.tail.ref)))
    held = {(directory, cut): split.tail.ref for cut in split.cuts}
    assert dict(worker.held) == held
    (pid,) = here.pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(pid))
    await here.answers.answer("DEV", asked(split, split.cuts[1], 9), split.features(split.cuts[1], scene(9)))
    await until(lambda: all(dict(one.held) == held for one in here.pool._live.values()))
    assert await here.store.models_used() == [Used(split.tail.ref, "c4"), Used(split.tail.ref, "c2")]
    async with cloud(tmp_path) as after:
        after.answers.start()
        await loaded(after, split.tail.ref)
        await until(lambda: all(dict(one.held) == held for one in after.pool._live.values()))


async def test_a_tail_is_not_taken_for_a_model_that_can_be_loaded_whole(tmp_path: Path, split: Split) -> None:
    async with cloud(tmp_path) as here:
        here.answers.added(await here.registry.add(split.tail.root))  # the only package there is
        await until(lambda: not here.answers._warming)
        assert here.pool.pids == [] and here.pool._resting == {}


# --- over HTTP -------------------------------------------------------------------------------------------------------


@web.middleware
async def as_device(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[DEVICE_ID] = "DEV"
    return await handler(request)


async def test_over_http(here: Cloud, split: Split) -> None:
    app = new_app(as_device)
    app.add_routes(routes(here.answers))
    cut = split.cuts[0]
    frame = split.features(cut, scene(1))
    good = asked(split, cut)
    bad: list[tuple[HardSample, bytes, int, str]] = [
        (msgspec.structs.replace(good, pipeline=Pipeline(roi=[0.0, 0.0, 1.0, 1.0])), frame, 400, "belong to pictures"),
        (asked(split, "c99"), frame, 422, "no features of the cut"),
        (asked(split, ""), frame, 400, "name of a cut"),
        (asked(split, "c\n2"), frame, 400, "name of a cut"),
        (sample(1, features=FeaturesHeader(tail="net-tail", cut=cut)), frame, 400, "without the version"),
        (sample(1, features=FeaturesHeader(tail="../x@1", cut=cut)), frame, 400, "no model name"),
        (sample(1, features=FeaturesHeader(tail="none@1", cut=cut)), frame, 404, "none@1"),
        (sample(1, split.tail.ref), scene(1), 422, "answers no pictures"),
        (good, b"", 422, "empty"),
        (good, b"EKF", 422, "too few"),
        (good, scene(1), 422, "no frame of features"),
        (sample(1, split.whole.ref), frame, 422, "not a JPEG or PNG"),
    ]
    async with TestClient(TestServer(app)) as client:
        for header, payload, status, text in bad:
            reply = await client.post("/v1/answers", data=seal(header, payload))
            assert (reply.status, text in msgspec.json.decode(await reply.read(), type=Problem).error) == (status, True)
        reply = await client.post("/v1/answers", data=seal(good, frame))
        assert msgspec.json.decode(await reply.read(), type=Answer).verdict.model == split.whole.ref


def test_a_cloudd_that_does_not_know_features_takes_them_for_no_picture(split: Split) -> None:
    """It ignores the unknown key and looks at the payload as at any other."""
    for cut in split.cuts:
        with pytest.raises(ImageError, match="not a JPEG or PNG"):
            sniff(split.features(cut, scene(1)))


def test_an_old_device_and_a_new_cloudd_understand_each_other() -> None:
    old = b'{"sample_id":"s","service":"x","answer_model":"m","reason":"hard","captured_at":1,"edge":%s}' % (
        msgspec.json.encode(EDGE)
    )
    header = msgspec.json.decode(old, type=HardSample)
    assert (header.priority, header.left_ms, header.features) == ("inline", None, None)
    assert b"waited_ms" not in msgspec.json.encode(Answer(sample_id="s", verdict=EDGE, compute_ms=1.0))
    for key in (b'"priority":"urgent"', b'"left_ms":NaN', b'"left_ms":1e999', b'"features":{"tail":"t@1"}'):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            msgspec.json.decode(old[:-1] + b"," + key + b"}", type=HardSample)


async def test_cuts_of_one_tail_do_not_wait_for_each_other_to_load_twice(here: Cloud, split: Split) -> None:
    jobs = [
        here.answers.answer("DEV", asked(split, cut, number), split.features(cut, scene(number)))
        for number, cut in enumerate(split.cuts * 3)
    ]
    answers = await asyncio.gather(*jobs)
    assert {answer.verdict.model for answer in answers} == {split.whole.ref}
    assert here.pool.restarts == 0
