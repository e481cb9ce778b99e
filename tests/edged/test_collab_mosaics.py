"""What leaves of a frame: its mosaic, or the frame itself where that takes fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest

from edged.collab.mosaics import Mosaics, Packed, Wanted
from edgekit.regions.cutouts import EXACT, region
from edgekit.regions.header import Region, check_header
from edgekit.regions.mosaic import views
from edgekit.regions.select import Candidate
from edgekit.vision.images import decode, encode_jpeg, sniff

PIXELS = np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8)
COARSE, FINE = encode_jpeg(PIXELS, 20), encode_jpeg(PIXELS, 98)


def tiles(count: int) -> list[Region]:
    corners = [(64.0 * (k % 4), 64.0 * (k // 4)) for k in range(count)]
    return [
        region(k, Candidate((x, y, x + 64, y + 64), "a", 0.5, 0.1), "hard", EXACT, 256, 192)
        for k, (x, y) in enumerate(corners)
    ]


async def packed(picture: bytes, count: int, frame: bool, webp: bool = False) -> Packed:
    mosaics = Mosaics()
    try:
        wanted = Wanted(questions=lambda: tiles(count), quality=90, limit=4096, longest=512, frame=frame, webp=webp)
        return await mosaics.pack(picture, wanted)
    finally:
        mosaics.close()


async def test_a_frame_that_takes_fewer_bytes_than_its_mosaic_is_sent_as_it_came() -> None:
    sent = await packed(COARSE, 12, frame=True)
    assert sent.picture == COARSE and len(sent.header.cells) == 1
    check_header(sent.header)
    seen = decode(COARSE, "bgr")
    for one, pixels in views(decode(sent.picture, "bgr"), sent.header):
        left, top, right, bottom = one.view
        assert np.array_equal(pixels, seen[top:bottom, left:right]), "the cloud sees what the edge saw"
    assert [one.index for one in sent.header.regions()] == list(range(12))


@pytest.mark.parametrize(("picture", "count", "frame"), [(FINE, 12, True), (COARSE, 1, True), (COARSE, 12, False)])
async def test_else_the_mosaic_is_sent(picture: bytes, count: int, frame: bool) -> None:
    sent = await packed(picture, count, frame)
    assert sent.picture != picture
    assert not frame or len(sent.picture) < len(picture)


async def test_a_grey_mosaic_is_a_webp_where_cloudd_takes_it_and_a_coloured_one_a_jpeg() -> None:
    grey = encode_jpeg(PIXELS[..., 0], 98)
    for picture, webp, kind in ((grey, True, "webp"), (grey, False, "jpeg"), (FINE, True, "jpeg")):
        sent = await packed(picture, 3, frame=False, webp=webp)
        info = sniff(sent.picture, webp=True)
        assert (info.format, (info.width, info.height)) == (kind, sent.header.size)
