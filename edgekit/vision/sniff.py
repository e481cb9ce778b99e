"""What a picture claims to be, read from its header alone, and whether all of it arrived.

Only the standard library is needed here, so a process without OpenCV can refuse nonsense at its door. Two formats are
known everywhere, JPEG and PNG: every further decoder is attack surface, and these two are what cameras and their
software write. A third one, lossy WebP of one frame, is known where it is asked for: mosaics travel in it, and cloudd
decodes them in a process that may do nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 64
"""A progressive JPEG has about ten scans. Each walks the whole picture, so thousands of them are an attack on time."""
MAX_SEGMENTS = 10_000
"""JPEG segments or PNG chunks in one picture. Encoders write an IDAT chunk per 8 KiB or more."""

_EOI, _SOI, _SOS, _TEM = 0xD9, 0xD8, 0xDA, 0x01
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # C4 DHT, C8 reserved, CC DAC are no frame headers
_MISPLACED = frozenset((_SOI, _EOI, 0x00, *range(0xD0, 0xD8)))  # none of them begins a segment of the header
_SEGMENT = struct.Struct(">BBH").unpack_from
_PROGRESSIVE = 0xC2
_VP8_HEADER = 30  # bytes up to the end of the size: RIFF header, chunk header, frame tag, start code, two sides
_DECODABLE_SOF = frozenset((0xC0, 0xC1, _PROGRESSIVE))  # baseline, extended, progressive: what every decoder reads


Format = Literal["jpeg", "png", "webp"]


class ImageError(ValueError):
    """The bytes are not a picture that we read. The text is for the person who sent it."""


@dataclass(frozen=True)
class ImageInfo:
    """What the header says; nothing has been decoded yet."""

    format: Format
    width: int  # pixels, as stored
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def sniff(data: bytes, *, webp: bool = False) -> ImageInfo:
    """Read the header of a JPEG or PNG and check that the file is whole, without decoding a pixel.

    With `webp` also that of a WebP, if it is one lossy frame and nothing else. Raises ImageError if the bytes are
    empty, another format, have a broken header, a side of zero, are cut short, are an animated PNG, or a JPEG with more
    than MAX_SCANS scans. Work is linear in the length of `data`.
    """
    if data[:2] == b"\xff\xd8":
        return _sniff_jpeg(data)
    if data[:8] == PNG_SIGNATURE:
        return _sniff_png(data)
    if webp and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _sniff_webp(data)
    if not data:
        raise ImageError("the picture is empty (0 bytes)")
    raise ImageError("the bytes are not a JPEG or PNG picture")


def _sniff_jpeg(data: bytes) -> ImageInfo:
    """Walk the marker segments up to the first scan (ITU-T T.81, annex B), then look for the end-of-image marker."""
    size: tuple[int, int] | None = None
    bits_per_block = 2
    at, last = 2, len(data) - 4
    for _ in range(MAX_SEGMENTS):
        if at > last:
            raise ImageError("the JPEG is cut short: it ends inside its header")
        prefix, marker, length = _SEGMENT(data, at)
        while prefix == marker == 0xFF and at < last:  # fill bytes may stand before any marker
            at += 1
            prefix, marker, length = _SEGMENT(data, at)
        if prefix != 0xFF:
            raise ImageError("the JPEG has a broken header: a marker is missing")
        if marker == _TEM:
            at += 2
            continue
        if marker in _MISPLACED:
            raise ImageError("the JPEG has a broken header: a marker stands where it must not")
        if length < 2:
            raise ImageError("the JPEG has a broken header: a segment is too short")
        if marker in _SOF:
            if marker not in _DECODABLE_SOF:
                raise ImageError(
                    "the JPEG is lossless, hierarchical or arithmetic-coded; only baseline and progressive are read"
                )
            if length < 8 or len(data) < at + 9:
                raise ImageError("the JPEG is cut short: it ends inside its header")
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (width, height)
            bits_per_block = 1 if marker == _PROGRESSIVE else 2
        if marker == _SOS:
            if size is None:
                raise ImageError("the JPEG has a broken header: the picture starts before its size is given")
            return _finish_jpeg(data, at, _checked("jpeg", *size), bits_per_block)
        at += 2 + length
    raise ImageError(f"the JPEG has more than {MAX_SEGMENTS} header segments")


def _finish_jpeg(data: bytes, start_of_scan: int, info: ImageInfo, bits_per_block: int) -> ImageInfo:
    """Decoders fill the missing rest of a cut JPEG with grey and call it a picture, so its end is looked for here.

    Inside a scan every 0xFF is followed by 0x00 or a restart marker (T.81, B.1.1.5): the pair FF D9 is the end.
    Cameras pad the file behind it, so it need not be the last pair. A thumbnail's own end lies before the first scan.
    A block of 8x8 pixels takes at least two Huffman codes (DC and end of block; one in a progressive DC scan), so a
    header that promises far more pixels than the scan can hold shows here too.
    """
    end = data.rfind(b"\xff\xd9", start_of_scan)
    if end < 0:
        raise ImageError("the JPEG is cut short: its end is missing")
    blocks = -(-info.width // 8) * -(-info.height // 8)
    if (end - start_of_scan) * 8 < blocks * bits_per_block:
        raise ImageError(f"the JPEG is cut short: it holds too few bytes for {info.width}x{info.height} pixels")
    scans = data.count(b"\xff\xda", start_of_scan, end)
    if scans > MAX_SCANS:
        raise ImageError(f"the JPEG has {scans} scans; {MAX_SCANS} are allowed")
    return info


def _sniff_png(data: bytes) -> ImageInfo:
    """Walk the chunks to IEND (PNG specification, 5.3); their checksums are the decoder's business."""
    if len(data) < 33:
        raise ImageError("the PNG is cut short: it ends inside its header")
    if data[8:16] != b"\x00\x00\x00\x0dIHDR":
        raise ImageError("the PNG has a broken header: it does not start with IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    info = _checked("png", width, height)
    at = 8
    for _ in range(MAX_SEGMENTS):
        if len(data) < at + 12:
            raise ImageError("the PNG is cut short: its end is missing")
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if length > len(data) - at - 12:
            raise ImageError("the PNG is cut short: its end is missing")
        if kind == b"acTL":
            raise ImageError("the PNG is animated; send one picture")
        if kind == b"IEND":
            return info
        at += 12 + length
    raise ImageError(f"the PNG has more than {MAX_SEGMENTS} chunks")


def _sniff_webp(data: bytes) -> ImageInfo:
    """The simple file format with one VP8 chunk (WebP container specification; RFC 6386, 9.1).

    No chunk of the lossless coding, of transparency or animation is read: none of them is in a mosaic.
    """
    if len(data) < _VP8_HEADER:
        raise ImageError("the WebP is cut short: it ends inside its header")
    if data[12:16] != b"VP8 ":
        raise ImageError("the WebP is lossless, animated or transparent; only a plain lossy one is read")
    whole, chunk = (int.from_bytes(data[at : at + 4], "little") for at in (4, 16))
    if whole + 8 != len(data) or 12 + chunk + chunk % 2 != whole:
        raise ImageError("the WebP is cut short, or something follows it")
    tag = int.from_bytes(data[20:23], "little")
    if tag & 1 or not tag >> 4 & 1 or data[23:26] != b"\x9d\x01\x2a":
        raise ImageError("the WebP has a broken header: it does not start with a key frame that is shown")
    if tag >> 5 > chunk - 10:
        raise ImageError("the WebP is cut short: its first part is missing")
    width, height = struct.unpack_from("<HH", data, 26)
    return _checked("webp", width & 0x3FFF, height & 0x3FFF)  # above: a wish how to scale it, which decoders ignore


def _checked(kind: Format, width: int, height: int) -> ImageInfo:
    if width == 0 or height == 0:
        raise ImageError(f"the {kind.upper()} says it is {width}x{height} pixels")
    return ImageInfo(kind, width, height)
