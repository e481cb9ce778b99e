"""Heads in the worker: loaded, timed, and giving what the whole model gives."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from edged.collab.plan.heads import HeadError
from edged.serve.engine import Engine
from edged.serve.heads import EngineHeads, LoadedHeads, load_heads
from edgekit.messages import FeaturesHeader, HardSample, Verdict
from edgekit.packages import HeadCut, seal_package
from edgekit.services import HardSamples, Service, Split
from edgekit.vision.classification import Classifier
from tests.support.halves import MODELS, Halves, samples


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(tmp_path_factory.mktemp("halves"))


def service(answer_model: str = "solder-large") -> Service:
    return Service(
        name="solder",
        model="solder-small",
        hard_samples=HardSamples(answer_model=answer_model),
        split=Split(heads="solder-large-head@1"),
    )


def loaded(halves: Halves) -> LoadedHeads:
    heads = load_heads(service(), str(halves.head.root), None)
    assert isinstance(heads, LoadedHeads), heads
    return heads


def header(halves: Halves, cut: str) -> HardSample:
    return HardSample(
        sample_id="s1", service="solder", answer_model="solder-large", reason="hard", captured_at=0.0,
        edge=Verdict(label="x", score=1.0, margin=1.0, model="m@1"),
        features=FeaturesHeader(tail=halves.spec.tail, cut=cut),
    )  # fmt: skip


def test_every_cut_is_timed_here_and_its_features_end_as_the_whole_models_answer(halves: Halves) -> None:
    heads, whole = loaded(halves), Classifier.load(halves.whole)
    assert (heads.info.of, heads.info.tail, heads.info.whole) == ("solder-large@1", halves.tail.ref, "whole")
    assert heads.info.prepare_ms > 0 and all(cut.head_ms > 0 for cut in heads.info.cuts)
    for name, picture in samples(halves.whole).items():
        expected = whole.classify(picture)
        for cut in halves.cuts:
            made = heads.encode(cut, picture)
            assert made.prepare_ms > 0 and made.head_ms > 0
            ended = halves.end(header(halves, cut), made.payload)
            assert ended.label == expected.label == name
            assert abs(ended.score - expected.score) < 0.05


def test_the_whole_model_answers_here_under_its_own_name(halves: Halves) -> None:
    heads, whole = loaded(halves), Classifier.load(halves.whole)
    for picture in samples(halves.whole).values():
        expected, found = whole.classify(picture), heads.answer(picture).verdict
        assert (found.label, found.model) == (expected.label, "solder-large@1")
        assert found.score == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize(
    ("answer_model", "words"),
    [
        ("other", "solder-large-head@1 belongs to solder-large@1, but other answers"),
        ("solder-large@2", "belongs to solder-large@1, but solder-large@2 answers"),
    ],
)
def test_a_head_of_another_model_is_refused(halves: Halves, answer_model: str, words: str) -> None:
    found = load_heads(service(answer_model), str(halves.head.root), None)
    assert isinstance(found, str) and words in found


def test_what_is_no_head_package_is_refused_with_a_sentence(tmp_path: Path) -> None:
    assert load_heads(service(), None, None) == "the head package solder-large-head@1 is not installed"
    found = load_heads(service(), str(MODELS / "solder-large"), None)
    assert found == "solder-large@1 is a model for classification and no head package"
    assert "cannot be used" in str(load_heads(service(), str(tmp_path), None))


def test_a_head_that_gives_other_features_than_the_package_says_is_refused(halves: Halves, tmp_path: Path) -> None:
    spec = halves.spec
    cuts = [msgspec.structs.replace(cut, tensors=["other"]) if not cut.whole else cut for cut in spec.cuts]
    manifest = msgspec.structs.replace(halves.head.manifest, head=msgspec.structs.replace(spec, cuts=cuts), files={})
    for file in halves.head.manifest.files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(halves.head.path(file).read_bytes())
    assert isinstance(cuts[0], HeadCut)
    seal_package(tmp_path, manifest)
    found = load_heads(service(), str(tmp_path), None)
    assert isinstance(found, str) and "the package promises other features" in found


async def test_heads_run_in_the_models_threads_and_say_why_they_gave_nothing(halves: Halves) -> None:
    engine = Engine(1)
    heads = EngineHeads(loaded(halves), engine, service())
    picture = next(iter(samples(halves.whole).values()))
    made = await heads.encode(halves.cuts[0], picture, time.monotonic() + 30)
    assert made.payload and engine.counts("solder/head").runs == 1
    assert (await heads.answer(picture, time.monotonic() + 30)).verdict.model == "solder-large@1"
    with pytest.raises(HeadError, match="in time"):
        await heads.encode(halves.cuts[0], picture, time.monotonic() - 1)
    assert (await heads.encode(halves.cuts[0], picture, time.monotonic() - 1, patient=True)).payload == made.payload
    with pytest.raises(HeadError, match="the head failed"):
        await heads.encode(halves.cuts[0], b"no picture", time.monotonic() + 30)
    await engine.stop()
    with pytest.raises(HeadError, match="shutting down"):
        await heads.answer(picture, time.monotonic() + 30)
