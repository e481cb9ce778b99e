"""The preview: what is drawn, how large it gets, and that nothing is drawn twice."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from edged.serve.preview import SIDE, Preview, draw
from edgekit.messages import DecidedRegion, Decision, Verdict
from edgekit.services import DecisionRules
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


GREEN, RED, BLUE = (26, 127, 75), (179, 38, 30), (37, 99, 168)


def near(image: np.ndarray[Any, Any], x: int, y: int, colour: tuple[int, int, int]) -> bool:
    """Whether the picture has about this colour somewhere within three pixels; JPEG blurs a line and its colour."""
    around = image[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).astype(int)
    return bool((np.abs(around - colour).sum(axis=1) < 150).any())


def with_regions(*regions: tuple[tuple[float, float, float, float], str]) -> Decision:
    found = [
        DecidedRegion(box=box, label=label, score=0.9, margin=0.8, decided="edge" if label else "cloud")
        for box, label in regions
    ]
    defects = sum(bool(label) for _, label in regions)
    return msgspec.structs.replace(decision("fail"), regions=found, defects=defects)


def test_regions_stand_in_their_places_in_the_colour_of_what_they_mean() -> None:
    grey = encode_png(np.full((960, 1280, 3), 128, np.uint8))  # drawn at 628/1280 of its size
    marked = with_regions(
        ((200, 300, 400, 500), "short"), ((800, 600, 1000, 700), "scratch"), ((900, 100, 1100, 200), "")
    )
    rules = DecisionRules(passes=["nothing", "scratch"], fail=["short"])
    for given, colours in ((rules, (RED, GREEN, GREEN)), (None, (BLUE, BLUE, BLUE))):
        image = decode(draw(grey, marked, given))
        factor = 628 / 1280
        for region, colour in zip(marked.regions, colours, strict=True):
            left, top, right, bottom = (round(6 + edge * factor) for edge in region.box)
            middle = (left + right) // 2, (top + bottom) // 2
            for x, y in ((left, middle[1]), (right - 1, middle[1]), (middle[0], bottom - 1)):
                assert near(image, x, y, colour), (region, x, y)
            assert not near(image, *middle, colour), "the inside is untouched"
    assert Preview().text == "" and "2 defects" in _text(marked)


def _text(one: Decision) -> str:
    preview = Preview()
    preview.keep(b"x", one)
    return preview.text


@pytest.mark.parametrize("size", [(4000, 3000), (641, 480), (64, 64), (1, 1), (2000, 1)])
def test_many_regions_of_any_size_are_drawn_whatever_the_picture(size: tuple[int, int]) -> None:
    width, height = size
    rng = np.random.default_rng(1)
    regions = []
    for number in range(256):
        (left, right), (top, bottom) = (np.sort(rng.uniform(0, side, 2)) for side in size)
        regions.append(((float(left), float(top), float(right) + 0.01, float(bottom) + 0.01), "\u6865" * number))
    drawn = sniff(draw(encode_png(np.zeros((height, width, 3), np.uint8)), with_regions(*regions)))
    assert drawn.width <= SIDE and drawn.height <= SIDE + 28
