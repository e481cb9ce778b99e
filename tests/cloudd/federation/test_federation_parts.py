"""The parts that need no device: definitions, selection, vectors on the disk, the train step, the page."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudd.federation import files, page, selection
from cloudd.federation.definition import Window, read
from cloudd.federation.errors import FederationError
from cloudd.federation.nodes import node_of
from cloudd.federation.preparing import forward, prepare
from cloudd.federation.selection import Candidate
from cloudd.federation.vectors import Vectors, WrongOffset
from cloudd.federation.views import JobView
from edgekit import training
from edgekit.federated.averaging import FedAvg
from edgekit.federated.plan import Plan
from edgekit.federated.robust import Robust
from edgekit.identity.device_id import format_digest
from edgekit.messages.federation import Standing
from edgekit.packages import OutputSpec, Package
from tests.support.federation import Plant, definition

PLAN = Plan(strategy=FedAvg(clip=1.0))


@given(st.binary(min_size=32, max_size=32))
def test_a_device_id_is_the_printed_form_of_a_node(node: bytes) -> None:
    assert node_of(format_digest(node)) == node


# --- definitions -----------------------------------------------------------------------------------------------------


def test_a_definition_keeps_what_it_says() -> None:
    text = definition(Plant(3), evaluate_every=5, most=8, bits=16)
    found, plan = read(text)
    assert (found.evaluate_every, found.most, found.bits, found.secure) == (5, 8, 16, True)
    assert plan == Plan(strategy=FedAvg(clip=10.0))
    assert found.policy().min_cohort == 3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "job"', 'name = "Job 1"', "name"),
        ("rounds = 2", "rounds = 0", "at least 1"),
        ("rounds = 2", "round = 2", 'did you mean "rounds"'),
        ("least = 3", "least = 2", "at least 3 devices with secure aggregation"),
        ("most = 4", "most = 2", "most is not below least"),
        ("clip = 10.0", "clip = -1.0", "plan.strategy.clip"),
        ("clip = 10.0", "clip = nan", "clip"),
        ('strategy = "fedavg"', 'strategy = "krum"', "plan.strategy"),
        ("[plan.strategy]", "[plan.other]", "plan"),
        ('north = "', 'north = "zz', "66 hex digits"),
        ('rosters = ["x"]', "rosters = []", "cloudd must not choose"),
        ("settle = 0.0", "settle = -1.0", "settle"),
        ("[deadlines]", '[window]\nbegin = "25:00"\nend = "06:00"\n[deadlines]', "HH:MM"),
        ("[deadlines]", '[local]\ntrainable = "("\n[deadlines]', "regular expression"),
        ("clip = 10.0", 'clip = 10.0\n[plan.robust]\nkind = "median"\nbuckets = 3', "min_bucket"),
        ("clip = 10.0", "clip = 10.0\nweighting = {most = 4}\n[plan.privacy]\nnoise_multiplier = 1.0", "all weigh 1"),
        ("train = 61.0", "train = 60.0", "more than three times"),
        ('service = "solder"', 'service = ""', "service"),
    ],
)
def test_a_definition_with_a_fault_is_refused_by_naming_it(old: str, new: str, says: str) -> None:
    text = definition(Plant(3))
    assert old in text
    with pytest.raises(FederationError, match=says.replace("[", r"\[")):
        read(text.replace(old, new, 1))


def test_a_robust_plan_needs_secure_sums() -> None:
    robust = '[plan.robust]\nkind = "median"\nbuckets = 3\nmin_bucket = 3\n'
    more = '[plan.strategy]\nstrategy = "fedavg"\nclip = 1.0\n' + robust
    with pytest.raises(FederationError, match="robust buckets protect secure sums"):
        read(definition(None, more))


@given(st.floats(0, 1e9), st.integers(0, 1439), st.integers(0, 1439))
def test_a_window_and_its_complement_never_agree(at: float, begin: int, end: int) -> None:
    if begin == end:
        return
    clocks = [f"{minute // 60:02}:{minute % 60:02}" for minute in (begin, end)]
    inside = Window(begin=clocks[0], end=clocks[1]).open(at)
    assert inside != Window(begin=clocks[1], end=clocks[0]).open(at)


# --- selection -------------------------------------------------------------------------------------------------------


def _candidate(name: int, *, rounds: int = 0, since: float = 0.0, **standing: object) -> Candidate:
    said = {"version": 3, "state": "0" * 64, "samples": 10, **standing}
    return Candidate(bytes([name]) * 32, Standing(**said), since, rounds)  # type: ignore[arg-type]


def _names(found: list[Candidate]) -> list[int]:
    return [one.node[0] for one in found]


def test_who_took_part_least_and_has_most_samples_is_invited_first() -> None:
    them = [
        _candidate(1, rounds=2, samples=99),
        _candidate(2, samples=5),
        _candidate(3, samples=50),
        _candidate(4, samples=50, since=-1.0),
    ]
    assert _names(selection.eligible(them, PLAN, "learn", 3, 0)) == [4, 3, 2, 1]


def test_devices_that_are_ill_or_behind_or_have_too_little_are_not_invited() -> None:
    them = [_candidate(1, health="error"), _candidate(2, version=2), _candidate(3, samples=1), _candidate(4)]
    assert _names(selection.eligible(them, PLAN, "learn", 3, 2)) == [4]


def test_an_asynchronous_cohort_is_those_who_were_ready_first_and_are_not_too_old() -> None:
    plan = msgspec.structs.replace(PLAN, max_age=1)
    them = [
        _candidate(1, trained=3, since=5.0, samples=99),
        _candidate(2, trained=2, since=1.0),
        _candidate(3, trained=1, since=0.0),
        _candidate(4),
    ]
    assert _names(selection.eligible(them, plan, "learn", 3, 0)) == [2, 1]
    assert _names(selection.eligible(them, plan, "evaluate", 3, 0)) == [1, 3, 4, 2]


def test_buckets_are_disjoint_and_no_larger_than_a_cohort() -> None:
    plan = msgspec.structs.replace(PLAN, robust=Robust(kind="median", buckets=3))
    them = [_candidate(number) for number in range(1, 30)]
    fit = selection.eligible(them, plan, "learn", 3, 0)
    dealt = selection.choose(fit, plan, "learn", 5, b"seed")
    assert [len(one) for one in dealt] == [5, 5, 5] and len(set().union(*dealt)) == 15
    assert len(selection.choose(fit, plan, "evaluate", 5, b"seed")) == 1


# --- vectors on the disk ---------------------------------------------------------------------------------------------


def test_parts_must_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    vectors, node = Vectors(tmp_path / "round", 10), bytes(32)
    vectors.prepare(3)
    assert vectors.write(node, 0, b"0123") == 4
    assert vectors.write(node, 0, b"0123") == 4  # the same again
    for offset, data in ((5, b"5"), (2, b"234"), (4, b"4567890")):
        with pytest.raises(WrongOffset):
            vectors.write(node, offset, data)
    assert vectors.write(node, 4, b"456789") == 10
    with pytest.raises(FederationError, match="SHA-256"):
        vectors.settle(node, "0" * 64)
    assert vectors.received(node) == 0
    vectors.write(node, 0, b"0123456789")
    vectors.settle(node, hashlib.sha256(b"0123456789").hexdigest())
    vectors.remove()
    assert not (tmp_path / "round").exists()


def test_a_vector_that_two_processes_received_is_hashed_as_a_whole(tmp_path: Path) -> None:
    node, data = bytes(32), b"0123456789"
    Vectors(tmp_path / "round", 10).prepare(1)
    Vectors(tmp_path / "round", 10).write(node, 0, data[:4])
    again = Vectors(tmp_path / "round", 10)
    again.write(node, 4, data[4:])
    again.settle(node, hashlib.sha256(data).hexdigest())
    other = Vectors(tmp_path / "round", 10)
    other.write(bytes([1] * 32), 0, data[:4])
    with next((tmp_path / "round").glob("0101*")).open("ab") as torn:
        torn.write(b"x")  # a part that was cut off
    other.write(bytes([1] * 32), 5, data[5:])
    with pytest.raises(FederationError, match="SHA-256"):
        other.settle(bytes([1] * 32), hashlib.sha256(data).hexdigest())


def test_a_round_does_not_begin_on_a_disk_without_room(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="MB of disk are needed"):
        Vectors(tmp_path / "round", 1 << 40).prepare(1000)


# --- the train step --------------------------------------------------------------------------------------------------


def test_the_step_of_a_registered_model_has_its_files(package: Package, tmp_path: Path) -> None:
    found, plan = read(definition(Plant(3)))
    size = prepare(package, found, plan, tmp_path / "plan")
    listed = files.plan_files(tmp_path / "plan")
    assert size > 1000 and {entry.path for entry in listed} >= {
        "forward.onnx", "model.onnx", "weights.safetensors", "step/step.json", "step/step.onnx",
    }  # fmt: skip
    assert files.STEP_FOLDER == training.STEP_FOLDER
    assert set(files.PLAN_FILES) == {training.FORWARD_FILE, training.MODEL_FILE, training.WEIGHTS_FILE}


def test_fedprox_puts_its_anchors_into_the_step(package: Package, tmp_path: Path) -> None:
    more = '[plan.strategy]\nstrategy = "fedavg"\nclip = 1.0\nproximal = 0.1\n'
    found, plan = read(definition(Plant(3), more))
    prepare(package, found, plan, tmp_path / "plan")
    import onnx

    step = onnx.load(str(tmp_path / "plan" / "step" / "step.onnx"), load_external_data=False)
    assert any(one.name.endswith(".anchor") for one in step.graph.input)


def test_a_model_that_cannot_be_trained_is_refused_with_the_reason(package: Package, tmp_path: Path) -> None:
    found, plan = read(definition(Plant(3)))
    manifest = msgspec.structs.replace(package.manifest, task="detection")
    other = Package(package.root, manifest, package.digest, package.labels, package.sizes)
    with pytest.raises(FederationError, match="another head than centre points"):
        prepare(other, found, plan, tmp_path / "a")
    manifest = msgspec.structs.replace(package.manifest, task="anomaly")
    other = Package(package.root, manifest, package.digest, package.labels, package.sizes)
    with pytest.raises(FederationError, match="no classifier or detector"):
        prepare(other, found, plan, tmp_path / "a")
    manifest = msgspec.structs.replace(package.manifest, output=OutputSpec(kind="probabilities"))
    with pytest.raises(FederationError, match="only those of a Softmax"):
        forward(Package(package.root, manifest, package.digest, package.labels, package.sizes))
    wrong = msgspec.structs.replace(found, local=msgspec.structs.replace(found.local, trainable="no such weight"))
    with pytest.raises(FederationError, match="cannot be trained by devices"):
        prepare(package, wrong, plan, tmp_path / "b")
    idle = msgspec.structs.replace(plan, personal=("nothing*",))
    with pytest.raises(FederationError, match="nothing"):
        prepare(package, found, idle, tmp_path / "c")


def test_a_folder_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="holds no train step"):
        files.plan_files(tmp_path)


# --- the page --------------------------------------------------------------------------------------------------------


def _view(**changes: object) -> JobView:
    values = {
        "id": "0" * 32, "name": "<job>", "service": "<i>", "model": "m@1", "status": "running", "reason": "",
        "doing": "<b>", "secure": True, "rounds": 10, "version": 4, "standing": 3, "created_at": 0.0,
        "ended_at": None, "result": "", **changes,
    }  # fmt: skip
    return JobView(**values)  # type: ignore[arg-type]


def test_the_dashboard_says_which_jobs_are_not_secure_and_escapes_names() -> None:
    html = page.section([_view(), _view(secure=False)], 10.0)
    assert html.count("not secure") == 1 and "&lt;job&gt;" in html and "<job>" not in html and "4 of 10" in html
    assert page.section([], 10.0) == ""


def test_a_vector_is_read_as_little_endian_words(tmp_path: Path) -> None:
    vectors, node = Vectors(tmp_path / "round", 8), bytes(32)
    vectors.prepare(1)
    vectors.write(node, 0, b"\x01\0\0\0\x02\0\0\0")
    assert vectors.read(node, 32).tolist() == [1, 2] and vectors.read(node, 16).tolist() == [1, 0, 2, 0]
    vectors.keep_sum(np.array([5], "<u4"))
    vectors.drop()
    assert vectors.received(node) == 0 and vectors.read_sum(32).tolist() == [5]


HEADS = {"needs", "new_labels", "continues"}
"""Keys with an example of their own, or a table."""


def test_the_documented_job_is_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "federated.md").read_text("utf-8")
    example = text[text.index('name = "solder-1"') :].partition("```")[0]
    found, plan = read(example.replace("02ab...", Plant(0).public))
    assert (found.name, found.most, plan.personal) == ("solder-1", 32, ("*.norm.mean", "*.norm.variance"))
    shown = {line.partition("=")[0].strip() for line in example.splitlines() if "=" in line}
    assert set(type(found).__struct_fields__) <= shown | {"upper_job", "local", "deadlines", "window", "plants"} | HEADS
    assert set(type(found.deadlines).__struct_fields__) <= shown
