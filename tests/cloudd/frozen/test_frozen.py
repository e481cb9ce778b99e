"""Packages from good parts, and from a few pictures of each identity: what is learned is what a device then says."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from cloudd.cli import train
from cloudd.frozen import (
    AnomalyFigures,
    AnomalyWishes,
    EmbeddingFigures,
    EmbeddingWishes,
    Made,
    learn_anomaly,
    learn_embedding,
    read_record,
)
from cloudd.frozen.anomaly import write_model
from cloudd.frozen.features import FEATURES, INPUT, VALUES, Graph, input_spec, open_features
from cloudd.train import TrainError
from edgekit.datasets.dataset import Dataset, DatasetError
from edgekit.datasets.formats import read_dataset
from edgekit.datasets.formats.files import Row, collect
from edgekit.heads.anomaly import GaussianMap, NearestMap
from edgekit.heads.gallery import Gallery
from edgekit.packages import open_package
from edgekit.runtimes import SessionOptions, open_session
from edgekit.vision.anomaly import AnomalyDetector
from edgekit.vision.embedding import Embedder
from edgekit.vision.images import encode_png
from edgekit.vision.preprocess import prepare
from tests.support.parts import part, thing, write_parts, write_things


def quiet(step: str, done: int, total: int) -> None:
    """Nobody watches."""


def good_parts(folder: Path) -> Dataset:
    return collect(folder, [Row(path.name, "normal") for path in sorted(folder.glob("*.png"))], folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good/ 24 good parts; labelled/{ok,scratch,hole}/ some of each."""
    root = tmp_path_factory.mktemp("parts")
    write_parts(root / "good", 20)
    write_parts(root / "labelled" / "ok", 20)
    write_parts(root / "labelled" / "scratch", 6, "scratch", first=100)
    write_parts(root / "labelled" / "hole", 6, "hole", first=200)
    return root


@pytest.fixture(scope="module")
def made(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    wishes = AnomalyWishes(good="ok", size=(96, 96))
    out = tmp_path_factory.mktemp("out")
    return learn_anomaly("plate", "1", read_dataset(parts / "labelled"), wishes, out, quiet)


# --- features ---------------------------------------------------------------------------------------------------------


def test_the_graphs_features_are_those_that_were_measured(tmp_path: Path) -> None:
    """Beside OpenCV's: they differ by rounding of the grey level, which OpenCV keeps in 8 bits, and nothing else."""
    from benchmarks.anomaly_features import Statistics

    noise = np.random.default_rng(3).integers(0, 256, (128, 96, 3), np.uint8)
    picture = cv2.GaussianBlur(noise, (0, 0), 2)
    spec = input_spec(96, 128)
    session = open_features(96, 128, tmp_path)
    tensor = prepare(picture, spec, session.inputs[0])
    found = session.run({INPUT: tensor})[0][0].transpose(1, 2, 0)
    session.close()
    wanted = Statistics()(picture)
    assert found.shape == wanted.shape == (16, 12, VALUES)
    assert (
        np.corrcoef(found.reshape(-1, VALUES).T, wanted.reshape(-1, VALUES).T)[range(VALUES), range(VALUES, 36)].min()
        > 0.99
    )


@pytest.mark.parametrize("size", [(60, 64), (64, 56), (520, 64)])
def test_a_size_that_places_do_not_fit_into_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 8 from 64 to 512"):
        Graph(*size)


@pytest.mark.parametrize("kind", ["gaussian", "nearest"])
def test_the_map_of_the_graph_is_that_of_the_head(kind: str, tmp_path: Path) -> None:
    session = open_features(64, 72, tmp_path)
    spec, maps = input_spec(64, 72), []
    for seed in range(6):
        tensor = prepare(cv2.resize(part(seed), (64, 72)), spec, session.inputs[0])
        maps.append(session.run({INPUT: tensor})[0][0].transpose(1, 2, 0))
    session.close()
    stacked = np.stack(maps)
    scale = stacked.std(axis=(0, 1, 2)).astype(np.float64) + 1e-6
    rng = np.random.default_rng(0)
    model: Any = (
        GaussianMap.of(stacked[:5] / scale) if kind == "gaussian" else NearestMap.of(stacked[:5] / scale, 40, rng)
    )
    path = tmp_path / "model.onnx"
    write_model(path, 64, 72, model, scale)
    whole = open_session(path, "onnxruntime", SessionOptions(threads=1))
    tensor = prepare(cv2.resize(part(5), (64, 72)), spec, whole.inputs[0])
    found = whole.run({INPUT: tensor})[0]
    whole.close()
    wanted = model.scores(stacked[5:] / scale)
    assert found.shape == (1, 9, 8)
    assert np.allclose(found, wanted, rtol=2e-3, atol=2e-3)


# --- anomaly ----------------------------------------------------------------------------------------------------------


def test_a_package_of_good_parts_only_tells_good_from_bad_where_it_is_bad(parts: Path, tmp_path: Path) -> None:
    made = learn_anomaly("plate", "1", good_parts(parts / "good"), AnomalyWishes(), tmp_path, quiet)
    assert made.package and not made.reason and made.samples == 2
    package = open_package(Path(made.package))
    assert package.labels == ["normal", "anomaly"] and package.manifest.task == "anomaly"
    detector = AnomalyDetector.load(package)
    later = [detector.classify(encode_png(part(seed))) for seed in range(500, 540)]
    scratched = [detector.classify(encode_png(part(seed, "scratch"))) for seed in range(600, 612)]
    without = [detector.classify(encode_png(part(seed, "hole"))) for seed in range(700, 712)]
    detector.close()
    assert sum(one.label == "anomaly" for one in later) <= 6
    assert sum(one.label == "anomaly" for one in scratched) >= 10
    assert sum(one.label == "anomaly" for one in without) >= 10
    # The third hole is that at 225 degrees: upper left of the middle.
    wanted = 48 + 0.33 * 96 * np.cos(np.pi / 4 + np.pi), 48 + 0.33 * 96 * np.sin(np.pi / 4 + np.pi)
    hits = 0
    for one in without:
        if one.areas:
            left, top, right, bottom = one.areas[0].box
            hits += left - 8 <= wanted[0] <= right + 8 and top - 8 <= wanted[1] <= bottom + 8
    assert hits >= 9


def test_the_limit_was_measured_on_parts_that_were_not_learned_from(made: Made) -> None:
    figures = msgspec.convert(made.record.figures, AnomalyFigures)
    assert figures.good == 20 and figures.false_alarms.trials == 20
    assert figures.false_alarms.hits <= 2, "the conformal quantile of 20 at 5 % leaves one or two at or above it"
    assert figures.false_alarms.low <= 0.05 <= figures.false_alarms.high


def test_anomalous_parts_only_tell_how_many_are_found(made: Made, parts: Path, tmp_path: Path) -> None:
    figures = msgspec.convert(made.record.figures, AnomalyFigures)
    assert set(figures.found) == {"scratch", "hole"} and figures.auroc is not None and figures.auroc > 0.9
    package = open_package(Path(made.package))
    assert package.labels == ["ok", "anomaly"] and made.samples == 4
    alone = Dataset(
        tuple(one for one in read_dataset(parts / "labelled").pictures if one.label == "ok"),
        read_dataset(parts / "labelled").fetch,
    )
    again = learn_anomaly("plate", "1", alone, AnomalyWishes(good="ok", size=(96, 96)), tmp_path, quiet)
    assert open_package(Path(again.package)).manifest.anomaly == package.manifest.anomaly
    assert (Path(again.package) / "model.onnx").read_bytes() == (Path(made.package) / "model.onnx").read_bytes()


def test_the_record_names_pictures_recipe_and_figures_and_nothing_of_the_place(made: Made) -> None:
    package = open_package(Path(made.package))
    record = read_record(package)
    assert record == made.record and record is not None
    assert record.recipe["map"] == "gaussian" and record.recipe["placement"] == "fixed" and record.pictures == 20
    text = (Path(made.package) / "frozen/lineage.json").read_text()
    assert str(Path(made.package).parent) not in text
    (Path(made.package) / "frozen").stat()


def test_parts_that_lie_anywhere_are_compared_with_a_bank(parts: Path, tmp_path: Path) -> None:
    wishes = AnomalyWishes(placement="free", size=(96, 96), false_alarms=0.1)
    made = learn_anomaly("plate", "1", good_parts(parts / "good"), wishes, tmp_path, quiet)
    package = open_package(Path(made.package))
    assert made.record.recipe["map"] == "nearest" and package.manifest.anomaly is not None
    assert not package.manifest.anomaly.reference
    detector = AnomalyDetector.load(package)
    scratched = [detector.classify(encode_png(part(seed, "scratch"))).label for seed in range(600, 610)]
    detector.close()
    assert scratched.count("anomaly") >= 7


def test_turned_and_moved_parts_are_laid_over_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    for seed in range(22):
        (folder / f"{seed:02}.png").write_bytes(encode_png(part(seed, moved=5.0, turned=4.0)))
    made = learn_anomaly("plate", "1", good_parts(folder), AnomalyWishes(size=(96, 96)), tmp_path / "out", quiet)
    assert made.record.recipe["placement"] == "fixed"
    detector = AnomalyDetector.load(open_package(Path(made.package)))
    good = [detector.classify(encode_png(part(seed, moved=5.0, turned=4.0))).label for seed in range(800, 815)]
    bad = [detector.classify(encode_png(part(seed, "hole", moved=5.0, turned=4.0))).label for seed in range(900, 915)]
    detector.close()
    assert good.count("anomaly") <= 4 and bad.count("anomaly") >= 12


def test_pictures_of_different_things_do_not_lie_alike(tmp_path: Path) -> None:
    write_things(tmp_path / "things", range(20), 1)
    made = learn_anomaly("things", "1", _all_good(tmp_path / "things"), AnomalyWishes(size=(96, 96)), tmp_path, quiet)
    assert made.record.recipe["placement"] == "free"
    with pytest.raises(TrainError, match="cannot be laid over the one that was chosen as reference"):
        wishes = AnomalyWishes(size=(96, 96), placement="fixed")
        learn_anomaly("things", "2", _all_good(tmp_path / "things"), wishes, tmp_path, quiet)


def _all_good(folder: Path) -> Dataset:
    rows = [Row(str(path.relative_to(folder)), "normal") for path in sorted(folder.rglob("*.png"))]
    return collect(folder, rows, folder)


def test_lots_stay_on_one_side(tmp_path: Path) -> None:
    """One lot of four has another tint: held out as a lot, its parts are the ones above the limit."""
    folder = tmp_path / "lots"
    for lot in range(4):
        (folder / f"lot{lot}").mkdir(parents=True)
        for seed in range(8):
            picture = part(lot * 100 + seed).astype(float)
            picture[:, :, 2] *= 0.6 if lot == 3 else 1.0
            (folder / f"lot{lot}" / f"{seed}.png").write_bytes(encode_png(picture.astype(np.uint8)))
    rows = [Row(f"lot{lot}/{seed}.png", "normal", group=f"lot{lot}") for lot in range(4) for seed in range(8)]
    lots = collect(folder, rows, folder)
    flat = Dataset(tuple(msgspec.structs.replace(one, group="") for one in lots.pictures), lots.fetch)
    wishes = AnomalyWishes(size=(96, 96), false_alarms=0.2)
    by_lot = learn_anomaly("plate", "1", lots, wishes, tmp_path, quiet)
    by_picture = learn_anomaly("plate", "2", flat, wishes, tmp_path, quiet)
    limits = [msgspec.convert(one.record.figures, AnomalyFigures).limit for one in (by_lot, by_picture)]
    assert limits[0] > 1.5 * limits[1]


@pytest.mark.parametrize(
    ("wishes", "count", "error", "words"),
    [
        (AnomalyWishes(), 12, DatasetError, "12 good parts cannot give 0.05 false alarms; 19 can"),
        (AnomalyWishes(), 1, DatasetError, "1 pictures of good parts; at least 20"),
        (AnomalyWishes(size=(100, 96)), 20, TrainError, "multiples of 8 from 64 to 512"),
        (AnomalyWishes(good="bad"), 20, DatasetError, "no picture has the label 'bad'"),
    ],
)
def test_what_cannot_be_learned_is_said_with_what_would_help(
    wishes: AnomalyWishes, count: int, error: type[Exception], words: str, parts: Path, tmp_path: Path
) -> None:
    data = good_parts(parts / "good")
    few = Dataset(data.pictures[:count], data.fetch)
    with pytest.raises(error, match=words):
        learn_anomaly("plate", "1", few, wishes, tmp_path, quiet)
    assert not list(tmp_path.iterdir())


def test_labelled_data_without_a_good_label_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"several labels \(hole, ok, scratch\)"):
        learn_anomaly("plate", "1", read_dataset(parts / "labelled"), AnomalyWishes(), tmp_path, quiet)


def test_a_model_that_is_no_better_than_chance_is_refused(parts: Path, tmp_path: Path) -> None:
    """The "anomalous" parts are good ones."""
    folder = tmp_path / "data"
    write_parts(folder / "ok", 20)
    write_parts(folder / "bad", 8, first=300)
    made = learn_anomaly("plate", "1", read_dataset(folder), AnomalyWishes(good="ok"), tmp_path, quiet)
    assert not made.package and "may as well be chance" in made.reason
    assert not (tmp_path / "plate@1").exists()


# --- embedding --------------------------------------------------------------------------------------------------------


def test_an_embedder_tells_identities_apart_that_it_has_never_seen(tmp_path: Path) -> None:
    write_things(tmp_path / "things", range(12), 4)
    made = learn_embedding("things", "1", read_dataset(tmp_path / "things"), EmbeddingWishes(), tmp_path, quiet)
    figures = msgspec.convert(made.record.figures, EmbeddingFigures)
    assert figures.identities == 12 and figures.nearest.hits >= 46
    package = open_package(Path(made.package))
    assert package.manifest.embedding is not None and made.samples == 6
    embedder = Embedder.load(package)
    gallery = Gallery(package.manifest.embedding.width, package.manifest.embedding.threshold or 0.5)
    for identity in range(100, 110):
        gallery.enrol(
            str(identity), np.stack([embedder.embed(encode_png(thing(identity, look)))[0] for look in (0, 1)])
        )
    known = [
        gallery.match(embedder.embed(encode_png(thing(identity, look)))[0][None])[0]
        for identity in range(100, 110)
        for look in (5, 6)
    ]
    strangers = [gallery.match(embedder.embed(encode_png(thing(i, 0)))[0][None])[0] for i in range(200, 220)]
    embedder.close()
    assert sum(one.name == str(100 + at // 2) for at, one in enumerate(known)) >= 19
    assert sum(one.known for one in known) >= 15 and sum(one.known for one in strangers) <= 1


@pytest.mark.parametrize(
    ("identities", "looks", "words"),
    [(2, 5, "2 identities have two pictures or more; 3 are needed"), (5, 1, "0 identities have two pictures")],
)
def test_too_few_identities_are_refused(identities: int, looks: int, words: str, tmp_path: Path) -> None:
    write_things(tmp_path / "things", range(identities), looks)
    with pytest.raises(DatasetError, match=words):
        learn_embedding("things", "1", read_dataset(tmp_path / "things"), EmbeddingWishes(), tmp_path, quiet)


def test_pictures_that_show_nothing_of_their_identity_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for identity in range(12):
        folder = tmp_path / "noise" / str(identity)
        folder.mkdir(parents=True)
        for look in range(2):
            (folder / f"{look}.png").write_bytes(encode_png(thing(int(rng.integers(10_000)), look)))
    made = learn_embedding("noise", "1", read_dataset(tmp_path / "noise"), EmbeddingWishes(), tmp_path, quiet)
    assert not made.package and "may as well be chance" in made.reason


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "nice", lambda by: 0)


def here(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="cloudd")
    train.add(parser.add_subparsers(required=True))
    args = parser.parse_args(["train", *map(str, arguments)])
    return int(args.do(args))


@pytest.mark.usefixtures("same_priority")
def test_one_command_makes_a_package_of_a_folder_of_good_pictures(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "--task",
        "anomaly",
        "--data",
        parts / "good",
        "--model",
        "plate",
        "--out",
        tmp_path,
        "--size",
        "96x96",
    )
    assert here(*arguments) == 0
    text = capsys.readouterr().out
    assert "Learned from 20 good parts that lie alike" in text
    assert f"on the device: edged services add {tmp_path / 'plate@1'}" in text
    assert open_package(tmp_path / "plate@1").manifest.task == "anomaly"
    assert here(*arguments) == 1
    assert "is there already; give the new package another --version" in capsys.readouterr().err


@pytest.mark.usefixtures("same_priority")
def test_one_command_makes_an_embedder_of_a_folder_of_things(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_things(tmp_path / "things", range(8), 3)
    arguments = ("--task", "embedding", "--data", tmp_path / "things", "--model", "things", "--out", tmp_path, "--json")
    assert here(*arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == "things@1" and shown["record"]["figures"]["identities"] == 8


@pytest.mark.usefixtures("same_priority")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "anomaly", "--epochs", "3"), "--epochs does not belong to --task anomaly"),
        (("--task", "embedding", "--good", "ok"), "belong to --task anomaly"),
        (("--good", "ok"), "belong to --task anomaly"),
        (("--task", "embedding", "--group", "lot"), "--group does not belong to --task embedding"),
    ],
)
def test_options_of_another_task_are_refused(
    arguments: tuple[str, ...], words: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here("--data", parts / "good", "--model", "plate", "--out", tmp_path, *arguments) == 1
    assert words in capsys.readouterr().err


def test_the_features_have_their_names() -> None:
    assert (INPUT, FEATURES) == ("picture", "features")
