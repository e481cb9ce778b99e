"""What a manifest says about anomalies and embeddings, and what a service definition may ask of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.packages import (
    AnomalySpec,
    EmbeddingSpec,
    InputSpec,
    Manifest,
    OutputSpec,
    PackageError,
    Variant,
    manifest_text,
    parse_manifest,
)
from edgekit.packages.manifest import check_manifest
from edgekit.services import Gallery, ServiceError, dump_service, parse_service

INPUT = InputSpec(width=8, height=8)


def anomaly(**changed: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "x",
        "version": "1",
        "task": "anomaly",
        "labels": "labels.txt",
        "input": INPUT,
        "output": OutputSpec(kind="none"),
        "anomaly": AnomalySpec(limit=2.0, spread=0.5),
        "variants": [Variant(file="model.onnx")],
        "files": {"labels.txt": "0" * 64, "model.onnx": "1" * 64},
    }
    return Manifest(**{**values, **changed})


def embedding(**changed: Any) -> Manifest:
    return anomaly(
        **{"task": "embedding", "labels": "", "anomaly": None, "embedding": EmbeddingSpec(width=128), **changed}
    )


@given(
    limit=st.floats(1e-6, 1e6),
    spread=st.floats(1e-6, 1e6),
    shift=st.floats(0, 256),
    reference=st.sampled_from(["", "reference.png"]),
)
def test_an_anomaly_package_reads_back_as_it_was_written(
    limit: float, spread: float, shift: float, reference: str
) -> None:
    spec = AnomalySpec(limit=limit, spread=spread, reference=reference, max_shift=shift if reference else 30.0)
    files = {"labels.txt": "0" * 64, "model.onnx": "1" * 64, **({reference: "2" * 64} if reference else {})}
    manifest = anomaly(anomaly=spec, files=files)
    assert parse_manifest(manifest_text(manifest).encode()) == manifest


@given(width=st.integers(2, 8192), threshold=st.none() | st.floats(0.01, 0.99))
def test_an_embedding_package_reads_back_as_it_was_written(width: int, threshold: float | None) -> None:
    manifest = embedding(embedding=EmbeddingSpec(width=width, threshold=threshold))
    assert parse_manifest(manifest_text(manifest).encode()) == manifest


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (anomaly(task="detection"), '[anomaly] belongs to task = "anomaly", not to "detection"'),
        (anomaly(labels=""), "needs a file of two labels"),
        (anomaly(output=OutputSpec()), '"output.kind" is "logits"; the output of an anomaly model is a map'),
        (anomaly(anomaly=AnomalySpec(limit=1.0, spread=1.0, max_scale=0.2)), 'there is no "anomaly.reference"'),
        (anomaly(anomaly=AnomalySpec(limit=1.0, spread=1.0, reference="../x.png")), "must name a file inside"),
        (embedding(task="classification", labels="labels.txt"), '[embedding] belongs to task = "embedding"'),
        (embedding(labels="labels.txt"), "an embedding model has none"),
        (embedding(output=OutputSpec()), '"output.kind" is "logits"; the output of an embedding model is a vector'),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_with_the_key(manifest: Manifest, words: str) -> None:
    with pytest.raises(PackageError) as caught:
        check_manifest(manifest)
    assert words in str(caught.value)


def test_a_reference_must_be_listed() -> None:
    manifest = anomaly(anomaly=AnomalySpec(limit=1.0, spread=1.0, reference="reference.png"))
    with pytest.raises(PackageError, match=r'"anomaly.reference" names "reference.png", which \[files\] does not list'):
        parse_manifest(manifest_text(manifest).encode())


def test_a_package_of_before_these_tables_is_still_a_package() -> None:
    check_manifest(anomaly(anomaly=None, output=OutputSpec()))
    check_manifest(embedding(embedding=None, labels="labels.txt"))


SERVICE = 'name = "door"\nmodel = "faces"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SERVICE + "[gallery]\n", '"gallery" is set'),
        (SERVICE + 'task = "anomaly"\n[gallery]\n', '"gallery" is set'),
        (SERVICE + 'task = "anomaly"\n[pipeline]\nroi = [0.0, 0.0, 0.5, 0.5]\n', "its limit was measured with that"),
        (SERVICE + 'task = "embedding"\n[pipeline]\nroi = [0.0, 0.0, 0.5, 0.5]\n', "its gallery was enrolled with"),
        (SERVICE + 'task = "embedding"\n[hard_samples]\nanswer_model = "large"\n', "nobody but this device knows"),
        (SERVICE + 'task = "embedding"\n[gallery]\nfalse_accept_rate = 0.0\n', "false_accept_rate"),
        (SERVICE + 'task = "embedding"\n[gallery]\nfalse_accept = 0.01\n', 'did you mean "false_accept_rate"?'),
        (SERVICE + 'task = "anomaly"\n[regions]\nclean = "x"\n', "whole pictures are sent"),
    ],
)
def test_a_definition_asks_for_nothing_that_the_task_cannot_do(text: str, words: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse_service(text, "test")
    assert words in str(caught.value)


def test_a_definition_of_either_task_reads_back() -> None:
    door = parse_service(SERVICE + 'task = "embedding"\n[gallery]\nfalse_accept_rate = 0.001\n', "test")
    assert door.gallery == Gallery(false_accept_rate=0.001)
    parts = parse_service(SERVICE + 'task = "anomaly"\n[hard_samples]\nanswer_model = "large"\n', "test")
    for service in (door, parts):
        assert parse_service(dump_service(service), "test") == service
        assert msgspec.structs.asdict(service)["task"] in ("anomaly", "embedding")
