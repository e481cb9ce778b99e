"""From one package to two: proved, recorded, and the whole model together."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from split_networks import brightness

from cloudd.split import LINEAGE, Lineage, Outcome, Request, split
from cloudd.split.proof import Sent
from edgekit.packages import DetectionSpec, Package, PackageError, Variant, open_package, seal_package
from edgekit.runtimes import ModelError, open_session
from edgekit.splitting.halves import SplitError, run_halves
from edgekit.vision.classification import Classifier
from edgekit.vision.model import files_beside


@pytest.fixture(scope="module")
def made(solder: Package, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("halves")
    return split(Request(solder, out, "1", whole=True))


def pair(outcome: Outcome) -> tuple[Package, Package]:
    return open_package(Path(outcome.head_package)), open_package(Path(outcome.tail_package))


def test_head_and_tail_name_each_other_and_the_model_they_come_from(solder: Package, made: Outcome) -> None:
    head, tail = pair(made)
    assert (head.ref, tail.ref) == ("solder-large-head@1", "solder-large-tail@1") == (made.head, made.tail)
    spec, other = head.manifest.head, tail.manifest.tail
    assert spec is not None and other is not None
    assert spec.tail == tail.ref
    assert (spec.of, spec.digest) == (other.of, other.digest) == (solder.ref, solder.digest)
    assert [cut.name for cut in spec.cuts if not cut.whole] == [cut.name for cut in other.cuts]
    for package in (head, tail):
        assert package.manifest.input == solder.manifest.input and package.manifest.output == solder.manifest.output
        assert package.labels == solder.labels


def test_every_pair_is_the_whole_model_and_stays_right_with_features_as_they_are_sent(
    solder: Package, made: Outcome
) -> None:
    head, tail = pair(made)
    whole = Classifier.load(solder)
    assert head.manifest.head is not None and tail.manifest.tail is not None
    for cut, end in zip(head.manifest.head.cuts, tail.manifest.tail.cuts, strict=False):
        first, second = (
            open_session(one.path(file), "onnxruntime") for one, file in ((head, cut.file), (tail, end.file))
        )
        assert [tensor.name for tensor in first.outputs] == cut.tensors
        sent = Sent(first, second)
        judge = Classifier(solder, Variant(file=cut.file), sent)
        for sample in solder.manifest.samples:
            picture = solder.path(sample.file).read_bytes()
            feed = {whole.session.inputs[0].name: whole.tensor(picture)}
            (expected,), (found,) = whole.session.run(feed), run_halves(first, second, feed)
            assert np.abs(expected - found).max() <= 1e-3 * np.abs(expected).max()
            assert judge.classify(picture).label == sample.label
        assert max(sent.sizes) < 1.5 * cut.wire_bytes and cut.tail_ms > 0
        sent.close()


def test_the_earlier_cut_has_less_work_before_it_more_behind_it_and_more_bytes(made: Outcome) -> None:
    spec = pair(made)[0].manifest.head
    assert spec is not None
    cuts = [cut for cut in spec.cuts if not cut.whole]
    assert len(cuts) >= 2
    assert [cut.work for cut in cuts] == sorted(cut.work for cut in cuts) and cuts[0].work >= 0.1
    assert [cut.wire_bytes for cut in cuts] == sorted((cut.wire_bytes for cut in cuts), reverse=True)


def test_the_record_fixes_what_went_in_and_what_came_out(solder: Package, made: Outcome) -> None:
    head, tail = pair(made)
    texts = {package.path(LINEAGE).read_bytes() for package in (head, tail)}
    lineage = msgspec.json.decode(texts.pop(), type=Lineage)
    assert not texts and lineage == made.lineage
    assert lineage.source.sha256 == hashlib.sha256(solder.path(lineage.source.file).read_bytes()).hexdigest()
    assert lineage.samples == 5 and lineage.pictures == 7 and lineage.places == 16
    for cut in lineage.cuts:
        assert cut.head_sha256 == head.manifest.files[cut.file] and cut.tail_sha256 == tail.manifest.files[cut.file]
        assert cut.difference <= 1e-3


def test_the_same_model_gives_the_same_tail_and_the_same_head_but_for_its_times(
    solder: Package, made: Outcome, tmp_path: Path
) -> None:
    again = split(Request(solder, tmp_path, "1", whole=True), clock=iter(range(10**6)).__next__)
    (head, tail), (other_head, other_tail) = pair(made), pair(again)
    assert tail.digest == other_tail.digest
    assert head.manifest.files == other_head.manifest.files


def test_the_whole_model_is_in_the_head_package_only_if_asked_for_with_all_its_files(tmp_path: Path) -> None:
    package = brightness(tmp_path / "net", external=True)
    head, _ = pair(split(Request(package, tmp_path / "without", "3")))
    assert head.manifest.head is not None and not any(cut.whole for cut in head.manifest.head.cuts)
    assert "net/model.onnx" not in head.manifest.files
    head, tail = pair(split(Request(package, tmp_path / "with", "3", whole=True)))
    assert head.manifest.head is not None
    (whole,) = [cut for cut in head.manifest.head.cuts if cut.whole]
    variant = Variant(file=whole.file)
    session = open_session(head.path(whole.file), "onnxruntime", files=files_beside(head, variant))
    assert Classifier(head, variant, session).prove() == 2
    assert "net/weights.bin" in head.manifest.files and "net/weights.bin" not in tail.manifest.files


def test_no_head_does_less_than_the_least_share_of_the_work(solder: Package, tmp_path: Path) -> None:
    outcome = split(Request(solder, tmp_path, "1", least_work=0.5))
    assert outcome.lineage.cuts and all(cut.work >= 0.5 for cut in outcome.lineage.cuts)


def test_a_cut_whose_features_lose_the_answer_on_the_way_is_refused_and_another_takes_its_place(
    tmp_path: Path,
) -> None:
    outcome = split(Request(brightness(tmp_path / "net", loud=1e5), tmp_path, "3"))
    refused = {one.name: one.reason for one in outcome.lineage.refused}
    assert "with the features as they are sent, the sample" in refused["c1"]
    assert outcome.lineage.cuts and "c1" not in [cut.name for cut in outcome.lineage.cuts]


def test_halves_that_are_not_the_whole_model_are_never_made_into_packages(tmp_path: Path) -> None:
    package = brightness(tmp_path / "net", noise=0.5)
    with pytest.raises(SplitError, match=r"no cut of brightness@3 passed its proof .* 0.001 is allowed"):
        split(Request(package, tmp_path / "out", "3"))
    assert not (tmp_path / "out").exists()


def test_a_model_whose_cuts_all_come_too_early_cannot_be_split(tmp_path: Path) -> None:
    package = brightness(tmp_path / "net", convolutions=1)
    with pytest.raises(SplitError, match=r"has no cut with 99\.9% of its work before it; the latest has"):
        split(Request(package, tmp_path / "out", "3", least_work=0.999))


def test_a_model_that_fails_its_own_samples_is_not_split(tmp_path: Path) -> None:
    package = brightness(tmp_path / "net")
    samples = [msgspec.structs.replace(one, label="dark") for one in package.manifest.samples]
    wrong = seal_package(package.root, msgspec.structs.replace(package.manifest, samples=samples))
    with pytest.raises(ModelError, match='should be "dark"'):
        split(Request(wrong, tmp_path / "out", "3"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detection", "detection": DetectionSpec(head="yolov8"), "samples": []}, "only classification is"),
        ({"variants": [Variant(file="net/model.onnx", precision="int8")]}, "has no fp32 variant for onnxruntime"),
        ({"variants": [Variant(file="net/model.onnx", target="rk3588")]}, "has no fp32 variant for onnxruntime"),
    ],
)
def test_what_cannot_be_split_is_told_before_anything_is_done(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    package = brightness(tmp_path / "net")
    changed = seal_package(package.root, msgspec.structs.replace(package.manifest, **changes))
    with pytest.raises(SplitError, match=message):
        split(Request(changed, tmp_path / "out", "3"))
    assert not (tmp_path / "out").exists()


def test_a_half_cannot_be_split_again(made: Outcome, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match='is for the task "head"'):
        split(Request(pair(made)[0], tmp_path, "1"))


def test_packages_that_are_there_already_are_not_touched(solder: Package, made: Outcome) -> None:
    out = Path(made.head_package).parent
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(PackageError, match="is there already; give the new packages another version"):
        split(Request(solder, out, "1"))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_progress_is_told_step_by_step(solder: Package, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    split(Request(solder, tmp_path, "1", cuts=2), lambda *step: steps.append(step))
    assert steps[0] == ("reading", 0, 0) and steps[-1] == ("timing", 0, 0)
    assert [step[1:] for step in steps[1:-1]] == [(0, 2), (1, 2)]
