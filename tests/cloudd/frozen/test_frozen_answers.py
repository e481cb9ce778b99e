"""What cloudd answers with an anomaly package, and that it answers nothing with embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudd.answers.judging import judge, load
from edgekit.messages import AskModel
from edgekit.regions.header import RegionError
from edgekit.runtimes import ModelError, SessionOptions
from edgekit.services import Pipeline
from tests.support.parts import dark, make_anomaly, make_embedder


def ask(pipeline: Pipeline | None = None) -> AskModel:
    return AskModel(ticket=1, model="dark@1", directory="", pipeline=pipeline)


def test_an_anomaly_package_answers_with_its_labels(tmp_path: Path) -> None:
    model = load(make_anomaly(tmp_path / "dark"), SessionOptions(threads=1))
    said = judge(model, ask(), dark((1, 1, 0.9)))
    assert (said.label, said.mosaic) == ("anomaly", None) and said.score > 0.9 and said.margin > 0.8
    assert judge(model, ask(), dark()).label == "normal"
    model.close()


def test_an_anomaly_package_answers_no_parts_of_a_picture(tmp_path: Path) -> None:
    model = load(make_anomaly(tmp_path / "dark"), SessionOptions(threads=1))
    with pytest.raises(RegionError, match="knows whole parts only"):
        judge(model, ask(Pipeline(roi=[0.0, 0.0, 0.5, 0.5])), dark())
    model.close()


def test_embeddings_answer_nobody(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only a device with its gallery can tell apart"):
        load(make_embedder(tmp_path / "quarters"), SessionOptions(threads=1))
