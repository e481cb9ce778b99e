"""`POST /v1/answers`: a hard sample in one envelope, its answer as JSON."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from cloudd.answers.limits import MAX_PICTURE
from cloudd.answers.looks import MAX_TEXT, check_mosaic
from cloudd.answers.pool import Busy, PictureRefused
from cloudd.answers.service import Answers, UnknownModel
from cloudd.storage import StorageError
from cloudd.web import DEVICE_ID, HttpProblem, json_response, read_body
from edgekit.envelope import EnvelopeError, unseal
from edgekit.messages import HardSample
from edgekit.packages import PackageError
from edgekit.regions.header import RegionError
from edgekit.services import check_pipeline
from edgekit.text import printable
from edgekit.toml import TomlError
from edgekit.vision.sniff import ImageError, sniff

_MAX_HEADER = 1 << 18  # of this envelope; a HardSample takes 500 bytes, and a mosaic's region from 100 to 900 more
_MAX_ERROR = 500
_UPLOAD_S = 60.0
_STORAGE_RETRY_S = 15.0


def routes(answers: Answers, uploads: int = 32) -> list[web.RouteDef]:
    """Routes to mount on the device API, behind the middleware that sets DEVICE_ID.

    At most `uploads` bodies (16 MiB each) are in memory at a time; further devices get 503 and come back.
    """
    room = asyncio.Semaphore(uploads)

    async def answer(request: web.Request) -> web.Response:
        if room.locked():
            raise HttpProblem(503, "too many samples are being uploaded at the moment", 1.0)
        async with room:
            try:
                answers.check()
                sample, picture = _open(await read_body(request, MAX_PICTURE + _MAX_HEADER, _UPLOAD_S))
                return json_response(await answers.answer(request[DEVICE_ID], sample, picture))
            except (EnvelopeError, PackageError) as error:
                raise HttpProblem(400, str(error)) from None
            except UnknownModel as error:
                raise HttpProblem(404, str(error)) from None
            except (ImageError, PictureRefused) as error:
                raise HttpProblem(422, str(error)) from None
            except Busy as error:
                raise HttpProblem(503, str(error), error.retry_after_s) from None
            except (StorageError, OSError) as error:
                if isinstance(error, ConnectionError):
                    raise
                raise HttpProblem(503, f"the sample cannot be kept at the moment: {error}", _STORAGE_RETRY_S) from None

    return [web.post("/v1/answers", answer)]


def _open(body: bytes) -> tuple[HardSample, bytes]:
    """The sample and its picture. Raises EnvelopeError, ImageError, or HttpProblem for a header that cannot be used."""
    header, picture = unseal(body)
    try:
        sample = msgspec.json.decode(header, type=HardSample)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpProblem(400, f"the header of the sample cannot be used: {error}") from None
    texts = (sample.sample_id, sample.service, sample.answer_model, sample.edge.label, sample.edge.model)
    if not all(0 < len(text) <= MAX_TEXT and text.isprintable() for text in texts):
        raise HttpProblem(400, f"sample_id, service, models and labels have 1 to {MAX_TEXT} printable characters")
    if sample.pipeline is not None:
        try:
            check_pipeline(sample.pipeline)
        except TomlError as error:
            raise HttpProblem(400, f"the pipeline of the sample cannot be used: {error}") from None
    if len(picture) > MAX_PICTURE:
        raise HttpProblem(413, f"the picture has {len(picture)} bytes; {MAX_PICTURE} are allowed")
    info = sniff(picture)
    try:
        check_mosaic(sample, (info.width, info.height))
    except RegionError as error:
        raise HttpProblem(400, f"the mosaic of the sample cannot be used: {str(error)[:_MAX_ERROR]}") from None
    serial = printable(sample.serial[:MAX_TEXT])  # as a scanner read it
    return msgspec.structs.replace(sample, serial=serial), picture
