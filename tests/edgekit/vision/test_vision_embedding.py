"""An embedding package turns pictures into vectors, and a match into an answer with a margin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.heads.gallery import Match
from edgekit.packages import EmbeddingSpec, Package, ProofSample
from edgekit.runtimes import ModelError, TensorInfo
from edgekit.vision.embedding import UNKNOWN, Embedder, identified, read_embedding, stranger
from tests.support.parts import WIDTH, make_embedder, quarters

RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.9, 0.1)
OUT = TensorInfo("embedding", (1, 4), "float32")


@pytest.fixture
def embedder(tmp_path: Path) -> Iterator[Embedder]:
    embedder = Embedder.load(make_embedder(tmp_path / "quarters"))
    yield embedder
    embedder.close()


def test_an_embedding_has_unit_length_and_looks_of_one_thing_are_near(embedder: Embedder) -> None:
    first, timings = embedder.embed(quarters(RED, BLUE, RED, GREEN, noise=1))
    second, _ = embedder.embed(quarters(RED, BLUE, RED, GREEN, noise=2))
    other, _ = embedder.embed(quarters(BLUE, RED, GREEN, RED, noise=3))
    assert first.shape == (WIDTH,) and np.linalg.norm(first) == pytest.approx(1.0)
    assert first @ second > 0.99 > 0.5 > first @ other
    assert set(timings) == {"decode", "infer"}


def test_a_picture_in_which_the_model_sees_nothing_is_a_model_error(embedder: Embedder) -> None:
    with pytest.raises(ModelError, match="an embedding of zeros"):
        embedder._embed(np.full((1, 3, 64, 64), 0.5, np.float32))  # a level that no pixel has


def test_a_package_proves_itself_by_which_pictures_are_near(embedder: Embedder, tmp_path: Path) -> None:
    assert embedder.prove() == 4
    package = make_embedder(tmp_path / "wrong")
    swapped = [
        ProofSample(file="red-0.png", label="a"),
        ProofSample(file="blue-0.png", label="a"),
        ProofSample(file="red-1.png", label="b"),
    ]
    manifest = msgspec.structs.replace(package.manifest, samples=swapped)
    wrong = Embedder.load(Package(package.root, manifest, package.digest, [], package.sizes))
    with pytest.raises(ModelError, match=r'red-0.png shows "a", but is nearer to red-1.png'):
        wrong.prove()
    wrong.close()


def test_another_width_than_the_package_says_is_refused(tmp_path: Path) -> None:
    package = make_embedder(tmp_path / "quarters")
    manifest = msgspec.structs.replace(package.manifest, embedding=EmbeddingSpec(width=13))
    with pytest.raises(ModelError, match=r'is 1x12, but "embedding.width" is 13'):
        Embedder.load(Package(package.root, manifest, package.digest, [], package.sizes))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, 5), np.float32), "an embedding of 4"),
        (np.zeros((2, 2), np.float32), "an embedding of 4"),
        (np.full((1, 4), np.nan, np.float32), "not numbers"),
        (np.full((1, 4), np.inf, np.float32), "not numbers"),
    ],
)
def test_an_output_that_is_no_embedding_is_a_model_error(array: np.ndarray, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_embedding(array, OUT, 4)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (1, 4, 1, 1)])
def test_an_embedding_may_have_dimensions_of_one(shape: tuple[int, ...]) -> None:
    assert read_embedding(np.arange(4, dtype=np.float32).reshape(shape), OUT, 4).tolist() == [0, 1, 2, 3]


@given(
    similarity=st.floats(-1, 1),
    below=st.floats(0, 2),
    threshold=st.floats(0.01, 0.99),
)
def test_margins_are_within_0_and_1_and_zero_where_the_answer_turns(
    similarity: float, below: float, threshold: float
) -> None:
    runner_up = max(-1.0, similarity - below)
    answer = identified(Match("Anna", similarity, runner_up, similarity >= threshold), threshold)
    assert 0 <= answer.margin <= 1 and 0 <= answer.score <= 1
    assert answer.label == ("Anna" if similarity >= threshold else UNKNOWN)
    at = identified(Match("Anna", threshold, -1.0, True), threshold)
    assert at.margin == pytest.approx(0, abs=1e-6)
    alike = identified(Match("Anna", similarity, similarity, similarity >= threshold), threshold)
    assert alike.label == UNKNOWN or alike.margin == 0


def test_whoever_cannot_be_known_is_a_stranger_of_whom_nothing_is_sure() -> None:
    assert (stranger().label, stranger().margin) == (UNKNOWN, 0.0)
    assert stranger().timings_ms is not stranger().timings_ms
