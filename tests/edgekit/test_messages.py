"""Messages about parts of a picture, between peers of different releases."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from edgekit.messages import NOTHING_FOUND, Answer, DecidedRegion, Decision, HardSample, Message, Verdict
from edgekit.regions.header import Cell, Found, MosaicAnswer, MosaicHeader, Region

VERDICT = Verdict(label=NOTHING_FOUND, score=0.95, margin=0.95, model="small@1")
REGION = Region(index=0, box=(0.0, 0.0, 9.5, 9.0), view=(0, 0, 10, 9), label="", score=0.6, margin=0.1, reason="silent")
HEADER = MosaicHeader(
    frame=(100, 80), size=(16, 16), cells=[Cell(place=(0, 0, 10, 9), box=(0, 0, 10, 9), regions=[REGION])]
)
SAMPLE = HardSample(
    sample_id="s", service="x", answer_model="large", edge=VERDICT, reason="hard", captured_at=1.0, mosaic=HEADER
)
DECISION = Decision(sample_id="s", service="x", label="a", score=0.9, decided="edge", model="small@1", edge=VERDICT)


class OldAnswer(Message, frozen=True, kw_only=True):
    """What a peer from before mosaics knows of an answer."""

    sample_id: str
    verdict: Verdict
    compute_ms: float
    repeated: bool = False


def test_a_mosaic_survives_the_wire() -> None:
    assert msgspec.json.decode(msgspec.json.encode(SAMPLE), type=HardSample) == SAMPLE


def test_peers_from_before_mosaics_understand_the_rest_and_their_answers_show_what_they_are() -> None:
    found = Found(cell=0, box=(0.0, 0.0, 9.0, 9.0), label="a", score=0.9, margin=0.8)
    mosaic = MosaicAnswer(task="detection", found=[found])
    answer = Answer(sample_id="s", verdict=VERDICT, compute_ms=1.0, mosaic=mosaic)
    old = msgspec.json.decode(msgspec.json.encode(answer), type=OldAnswer)
    assert (old.sample_id, old.verdict) == ("s", VERDICT)
    assert msgspec.json.decode(msgspec.json.encode(old), type=Answer).mosaic is None


def test_a_decision_without_regions_is_written_as_ever() -> None:
    assert not {b"regions", b"defects"} & set(msgspec.json.encode(DECISION).split(b'"'))


def test_a_decision_holds_no_more_regions_than_a_mosaic() -> None:
    one = DecidedRegion(box=(0.0, 0.0, 9.0, 9.0), label="a", score=0.9, margin=0.8, decided="cloud")
    most = msgspec.structs.replace(DECISION, regions=[one] * 256, defects=300)
    assert msgspec.json.decode(msgspec.json.encode(most), type=Decision) == most
    more = msgspec.structs.replace(DECISION, regions=[one] * 257)
    with pytest.raises(msgspec.ValidationError, match="256"):
        msgspec.json.decode(msgspec.json.encode(more), type=Decision)


def test_messages_need_neither_numpy_nor_opencv() -> None:
    code = "import sys, edgekit.messages; sys.exit(any(name in sys.modules for name in ('numpy', 'cv2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
