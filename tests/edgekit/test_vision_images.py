"""Decoding: what is read, what is decided about ambiguous pictures, and what hostile bytes can do."""

from __future__ import annotations

import base64
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.vision.images import ImageError, ImageInfo, decode, encode_jpeg, encode_png, sniff, thumbnail

CMYK_RED = base64.b64decode(  # 8x8 pixels of cyan 0, magenta 100 %, yellow 100 %, black 0, written by Pillow
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAQCwwODAoQDg0OEhEQExgoGhgWFhgxIyUdKDozPTw5Mzg3QEhcTkBEV0U3OFBtUVdfYmdoZz5NcXlw"
    "ZHhcZWdj/8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EABQAAQAAAAAAAAAAAAAAAAAAAAf/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oADgRDAE0A"
    "WQBLAAA/AEAfj8gP/9k="
)


def scene(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A smooth RGB picture whose left half is red and right half blue, so colour order and orientation show."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 200
    image[:, width // 2 :, 2] = 220
    image[: height // 2, :, 1] = 60
    return image


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb(side: int = 30_000) -> bytes:
    """A PNG of about 100 kB whose pixels would fill 2.6 GB in colour."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    rows = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    return png(side, side, 1, 0, rows)


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def progressive(image: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])


JPEG = encode_jpeg(scene())
PNG = encode_png(scene())
WEBP = bytes(cv2.imencode(".webp", scene()[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, 90])[1])


def test_sniff_reads_the_header_only() -> None:
    assert sniff(JPEG) == ImageInfo("jpeg", 64, 48)
    assert sniff(PNG) == ImageInfo("png", 64, 48)
    assert sniff(bomb()).pixels == 900_000_000
    assert sniff(progressive(scene())) == ImageInfo("jpeg", 64, 48)


def test_a_webp_is_a_picture_only_where_it_is_asked_for() -> None:
    assert sniff(WEBP, webp=True) == ImageInfo("webp", 64, 48)
    assert sniff(JPEG, webp=True) == sniff(JPEG)
    image = decode(WEBP, webp=True)
    assert image.shape == (48, 64, 3) and np.abs(image.astype(int) - scene()).mean() < 4
    for read in (sniff, decode):
        with pytest.raises(ImageError, match="not a JPEG or PNG"):
            read(WEBP)
    with pytest.raises(ImageError, match="exceed the limit"):
        decode(WEBP, max_pixels=64 * 48 - 1, webp=True)


def webp(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    return bytes(cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])[1])


@pytest.mark.parametrize("side", [1, 2, 15, 16, 17, 333])
@pytest.mark.parametrize("quality", [1, 80, 100])
def test_the_size_in_a_webps_header_is_that_of_its_pixels(side: int, quality: int) -> None:
    data = webp(np.random.default_rng(side).integers(0, 256, (side, 40), np.uint8), quality)
    assert sniff(data, webp=True) == ImageInfo("webp", 40, side)
    assert decode(data, "grey", webp=True).shape == (side, 40)


def test_what_a_mosaic_never_is_is_no_webp_that_we_read() -> None:
    transparent = webp(np.dstack([scene(), np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)]))
    for data in (webp(scene(), 101), transparent):  # over 100: lossless
        with pytest.raises(ImageError, match="only a plain lossy one"):
            sniff(data, webp=True)
    for data, words in (
        (WEBP + b"  ", "something follows"),
        (WEBP[:-2], "cut short"),
        (WEBP[:29], "ends inside its header"),
        (WEBP[:20] + bytes([WEBP[20] | 1]) + WEBP[21:], "key frame"),
        (WEBP[:23] + b"\0" + WEBP[24:], "key frame"),
        (WEBP[:20] + bytes([WEBP[20], 0xFF, 0xFF]) + WEBP[23:], "first part"),
        (WEBP[:26] + b"\0\0" + WEBP[28:], "0x48 pixels"),
    ):
        with pytest.raises(ImageError, match=words):
            sniff(data, webp=True)


@pytest.mark.parametrize("data", [JPEG, PNG, progressive(scene())])
def test_colour_order(data: bytes) -> None:
    rgb = decode(data)
    assert rgb.shape == (48, 64, 3)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - scene()).mean() < 4
    np.testing.assert_array_equal(decode(data, "bgr"), rgb[:, :, ::-1])
    grey = decode(data, "grey")
    assert grey.shape == (48, 64)
    assert np.abs(grey - rgb @ np.array([0.299, 0.587, 0.114])).mean() < 3


@pytest.mark.parametrize(
    ("reduce_to", "factor"), [((64, 48), 1), ((33, 20), 1), ((32, 24), 2), ((10, 12), 4), ((8, 6), 8), ((1, 1), 8)]
)
def test_a_jpeg_is_decoded_smaller_only_while_it_stays_large_enough(reduce_to: tuple[int, int], factor: int) -> None:
    image = decode(JPEG, reduce_to=reduce_to)
    assert image.shape == (48 // factor, 64 // factor, 3)
    assert image[0, 0, 0] > 150  # red on the left: the order survives the reduced decoder
    assert image[0, -1, 2] > 150
    assert decode(JPEG, "grey", reduce_to=reduce_to).shape == image.shape[:2]
    assert decode(PNG, reduce_to=reduce_to).shape == (48, 64, 3)


def test_reduced_decoding_is_close_to_an_area_resize() -> None:
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 256, (512, 512, 3), np.uint8), (0, 0), 6)
    data = encode_jpeg(np.asarray(image, np.uint8), 95)
    area = cv2.resize(decode(data), (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(decode(data, reduce_to=(128, 128)).astype(int) - area).mean() < 1.0


def test_sixteen_bits_become_eight() -> None:
    deep = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    data = bytes(cv2.imencode(".png", deep)[1])
    assert np.abs(decode(data, "grey").astype(int) - deep / 257).max() <= 1
    assert decode(data).dtype == np.uint8


def test_grey_becomes_three_equal_channels() -> None:
    ramp = np.arange(64, dtype=np.uint8).repeat(48).reshape(64, 48)
    for data in (encode_png(ramp), encode_jpeg(ramp, 100)):
        image = decode(data)
        assert image.shape == (64, 48, 3)
        assert (image[:, :, 0] == image[:, :, 2]).all()
        np.testing.assert_allclose(image[:, :, 1], ramp, atol=2)


def test_alpha_is_dropped_not_blended() -> None:
    rgba = np.dstack([scene(), np.zeros((48, 64), np.uint8)])  # wholly transparent
    data = bytes(cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[1])
    np.testing.assert_array_equal(decode(data), scene())


def test_one_bit_and_palette_pngs() -> None:
    bits = png(8, 1, 1, 0, zlib.compress(b"\0\xf0"))
    assert decode(bits, "grey").tolist() == [[255] * 4 + [0] * 4]
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    assert decode(png(2, 1, 8, 3, zlib.compress(b"\0\0\1"), palette)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_cmyk_is_converted() -> None:
    red, green, blue = decode(CMYK_RED)[4, 4]
    assert red > 200
    assert green < 50
    assert blue < 50


def test_exif_orientation_is_ignored() -> None:
    turned = with_exif_orientation(JPEG, 6)
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (64, 48, 3)  # the tag is real
    np.testing.assert_array_equal(decode(turned), decode(JPEG))


def test_padding_behind_the_end_of_a_jpeg_is_allowed() -> None:
    np.testing.assert_array_equal(decode(JPEG + bytes(512)), decode(JPEG))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not a JPEG or PNG"),
        (b"GIF89a" + bytes(50), "not a JPEG or PNG"),
        (b"BM" + bytes(100), "not a JPEG or PNG"),
        (b"\xff\xd8", "cut short"),
        (b"\xff\xd8\xff\xe0\x00", "cut short"),
        (b"\xff\xd8" + bytes(50), "a marker is missing"),
        (b"\xff\xd8\xff\xd9\x00\x00", "stands where it must not"),
        (b"\xff\xd8\xff\xe0\x00\x00" + bytes(20), "too short"),
        (b"\xff\xd8\xff\xda\x00\x08" + bytes(20), "before its size"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "IHDR"),
        (png(0, 5, 8, 0, b""), "0x5"),
        (png(0x7FFFFFFF, 0x7FFFFFFF, 8, 0, b"x"), "exceed the limit"),
        (png(1, 1, 8, 0, zlib.compress(b"\0\0"), chunk(b"acTL", bytes(8))), "animated"),
        (png(4, 4, 8, 0, b"no zlib stream"), "damaged|cannot be decoded"),
        (png(4, 4, 8, 0, zlib.compress(b"\0")), "damaged|cannot be decoded"),
        (png(1, 1, 8, 0, b"", chunk(b"tEXt", b"") * 10_001), "more than 10000"),
        (JPEG[:2] + b"\xff\xfe\x00\x02" * 10_001 + JPEG[2:], "more than 10000"),
        (JPEG[:2] + b"\xff" * 40, "cut short"),
    ],
)
def test_other_bytes_are_refused_with_a_sentence(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def resize_header(jpeg: bytes, width: int, height: int) -> bytes:
    at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def test_huge_dimensions_are_refused_before_anything_is_decoded() -> None:
    data = bomb()
    assert len(data) < 120_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(ImageError, match="30000x30000 pixels exceed"):
        decode(data)
    with pytest.raises(ImageError, match="65535x65535 pixels"):
        decode(resize_header(JPEG, 65535, 65535))
    with pytest.raises(ImageError, match="64x48 pixels exceed the limit of 3000"):
        decode(JPEG, max_pixels=3000)
    assert time.perf_counter() - started < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_opencv_has_the_same_limit_of_its_own() -> None:
    code = (
        "import sys, numpy, edgekit.vision.preprocess as p\n"
        "try: p.cv2.imdecode(numpy.frombuffer(sys.stdin.buffer.read(), numpy.uint8), p.cv2.IMREAD_COLOR)\n"
        "except p.cv2.error as error: print(error)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENCV")}
    done = subprocess.run([sys.executable, "-c", code], input=bomb(), capture_output=True, env=environment, timeout=60)
    assert b"CV_IO_MAX_IMAGE_PIXELS" in done.stdout


def test_a_jpeg_that_promises_more_than_it_holds_is_refused() -> None:
    for data in (JPEG, progressive(scene())):
        with pytest.raises(ImageError, match="too few bytes for 4000x4000 pixels"):
            decode(resize_header(data, 4000, 4000))


@pytest.mark.parametrize("side", [1, 7, 8, 4000])
def test_the_emptiest_jpegs_are_still_whole(side: int) -> None:
    flat = np.full((side, side), 128, np.uint8)
    for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_OPTIMIZE, 1]):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 1]
        data = bytes(cv2.imencode(".jpg", flat, [*options, *quality])[1])
        assert decode(data, "grey").shape == (side, side)


@pytest.mark.parametrize("data", [JPEG, PNG, progressive(scene()), WEBP], ids=["jpeg", "png", "progressive", "webp"])
def test_every_truncation_is_an_error(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(ImageError):
            decode(data[:length], webp=True)


def test_a_thumbnail_inside_does_not_hide_a_cut() -> None:
    body = b"Exif\0\0" + JPEG[:200] + b"\xff\xd9"
    whole = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + JPEG[2:]
    np.testing.assert_array_equal(decode(whole), decode(JPEG))
    with pytest.raises(ImageError, match="its end is missing"):
        sniff(whole[:-100])


def test_a_jpeg_with_endless_scans_is_refused() -> None:
    data = progressive(scene())
    start = data.index(b"\xff\xda")
    scans = data[start:-2]
    assert sniff(data[:start] + scans + b"\xff\xd9") == sniff(data)
    with pytest.raises(ImageError, match="scans; 64 are allowed"):
        sniff(data[:start] + scans * 64 + b"\xff\xd9")


def attempt(data: bytes) -> None:
    """Decoding gives a bounded picture or an ImageError, and nothing else ever."""
    try:
        image = decode(data, max_pixels=100_000, webp=True)
    except ImageError as error:
        assert str(error)
    else:
        assert image.ndim == 3
        assert image.size <= 300_000


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", PNG[:33], JPEG[:160], WEBP[:30]]),
)
@settings(max_examples=400, deadline=None)
def test_any_bytes_behind_a_valid_start(tail: bytes, start: bytes) -> None:
    attempt(start + tail)


def mutation(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with up to eight bytes replaced and a slice removed."""
    edits = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=8)
    cuts = st.tuples(st.integers(0, len(data)), st.integers(0, 40))

    def apply(parts: tuple[list[tuple[int, int]], tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for at, value in parts[0]:
            changed[at] = value
        start, length = parts[1]
        del changed[start : start + length]
        return bytes(changed)

    return st.tuples(edits, cuts).map(apply)


@given(st.one_of(mutation(JPEG), mutation(PNG), mutation(progressive(scene())), mutation(WEBP)))
@settings(max_examples=600, deadline=None)
def test_any_mutation_of_a_valid_picture(data: bytes) -> None:
    attempt(data)


def test_thumbnail_is_a_small_jpeg() -> None:
    assert sniff(thumbnail(scene(480, 640))) == ImageInfo("jpeg", 160, 120)
    assert sniff(thumbnail(scene(30, 40))) == ImageInfo("jpeg", 40, 30)
    assert sniff(thumbnail(np.zeros((4, 4000), np.uint8), 100)) == ImageInfo("jpeg", 100, 1)


@pytest.mark.parametrize("encode", [encode_jpeg, encode_png])
def test_arrays_that_are_no_picture_cannot_be_encoded(encode: Callable[..., bytes]) -> None:
    for array in (
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((0, 2), np.uint8),
        np.zeros(3, np.uint8),
    ):
        with pytest.raises(ImageError, match="no picture"):
            encode(array)
