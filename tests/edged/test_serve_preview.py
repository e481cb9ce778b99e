"""The preview: what is drawn, how large it gets, and that nothing is drawn twice."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from edged.serve.preview import SIDE, Preview, draw
from edgekit.messages import Decision, Verdict
from edgekit.vision.images import decode, encode_jpeg, encode_png, sniff
from tests.support.models import picture


def decision(verdict: Literal["", "pass", "fail", "review"] = "", label: str = "bridge") -> Decision:
    edge = Verdict(label=label, score=0.973, margin=0.9, model="m@1")
    return Decision(
        sample_id=f"{verdict}{label}", service="solder", label=label, score=0.973, decided="edge", model="m@1",
        edge=edge, verdict=verdict, captured_at=1e9,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000), (641, 480), (320, 240), (64, 64), (1, 1), (2000, 1)])
def test_it_stays_small_whatever_comes(size: tuple[int, int]) -> None:
    width, height = size
    drawn = sniff(draw(encode_png(np.zeros((height, width, 3), np.uint8)), decision("pass")))
    assert drawn.width <= SIDE and drawn.height <= SIDE + 28
    if min(size) > 1 and max(size) >= 320:
        assert (drawn.width - 12) / (drawn.height - 40) == pytest.approx(width / height, rel=0.02)


@pytest.mark.parametrize(
    ("verdict", "colour"),
    [("pass", (26, 127, 75)), ("fail", (179, 38, 30)), ("review", (154, 91, 0)), ("", (37, 99, 168))],
)
def test_the_frame_has_the_colour_of_the_verdict(
    verdict: Literal["", "pass", "fail", "review"], colour: tuple[int, int, int]
) -> None:
    image = decode(draw(picture(0.5, side=400, kind=".jpg"), decision(verdict)))
    for edge in (image[100:300, 1:4], image[1:4, 100:300], image[100:300, -4:-1]):
        assert np.abs(edge.reshape(-1, 3).mean(axis=0) - colour).max() < 12
    assert np.abs(image[150:250, 150:250].mean() - 127) < 4, "the picture itself is untouched"


def test_the_decision_is_written_within_the_picture() -> None:
    image = decode(draw(picture(0.5, side=400, kind=".jpg"), decision("fail", "x" * 120)), "grey")
    line = image[-27:]
    assert (line > 180).sum() > 200, "white letters"
    assert (line[:, -4:] < 120).all(), "which end before the edge"


def test_grey_pictures_and_foreign_letters() -> None:
    assert sniff(draw(encode_jpeg(np.full((300, 300), 90, np.uint8)), decision(label="Lötbrücke 桥")))


async def test_a_picture_is_drawn_once() -> None:
    preview = Preview()
    assert preview.text == "" and await preview.jpeg() is None
    preview.keep(picture(0.5, side=400), decision("fail"))
    assert preview.text.startswith("fail: bridge 97.3%, ") and preview.text.endswith(", edge")
    first = await preview.jpeg()
    assert first is not None and await preview.jpeg() is first
    preview.keep(picture(0.5, side=400), decision("pass"))
    assert await preview.jpeg() is not first
