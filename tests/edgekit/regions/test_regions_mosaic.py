from __future__ import annotations

import itertools

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from edgekit.regions.cutouts import ALIGN, EXACT, Context, region
from edgekit.regions.header import MAX_REGIONS, MosaicHeader, Region, RegionError, check_header, overlap
from edgekit.regions.mosaic import Mosaic, cells, compose, pack, to_cell, to_frame, views, whole
from edgekit.regions.select import Candidate
from edgekit.vision.images import decode, encode_jpeg, encode_png, sniff

FRAME = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
GREY = FRAME[..., 0].copy()

boxes = st.tuples(st.integers(0, 400), st.integers(0, 280), st.integers(1, 200), st.integers(1, 200)).map(
    lambda v: (float(v[0]), float(v[1]), min(420.0, v[0] + v[2]), min(300.0, v[1] + v[3]))
)


def ask(asked: list[tuple[float, float, float, float]], context: Context = EXACT) -> list[Region]:
    return [region(i, Candidate(box, "a", 0.5, 0.1), "hard", context, 420, 300) for i, box in enumerate(asked)]


@given(st.lists(boxes, min_size=1, max_size=20), st.booleans())
@settings(max_examples=50)
def test_every_pixel_of_every_region_comes_back(asked: list[tuple[float, float, float, float]], grey: bool) -> None:
    frame = GREY if grey else FRAME
    mosaic = compose(frame, ask(asked, Context(0.25, 4)))
    header = msgspec.json.decode(msgspec.json.encode(mosaic.header), type=MosaicHeader)
    received = decode(encode_png(mosaic.image), "grey" if grey else "rgb")
    for cell, pixels in zip(header.cells, cells(received, header), strict=True):
        left, top, right, bottom = cell.box
        assert np.array_equal(pixels, frame[top:bottom, left:right])
    seen = views(received, header)
    assert sorted(one.index for one, _ in seen) == list(range(len(asked)))
    for one, pixels in seen:
        left, top, right, bottom = one.view
        assert np.array_equal(pixels, frame[top:bottom, left:right])


@given(st.lists(boxes, min_size=1, max_size=6), st.integers(16, 150), st.data())
@settings(max_examples=50)
def test_an_answer_maps_back_to_where_it_was_even_from_a_scaled_cell(
    asked: list[tuple[float, float, float, float]], longest: int, data: st.DataObject
) -> None:
    mosaic = compose(FRAME, ask(asked), longest=longest)
    for cell, pixels in zip(mosaic.header.cells, cells(mosaic.image, mosaic.header), strict=True):
        assert max(pixels.shape[:2]) <= longest
        left, top, right, bottom = cell.box
        x, y = data.draw(st.floats(left, right - 1)), data.draw(st.floats(top, bottom - 1))
        box = (x, y, data.draw(st.floats(x + 0.5, right)), data.draw(st.floats(y + 0.5, bottom)))
        inside = to_cell(cell, [box])
        assert (inside >= -1e-9).all() and (inside[0, 2:] <= np.array(pixels.shape[1::-1]) + 1e-9).all()
        assert np.abs(to_frame(cell, inside.astype(np.float32)) - box).max() < 0.01  # as a detector's float32


def test_a_mark_that_is_found_in_a_scaled_cell_is_within_a_pixel_of_where_it_is_in_the_frame() -> None:
    """The same through real pixels: half the size, coded as JPEG, looked for with a threshold."""
    frame = np.full((400, 600), 30, np.uint8)
    frame[150:190, 220:290] = 230
    asked = [region(0, Candidate((120.0, 90.0, 420.0, 290.0), "a", 0.5, 0.1), "hard", EXACT, 600, 400)]
    mosaic = compose(frame, asked, longest=150)
    (pixels,) = cells(decode(mosaic.encode(), "grey"), mosaic.header)
    assert pixels.shape == (100, 150)
    rows, columns = (np.flatnonzero((pixels > 130).any(axis=axis)) for axis in (1, 0))
    found = [(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]
    assert np.abs(to_frame(mosaic.header.cells[0], found) - [[220, 150, 290, 190]]).max() <= 1.0


def test_an_answer_that_reaches_out_of_its_cell_is_clipped_to_it() -> None:
    (cell,) = compose(FRAME, ask([(10.0, 10.0, 50.0, 50.0)])).header.cells
    assert to_frame(cell, [(-5, -5, 90, 20)]).tolist() == [[10, 10, 50, 30]]


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=40))
def test_cells_are_packed_without_overlap_on_the_grid_and_inside_the_whole(sizes: list[tuple[int, int]]) -> None:
    packed = pack(sizes, 2048)
    if packed is None:
        assert sum(w * h for w, h in sizes) > 0.4 * 2048**2
        return
    (width, height), corners = packed
    placed = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    assert all(x % ALIGN == y % ALIGN == 0 for x, y in corners)
    assert all(x >= 0 and y >= 0 and right <= width and bottom <= height for x, y, right, bottom in placed)
    assert max(width, height) <= 2048
    assert not any(overlap(a, b) for a, b in itertools.combinations(placed, 2))
    assert pack(sizes, 2048) == packed


def test_cut_outs_of_usual_sizes_fill_three_quarters_of_the_mosaic() -> None:
    rng = np.random.default_rng(1)
    for count in (5, 20, 60):
        sizes = [(int(w), int(h)) for w, h in rng.integers(30, 140, (count, 2))]
        packed = pack(sizes, 2048)
        assert packed is not None
        assert sum(w * h for w, h in sizes) > 0.7 * packed[0][0] * packed[0][1]


def neighbours(colour: bool) -> tuple[NDArray[np.uint8], list[Region]]:
    """A frame with nine tiles, and a question about each."""
    rng = np.random.default_rng(2)
    frame = np.asarray(cv2.resize(rng.integers(0, 256, (18, 18, 3), dtype=np.uint8), (300, 300)), np.uint8)
    tiles = [(100.0 * i, 100.0 * j, 100.0 * i + 64, 100.0 * j + 61) for i in range(3) for j in range(3)]
    asked = [region(k, Candidate(tile, "a", 0.5, 0.1), "hard", EXACT, 300, 300) for k, tile in enumerate(tiles)]
    return (frame if colour else frame[..., 0].copy()), asked


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("quality", [30, 90])
def test_no_cell_takes_colour_or_light_from_its_neighbours(colour: bool, quality: int) -> None:
    frame, asked = neighbours(colour)

    def received(mosaic: Mosaic) -> list[NDArray[np.uint8]]:
        return cells(decode(mosaic.encode(quality), "rgb" if colour else "grey"), mosaic.header)

    before = received(compose(frame, asked))
    shown = asked[4].view
    changed = 255 - frame
    changed[shown[1] : shown[3], shown[0] : shown[2]] = frame[shown[1] : shown[3], shown[0] : shown[2]]
    after = received(compose(changed, asked))
    assert np.array_equal(before[4], after[4])
    assert not np.array_equal(before[3], after[3])


@pytest.mark.parametrize("colour", [True, False])
def test_one_mosaic_is_a_sixth_smaller_than_a_jpeg_of_the_same_coding_for_each_region(colour: bool) -> None:
    frame, asked = neighbours(colour)
    alone = sum(len(compose(frame, [one]).encode()) for one in asked)
    assert len(compose(frame, asked).encode()) < 5 / 6 * alone


def test_three_equal_channels_take_no_more_bytes_than_one() -> None:
    frame, asked = neighbours(colour=False)
    three = compose(np.repeat(frame[..., None], 3, axis=2), asked)
    assert three.encode() == compose(frame, asked).encode()
    coloured = decode(three.encode())
    assert coloured.shape == three.image.shape and np.abs(coloured.astype(int) - three.image).mean() < 3


def drawing() -> tuple[NDArray[np.uint8], list[Region]]:
    """Black and white tracks, as a camera with a backlight sees them, and nine questions."""
    frame = np.full((300, 420), 255, np.uint8)
    for i in range(0, 420, 14):
        cv2.line(frame, (i, 0), ((3 * i) % 420, 299), 0, 3)
    frame = decode(encode_jpeg(frame, 90), "grey")
    return frame, ask([(60.0 * i, 90.0 * j, 60.0 * i + 48, 90.0 * j + 48) for i in range(3) for j in range(3)])


def test_a_grey_mosaic_as_webp_takes_half_the_bytes_and_is_as_near_to_the_frame() -> None:
    frame, asked = drawing()
    mosaic = compose(frame, asked)
    coded, plain = mosaic.encode(webp=True), mosaic.encode()
    assert sniff(coded, webp=True).format == "webp" and 2 * len(coded) < len(plain)
    received = decode(coded, "grey", webp=True)
    for cell, pixels in zip(mosaic.header.cells, cells(received, mosaic.header), strict=True):
        left, top, right, bottom = cell.box
        off = pixels.astype(int) - frame[top:bottom, left:right]
        assert np.abs(off).max() <= 40 and np.sqrt((off**2).mean()) < 4
    assert compose(np.repeat(frame[..., None], 3, axis=2), asked).encode(webp=True) == coded


def test_what_lies_beside_a_cell_of_a_webp_changes_its_rounding_and_nothing_else() -> None:
    frame, asked = drawing()
    shown = asked[4].view
    changed = 255 - frame
    changed[shown[1] : shown[3], shown[0] : shown[2]] = frame[shown[1] : shown[3], shown[0] : shown[2]]

    def received(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        mosaic = compose(image, asked)
        return cells(decode(mosaic.encode(webp=True), "grey", webp=True), mosaic.header)[4]

    one, other = received(frame).astype(int), received(changed).astype(int)
    assert np.abs(one - other).max() <= 40 and np.sqrt(((one - other) ** 2).mean()) < 4


def test_a_coloured_mosaic_stays_a_jpeg_because_webp_halves_its_colours() -> None:
    frame, asked = neighbours(colour=True)
    mosaic = compose(frame, asked)
    assert mosaic.encode(webp=True) == mosaic.encode()


@pytest.mark.parametrize("quality", [1, 5, 100])
def test_every_quality_of_a_jpeg_is_one_of_a_webp(quality: int) -> None:
    frame, asked = drawing()
    coded = compose(frame, asked).encode(quality, webp=True)
    assert decode(coded, "grey", webp=True).size


def test_a_frame_that_is_sent_as_it_is_shows_each_region_what_the_edge_saw() -> None:
    asked = ask([(10.0, 10.0, 50.0, 50.0), (200.5, 100.0, 419.0, 299.5)])
    header = whole((420, 300), asked)
    check_header(header)
    for one, pixels in views(FRAME, header):
        left, top, right, bottom = one.view
        assert np.array_equal(pixels, FRAME[top:bottom, left:right])


def test_the_same_in_is_the_same_out() -> None:
    frame, asked = neighbours(colour=True)
    one, other = compose(frame, asked), compose(frame.copy(), list(asked))
    assert one.encode() == other.encode() and one.header == other.header


def test_colours_keep_their_order() -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[..., 0] = 200
    for order in ("rgb", "bgr"):
        asked = [region(0, Candidate((0.0, 0.0, 64.0, 64.0), "a", 0.5, 0.1), "hard", EXACT, 64, 64)]
        mosaic = compose(frame, asked)
        received = decode(mosaic.encode(colour=order), order)  # type: ignore[arg-type]
        assert np.abs(received.astype(int) - frame).max() < 6


def test_as_many_regions_as_there_may_be_fit_by_being_made_smaller() -> None:
    frame = np.zeros((4000, 4000), np.uint8)
    asked = [
        region(k, Candidate((x, y, x + 240.0, y + 240.0), "a", 0.5, 0.1), "hard", EXACT, 4000, 4000)
        for k, (x, y) in enumerate((250.0 * (k % 16), 250.0 * (k // 16)) for k in range(MAX_REGIONS))
    ]
    mosaic = compose(frame, asked, limit=512)
    assert max(mosaic.image.shape) <= 512 and len(mosaic.header.regions()) == MAX_REGIONS
    assert all(max(cell.scale) < 0.2 for cell in mosaic.header.cells)
    assert [one.index for one, _ in views(mosaic.image, mosaic.header)] == list(range(MAX_REGIONS))


def test_what_cannot_be_composed_is_refused() -> None:
    one = ask([(10.0, 10.0, 50.0, 50.0)])
    for asked, said in (
        ([], "holds 1 to 256"),
        ([replace(one[0], view=(0, 0, 500, 10))], "outside of the frame"),
        ([replace(one[0], view=(20, 20, 10, 30))], "left < right"),
        (one * 2, "two regions have one index"),
        ([replace(one[0], index=i) for i in range(MAX_REGIONS + 1)], "not 257"),
    ):
        with pytest.raises(RegionError, match=said):
            compose(FRAME, asked)
    with pytest.raises(ValueError, match="limit"):
        compose(FRAME, one, limit=100)


def test_a_picture_of_another_size_than_the_header_says_is_refused() -> None:
    mosaic = compose(FRAME, ask([(10.0, 10.0, 50.0, 50.0)]))
    for image in (mosaic.image[:-1], np.zeros((500, 500, 3), np.uint8)):
        with pytest.raises(RegionError, match="its header says"):
            cells(image, mosaic.header)
    with pytest.raises(RegionError, match="outside"):
        cells(mosaic.image, replace(mosaic.header, frame=(20, 20)))
