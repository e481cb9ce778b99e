"""Cuts the doubtful regions out of pictures in a thread of its own, with a bound on what waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from msgspec.structs import replace

from edgekit.messages import HardSample
from edgekit.regions.header import MAX_MOSAIC, MosaicHeader, Region
from edgekit.regions.mosaic import compose, whole
from edgekit.vision.images import decode

MAX_PENDING = 64 << 20
"""Bytes of pictures that may wait in memory to be cut up."""


class MosaicError(RuntimeError):
    """The regions of a frame cannot be cut out (now); the message says why."""


@dataclass(frozen=True)
class Wanted:
    """What is to be cut out of a picture, and how it is packed."""

    questions: Callable[[], Sequence[Region]]  # called in the thread; may raise RegionError
    quality: int  # of the JPEG
    limit: int  # pixels of the mosaic's longer side
    longest: int  # pixels of a cut-out's longer side; a longer one is scaled down
    frame: bool = False  # the picture itself is sent instead if its mosaic would take as many bytes
    webp: bool = False  # cloudd takes a grey mosaic as WebP


@dataclass(frozen=True)
class Packed:
    """A mosaic, ready to be sent."""

    header: MosaicHeader
    picture: bytes  # JPEG or WebP, or the frame as it came
    took_ms: float = 0.0  # to decode the frame, cut out and encode

    def of(self, header: HardSample) -> HardSample:
        """The sample's header with this mosaic."""
        return replace(header, mosaic=self.header)


class Mosaics:
    """Belongs to one event loop. One thread: cutting up must not take the processors from the models."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edged-mosaic")
        self._pending = 0

    def pack(self, picture: bytes, wanted: Wanted) -> asyncio.Task[Packed]:
        """Begin to make the mosaic of a JPEG or PNG. The task goes on when nobody waits; it raises MosaicError."""
        return asyncio.create_task(self._pack(picture, wanted))

    def close(self) -> None:
        """Nothing is being packed any more."""
        self._executor.shutdown(wait=False)

    async def _pack(self, picture: bytes, wanted: Wanted) -> Packed:
        if self._pending + len(picture) > MAX_PENDING:
            raise MosaicError("too many frames wait for their regions to be cut out")
        self._pending += len(picture)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, _packed, picture, wanted)
        except Exception as error:  # whatever a decoder raises: the local answers stand without it
            raise MosaicError(f"the regions cannot be cut out ({error})") from error
        finally:
            self._pending -= len(picture)


def _packed(picture: bytes, wanted: Wanted) -> Packed:
    started = time.perf_counter()
    regions = wanted.questions()
    frame = decode(picture, "bgr")
    mosaic = compose(frame, regions, wanted.limit, wanted.longest)
    header, packed = mosaic.header, mosaic.encode(wanted.quality, "bgr", webp=wanted.webp)
    if wanted.frame and len(packed) >= len(picture) and max(frame.shape) <= MAX_MOSAIC:
        header, packed = whole((frame.shape[1], frame.shape[0]), regions), picture
    return Packed(header, packed, (time.perf_counter() - started) * 1e3)
