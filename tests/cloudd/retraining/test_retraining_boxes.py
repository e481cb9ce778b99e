"""What the process of a job makes of a detector and pictures with boxes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from boxes_asked import BOX_LABELS, BOX_SPEC, BoxesAsked, board, truth
from retraining_bench import plan

from cloudd.retraining.centres import TaughtCentres, peaks_of
from cloudd.retraining.course import Pausing
from cloudd.retraining.lineage import RECORD, Lineage
from cloudd.retraining.order import Ended, WorkOrder
from cloudd.retraining.teacher import LARGER
from cloudd.retraining.working import run
from edgekit.architectures import build
from edgekit.autodiff.losses import CentrePointLoss
from edgekit.autodiff.optimisers import Sgd
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_step
from edgekit.messages.retraining import TaughtBox, fault
from edgekit.packages import Package, open_package
from edgekit.training import STEP_FOLDER, read_weights, write_plan
from edgekit.training.centre_targets import centre_targets
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.metrics import Counts, count
from edgekit.vision.images import encode_png

LATER = range(5000, 5040)


def done(order: WorkOrder) -> tuple[Ended, Package | None]:
    ended = run(order, Pausing(), lambda text, done, total: None)
    result = Path(order.folder) / "result"
    return ended, open_package(result) if result.exists() else None


def counted(package: Package, score: float = 0.3) -> Counts:
    """What it finds on boards that nobody learned from."""
    with closing(Detector.load(package)) as model:
        found = [model.detect(encode_png(board(number)[0])).detections for number in LATER]
    return count(found, [truth(number) for number in LATER], score, 0.5)


def test_a_larger_detector_learns_from_the_boxes_and_teaches_the_devices_own(tmp_path: Path) -> None:
    asked = BoxesAsked(tmp_path / "network")
    order = asked.lie(tmp_path)
    plan(order, teacher=14, student=16, batches=(8, 8))
    ended, package = done(order)
    assert ended == Ended(kind="done") and package is not None, ended
    assert (package.ref, package.labels, package.manifest.task) == ("boards.solder@1-1", list(BOX_LABELS), "detection")
    told = msgspec.json.decode(package.path(RECORD).read_bytes(), type=Lineage)
    recall = counted(package).recall
    assert recall is not None and recall > 0.7, (told.before, told.taught, told.learned)
    weights = read_weights(package.path("weights.safetensors"))
    came = read_weights(asked.place / "weights.safetensors")
    assert {name: array.shape for name, array in weights.items()} == {name: array.shape for name, array in came.items()}
    assert told.teacher.architecture == "centre_point" and told.network_macs * LARGER <= told.teacher_macs
    assert told.before.ap50 is not None and told.before.quality < 0.1 and told.temperature is None
    assert told.learned.figures.quality > 0.7 and told.learned.figures.balanced_accuracy is None
    assert told.teaching == {"hole": 28, "bar": 28} and told.choosing == {"hole": 8, "bar": 8}
    assert "average precision" in package.manifest.description
    assert done(order)[0] == Ended(kind="done"), "asked again it has nothing to do"


def test_a_detector_without_cells_as_the_larger_one_has_is_refused(tmp_path: Path) -> None:
    asked = BoxesAsked(tmp_path / "network")
    assert asked.request.detection is not None
    spec = msgspec.structs.replace(asked.request.detection, strides=[8])
    other = BoxesAsked(tmp_path / "other", detection=spec)
    ended, package = done(other.lie(tmp_path / "job"))
    assert package is None and ended.kind == "refused" and "the network cannot be used" in ended.reason
    named = msgspec.structs.replace(asked.request.detection, outputs=["warmth", "size", "offset"])
    ended, _ = done(BoxesAsked(tmp_path / "named", detection=named).lie(tmp_path / "named-job"))
    assert ended.kind == "refused" and "warmth" in ended.reason


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ("hole", "hole")}, "two labels are the same"),
        ({"labels": ("hole",)}, "a picture has the label 1"),
        ({"boards": 40, "choosing": 30}, '"hole" has 5'),
        ({"choosing": 2}, "3 boxes are there to choose by"),
        ({"detection": None, "logits": "heat"}, "a picture of a classifier has boxes"),
        ({"detection": None}, "a classifier needs two labels"),
    ],
)
def test_a_request_with_boxes_that_contradicts_itself_says_how(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    assert told in fault(BoxesAsked(tmp_path, **changes).request)  # type: ignore[arg-type]


def test_only_centre_points_with_boxes_of_a_size_are_taught(tmp_path: Path) -> None:
    request = BoxesAsked(tmp_path).request
    assert fault(request) == ""
    first, *rest = request.pictures
    for box in (TaughtBox(0, 5, 5, 5, 9), TaughtBox(0, 5, 9, 8, 5)):
        wrong = msgspec.structs.replace(first, boxes=(box,))
        assert "no size" in fault(msgspec.structs.replace(request, pictures=(wrong, *rest)))
    bare = msgspec.structs.replace(first, boxes=None)
    assert "no list of boxes" in fault(msgspec.structs.replace(request, pictures=(bare, *rest)))
    assert request.detection is not None
    other = msgspec.structs.replace(request.detection, head="yolov8")
    assert "only centre-point" in fault(msgspec.structs.replace(request, detection=other))
    for number in ("NaN", "1e400", "1e6", "null"):
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(f"[0,{number},0,1,1]", type=TaughtBox)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_a_teachers_peaks_are_where_it_says_more_than_around() -> None:
    heat = np.zeros((1, 2, 5, 5), np.float32)
    heat[0, 0, 1, 1], heat[0, 0, 1, 2] = 0.8, 0.7
    heat[0, 1, 3, 3] = 0.2
    heat[0, 1, 1, 1], heat[0, 1, 0, 0] = 0.4, 0.1
    peaks = peaks_of(heat)
    assert peaks.shape == (1, 1, 5, 5) and np.count_nonzero(peaks) == 1 and peaks[0, 0, 1, 1] == np.float32(0.8)


def test_the_gradient_of_the_taught_loss_is_the_slope_of_its_value(tmp_path: Path) -> None:
    """One step of plain gradient descent moves a weight by the derivative, which differences of the loss give, too."""
    network = build(msgspec.structs.replace(BOX_SPEC, input_width=32, input_height=32))
    loss = TaughtCentres(CentrePointLoss(heat="heat", size="size", offset="offset"), share=0.7)
    write_plan(build_step(network.model, loss, Sgd(), r"head.*", batch_norm="frozen"), tmp_path)
    runner = StepRunner(tmp_path / STEP_FOLDER, threads=1, spin=False)
    rng = np.random.default_rng(1)
    maps = centre_targets(np.array([[4, 4, 14, 12]], np.float32), np.array([1]), 2, 8, 8, 4)
    heat = rng.uniform(0, 1, (1, 2, 8, 8)).astype(np.float32)
    feeds = {
        "image": rng.normal(0, 1, (1, 1, 32, 32)).astype(np.float32),
        "heat_target": maps["heat"][np.newaxis],
        "size_target": maps["size"][np.newaxis],
        "offset_target": maps["offset"][np.newaxis],
        "centres": maps["centres"][np.newaxis],
        "teacher_heat": heat,
        "teacher_size": rng.uniform(1, 4, (1, 2, 8, 8)).astype(np.float32),
        "teacher_offset": rng.uniform(0, 1, (1, 2, 8, 8)).astype(np.float32),
        "teacher_peaks": peaks_of(heat),
    }
    first = {name: array.copy() for name, array in runner.parameters().items()}

    def value(name: str, place: tuple[int, ...], by: float) -> float:
        changed = first[name].copy()
        changed[place] += by
        runner.load(first | {name: changed})
        return float(runner.step({**feeds, "learning_rate": np.float32(0.0)})["loss"])

    runner.load(first)
    runner.step({**feeds, "learning_rate": np.float32(1.0)})
    moved = {name: first[name] - array for name, array in runner.parameters().items()}
    checked = 0
    for name in first:
        if not name.endswith("_out.weight") and not name.endswith("_out.bias"):
            continue
        place = np.unravel_index(int(np.abs(moved[name]).argmax()), moved[name].shape)
        spot = tuple(int(one) for one in place)
        slope = (value(name, spot, 1e-3) - value(name, spot, -1e-3)) / 2e-3
        assert moved[name][spot] == pytest.approx(slope, rel=0.05, abs=0.05), name
        checked += 1
    assert checked == 6
