"""What a manifest says about the halves of a split model: strict, readable back, and never a model by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.packages import (
    HeadCut,
    HeadSpec,
    InputSpec,
    Manifest,
    PackageError,
    ProofSample,
    TailCut,
    TailSpec,
    Variant,
    manifest_text,
    parse_manifest,
    seal_package,
)
from edgekit.packages.heads import MAX_CUTS
from edgekit.runtimes import ModelError
from edgekit.vision.classification import Classifier

DIGEST = "0123456789abcdef" * 4
C3 = HeadCut(name="c3", file="split/c3.onnx", tensors=["x/Relu_output_0"], work=0.3, wire_bytes=4000, tail_ms=2.5)
C9 = HeadCut(name="c9", file="split/c9.onnx", tensors=["a", "b"], work=0.9, wire_bytes=900, tail_ms=0.25)
WHOLE = HeadCut(name="whole", file="model.onnx", whole=True)
HEAD = HeadSpec(of="solder@2", digest=DIGEST, tail="solder-tail@2", whole_ms=3.0, cuts=[C3, C9, WHOLE])
TAIL = TailSpec(
    of="solder@2",
    digest=DIGEST,
    cuts=[TailCut(name="c3", file="split/c3.onnx"), TailCut(name="c9", file="split/c9.onnx")],
)


def manifest(half: HeadSpec | TailSpec, **changes: Any) -> Manifest:
    task = "head" if isinstance(half, HeadSpec) else "tail"
    names = ["labels.txt", *(cut.file for cut in half.cuts)]
    whole = Manifest(
        name=f"solder-{task}",
        version="2",
        task=task,
        labels="labels.txt",
        input=InputSpec(width=8, height=8),
        head=half if isinstance(half, HeadSpec) else None,
        tail=half if isinstance(half, TailSpec) else None,
        files=dict.fromkeys(sorted(names), DIGEST),
    )
    return msgspec.structs.replace(whole, **changes)


def read(one: Manifest) -> Manifest:
    return parse_manifest(manifest_text(one).encode())


def refusal(one: Manifest) -> str:
    with pytest.raises(PackageError) as refused:
        read(one)
    return str(refused.value)


def cut(**changes: Any) -> HeadSpec:
    return msgspec.structs.replace(HEAD, cuts=[msgspec.structs.replace(C3, **changes), C9])


@pytest.mark.parametrize("half", [HEAD, TAIL], ids=["head", "tail"])
def test_a_half_is_read_back_as_it_was_written(half: HeadSpec | TailSpec) -> None:
    assert read(manifest(half)) == manifest(half)


def test_cuts_are_found_by_name() -> None:
    assert HEAD.cut("c9") is C9 and HEAD.cut("whole") is WHOLE and HEAD.cut("c4") is None
    found = TAIL.cut("c3")
    assert found is not None and found.file == "split/c3.onnx" and TAIL.cut("whole") is None


@pytest.mark.parametrize(
    ("half", "message"),
    [
        (msgspec.structs.replace(HEAD, digest="A" * 64), '"head.digest" is no SHA-256'),
        (msgspec.structs.replace(TAIL, digest=""), '"tail.digest" is no SHA-256'),
        (msgspec.structs.replace(HEAD, cuts=[]), '"head.cuts" has 0 tables'),
        (msgspec.structs.replace(TAIL, cuts=[]), '"tail.cuts" has 0 tables'),
        (msgspec.structs.replace(HEAD, cuts=[C3] * (MAX_CUTS + 1)), f"1 to {MAX_CUTS} belong there"),
        (msgspec.structs.replace(HEAD, cuts=[C3, C3]), "is the name of another cut"),
        (msgspec.structs.replace(TAIL, cuts=[TAIL.cuts[0]] * 2), "is the name of another cut"),
        (msgspec.structs.replace(HEAD, of="solder"), '"head.of" is "solder"; name@version belongs there'),
        (msgspec.structs.replace(HEAD, tail="solder-tail"), '"head.tail" is "solder-tail"; name@version'),
        (msgspec.structs.replace(HEAD, tail="Solder@1"), '"head.tail": "Solder" is no model name'),
        (msgspec.structs.replace(TAIL, of="solder@"), "is no model version"),
        (msgspec.structs.replace(HEAD, cuts=[WHOLE]), "that is an ordinary package"),
        (
            msgspec.structs.replace(HEAD, cuts=[C3, WHOLE, msgspec.structs.replace(WHOLE, name="again")]),
            "there is one whole model",
        ),
        (cut(name="C3"), '"head.cuts[0].name" must have 1 to 32 of'),
        (cut(name="../c3"), '"head.cuts[0].name" must have'),
        (cut(tensors=[]), '"head.cuts[0].tensors" has 0 names'),
        (cut(tensors=["x"] * 2), "different ones belong there"),
        (cut(tensors=[f"t{i}" for i in range(17)]), "has 17 names"),
        (cut(tensors=[""]), "has an empty name"),
        (cut(tensors=["x" * 513]), "more than 512 characters"),
        (cut(wire_bytes=0), '"head.cuts[0].wire_bytes" is missing'),
        (cut(work=1.5), '"head.cuts[0].work" is 1.5'),
        (cut(tail_ms=-1.0), '"head.cuts[0].tail_ms" is -1.0'),
        (cut(tail_ms=float("nan")), "tail_ms"),
        (cut(file="../c3.onnx"), "must name a file inside the package"),
        (cut(whole=True), '"head.cuts[0].tensors" is set, but nothing crosses'),
        (cut(whole=True, tensors=[]), '"head.cuts[0].wire_bytes" is set, but nothing crosses'),
        (cut(whole=True, tensors=[], wire_bytes=0), '"head.cuts[0].tail_ms" is set, but nothing crosses'),
    ],
)
def test_what_is_wrong_is_named(half: HeadSpec | TailSpec, message: str) -> None:
    assert message in refusal(manifest(half))


@pytest.mark.parametrize("half", [HEAD, TAIL], ids=["head", "tail"])
def test_a_half_is_no_model_that_serves_by_itself(half: HeadSpec | TailSpec) -> None:
    assert "[[variants]] is there" in refusal(manifest(half, variants=[Variant(file="split/c3.onnx")]))


@pytest.mark.parametrize("half", [HEAD, TAIL], ids=["head", "tail"])
def test_a_half_has_the_labels_of_the_whole(half: HeadSpec | TailSpec) -> None:
    assert '"labels" is missing' in refusal(manifest(half, labels=""))


def test_a_tail_never_sees_a_picture() -> None:
    assert "[[samples]] is there" in refusal(manifest(TAIL, samples=[ProofSample(file="labels.txt", label="a")]))


@pytest.mark.parametrize(
    ("half", "changes"),
    [
        (HEAD, {"task": "classification"}),
        (HEAD, {"task": "tail"}),
        (HEAD, {"tail": TAIL}),
        (TAIL, {"task": "head"}),
        (TAIL, {"tail": None}),
        (HEAD, {"head": None}),
    ],
)
def test_table_and_task_belong_together(half: HeadSpec | TailSpec, changes: dict[str, Any]) -> None:
    assert "belong together" in refusal(manifest(half, **changes))


def test_a_file_of_a_cut_must_be_listed() -> None:
    one = manifest(HEAD)
    files = {path: digest for path, digest in one.files.items() if path != "split/c9.onnx"}
    said = refusal(msgspec.structs.replace(one, files=files))
    assert said == 'package.toml: "head.cuts[1].file" names "split/c9.onnx", which [files] does not list'


def test_any_other_package_still_needs_a_variant() -> None:
    one = manifest(HEAD, task="classification", head=None)
    assert "[[variants]] is missing" in refusal(one)


def test_a_half_is_sealed_and_opened_like_any_package(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    for file in ("labels.txt", "model.onnx", "split/c3.onnx", "split/c9.onnx"):
        (tmp_path / file).write_text("good\nbad\n")
    package = seal_package(tmp_path, manifest(HEAD, files={}))
    assert package.manifest.head == HEAD and package.labels == ["good", "bad"]


def test_a_half_cannot_be_loaded_as_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    for file in ("labels.txt", "split/c3.onnx", "split/c9.onnx"):
        (tmp_path / file).write_text("good\nbad\n")
    package = seal_package(tmp_path, manifest(TAIL, files={}))
    with pytest.raises(ModelError, match="solder-tail@2 is the tail of a split model and serves nothing by itself"):
        Classifier.load(package)


@given(
    names=st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True), min_size=1, max_size=8, unique=True),
    tensors=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4, unique=True),
    work=st.floats(0.0, 1.0),
    tail_ms=st.floats(0.0, 1e9),
)
def test_whatever_an_onnx_file_calls_its_tensors_comes_back(
    names: list[str], tensors: list[str], work: float, tail_ms: float
) -> None:
    cuts = [
        HeadCut(name=name, file=f"{at}.onnx", tensors=tensors, work=work, wire_bytes=1, tail_ms=tail_ms)
        for at, name in enumerate(names)
    ]
    one = manifest(msgspec.structs.replace(HEAD, cuts=cuts))
    assert read(one) == one
