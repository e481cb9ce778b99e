from __future__ import annotations

import contextlib
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit.messages import HardSample, Verdict, packed, unpacked
from edgekit.regions.cutouts import EXACT, Context, region
from edgekit.regions.header import MAX_REGIONS, Cell, MosaicHeader, Region, RegionError, check_header
from edgekit.regions.mosaic import compose
from edgekit.regions.packing import MAX_PACKED, MAX_UNPACKED, pack, unpack
from edgekit.regions.select import Candidate

LABELS = ["clean", "short", "open", "spur"]


def tiles(count: int) -> MosaicHeader:
    """Of doubtful tiles of a board of 640 pixels, as benchmarks.collab asks about them."""
    rng = np.random.default_rng(count)
    asked = []
    for index in sorted(rng.choice(169, count, replace=False).tolist()):
        left, top = 48.0 * (index % 13), 48.0 * (index // 13)
        score = round(float(rng.uniform(0.3, 1)), 6)
        candidate = Candidate((left, top, left + 64, top + 64), LABELS[index % 4], score, round(score / 2, 6))
        asked.append(region(index, candidate, "hard" if index % 7 else "audit", EXACT, 640, 640))
    return compose(np.zeros((640, 640), np.uint8), asked).header


def boxes(count: int) -> MosaicHeader:
    """Of a detector's boxes, rounded as candidates are."""
    rng = np.random.default_rng(count)
    asked = []
    for index in range(count):
        left, top, across, down = (round(float(v), 2) for v in rng.uniform((0, 0, 5, 5), (1800, 900, 90, 90)))
        box = (left, top, round(left + across, 2), round(top + down, 2))
        score = round(float(rng.uniform(0, 1)), 6)
        asked.append(region(index, Candidate(box, "", score, score), "hard", Context(), 1920, 1080))
    return compose(np.zeros((1080, 1920), np.uint8), asked).header


SHARES = st.floats(0, 1) | st.integers(0, 10**6).map(lambda n: n / 10**6)
PLACES = st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 4)
REGIONS = st.builds(
    Region,
    index=st.integers(0, 2**16 - 1),
    box=st.tuples(*[st.floats(allow_nan=False) | st.integers(-9999, 9999).map(lambda n: n / 100)] * 4),
    view=PLACES,
    label=st.text(max_size=20),
    score=SHARES,
    margin=SHARES,
    reason=st.sampled_from(["hard", "audit", "calibrating", "safe-mode", "silent"]),
)
CELLS = st.builds(Cell, place=PLACES, box=PLACES, regions=st.lists(REGIONS, min_size=1, max_size=5))
SIZES = st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2)
HEADERS = st.builds(MosaicHeader, frame=SIZES, size=SIZES, cells=st.lists(CELLS, min_size=1, max_size=5))


@given(HEADERS)
def test_every_header_comes_back_as_it_was(header: MosaicHeader) -> None:
    assert unpack(pack(header)) == header


@pytest.mark.parametrize("count", [1, 4, 9, 40, 169])
def test_a_packed_header_takes_a_third_of_its_json_from_a_few_regions_on(count: int) -> None:
    for header in (tiles(count), boxes(count)):
        data = pack(header)
        assert unpack(data) == header
        assert len(data) < len(msgspec.json.encode(header)) * (0.3 if count > 8 else 0.35 if count > 3 else 0.5)


def test_the_largest_header_that_there_may_be_can_be_packed() -> None:
    full = [
        Cell(place=(0, i, 1, i + 1), box=(0, i, 1, i + 1), regions=[one])
        for i, one in enumerate(
            Region(
                index=i,
                box=(0.1234567, i + 0.1234567, 0.7654321, i + 0.7654321),
                view=(0, i, 1, i + 1),
                label=f"{i:03}" + "\U0001f600" * 253,
                score=0.12345678901,
                margin=0.12345678901,
                reason="hard",
            )
            for i in range(MAX_REGIONS)
        )
    ]
    header = MosaicHeader(frame=(4000, 4000), size=(4000, 4000), cells=full)
    check_header(header)
    assert unpack(pack(header)) == header


@given(st.binary(max_size=300), st.data())
def test_damaged_bytes_are_refused_or_are_some_header(noise: bytes, data: st.DataObject) -> None:
    good = pack(tiles(4))
    at = data.draw(st.integers(0, len(good)))
    plain = zlib.decompress(good)
    for bad in (noise, good[:at] + noise, zlib.compress(noise), zlib.compress(plain[: at // 2] + noise + plain[at:])):
        with contextlib.suppress(RegionError):
            assert isinstance(unpack(bad), MosaicHeader)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"counts": [2, 1]}, "lengths"),
        ({"counts": [0, 1]}, "cannot be used"),
        ({"indices": [0]}, "lengths"),
        ({"label": [0, -1]}, "names a label"),
        ({"label": [0, 2]}, "names a label"),
        ({"reason": [0, 9]}, "names a reason"),
        ({"reasons": ["whatever"]}, "cannot be used"),
        ({"indices": [0, 1 << 40]}, "cannot be used"),
        ({"places": [1 << 62] * 8}, "cannot be used"),
        ({"scores": [0, 2_000_000]}, "cannot be used"),
        ({"places": [0] * 4 * (MAX_REGIONS + 1)}, "cannot be used"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(change: dict[str, object], said: str) -> None:
    columns: dict[str, object] = {
        "frame": [640, 640],
        "size": [128, 64],
        "labels": ["clean", "open"],
        "reasons": ["hard"],
        "counts": [1, 1],
        "places": [0, 0, 64, 64, 64, 0, 64, 64],
        "cells": [0, 0, 64, 64, 100, 0, 64, 64],
        "views": [0] * 8,
        "boxes": [0] * 8,
        "indices": [0, 7],
        "label": [0, 1],
        "reason": [0, 0],
        "scores": [900_000, 1_000_000],
        "margins": [800_000, 500_000],
    }
    assert unpack(_packed(columns)).regions()[1].index == 7
    with pytest.raises(RegionError, match=said):
        unpack(_packed({**columns, **change}))


def test_what_grows_without_bound_is_refused() -> None:
    bomb = zlib.compress(b"\0" * (MAX_UNPACKED * 40), 9)
    assert len(bomb) < MAX_PACKED
    with pytest.raises(RegionError, match="holds over"):
        unpack(bomb)
    with pytest.raises(RegionError, match="bytes; "):
        unpack(b"\0" * (MAX_PACKED + 1))
    with pytest.raises(RegionError, match="something follows"):
        unpack(pack(tiles(2)) + b"x")


def test_a_sample_is_sent_with_its_header_before_the_picture_and_comes_back() -> None:
    sample = HardSample(
        sample_id="1",
        service="boards",
        answer_model="large",
        edge=Verdict(label="open", score=0.5, margin=0.1, model="small@1"),
        reason="hard",
        captured_at=0.0,
        mosaic=tiles(9),
    )
    sent, payload = packed(sample, b"JPEG")
    assert sent.mosaic is None and payload.endswith(b"JPEG") and len(payload) == sent.packed + 4
    assert unpacked(sent, payload) == (replace(sample, brief=True), b"JPEG")
    whole = replace(sample, mosaic=None)
    assert packed(whole, b"JPEG") == (whole, b"JPEG") == unpacked(whole, b"JPEG")
    assert unpacked(sample, b"JPEG") == (sample, b"JPEG")  # of a device that does not pack yet
    for bad, said in (
        (replace(sent, packed=-1), "are said to be packed"),
        (replace(sent, packed=len(payload) + 1), "are said to be packed"),
        (replace(sent, packed=sent.packed - 1), "cut short"),
        (replace(sent, mosaic=sample.mosaic), "as well"),
    ):
        with pytest.raises(RegionError, match=said):
            unpacked(bad, payload)


def _packed(columns: dict[str, object]) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(list(columns.values())))
