"""`POST /v1/answers`: a hard sample in one envelope, its answer as JSON."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cloudd.answers.limits import MAX_PICTURE
from cloudd.answers.looks import MAX_TEXT, check_features, check_mosaic
from cloudd.answers.pool import Busy, PictureRefused
from cloudd.answers.service import Answers, UnfitModel, UnknownModel
from cloudd.answers.uploads import NoRoom, Uploads
from cloudd.storage import StorageError
from cloudd.web import DEVICE_ID, HttpProblem, json_response, read_body
from edgekit.envelope import EnvelopeError, unseal
from edgekit.messages import HardSample, briefly, unpacked
from edgekit.packages import PackageError
from edgekit.regions.header import RegionError
from edgekit.services import check_pipeline
from edgekit.text import printable
from edgekit.toml import TomlError
from edgekit.vision.sniff import ImageError, sniff

_MAX_HEADER = 1 << 18  # of this envelope; a HardSample takes 500 bytes, and a mosaic's region from 100 to 900 more
_MAX_ERROR = 500
_MAX_BODY = MAX_PICTURE + _MAX_HEADER
_UPLOAD_S = 60.0
_UPLOAD_RETRY_S = 1.0
_STORAGE_RETRY_S = 15.0


def routes(answers: Answers, memory: int = 512 << 20) -> list[web.RouteDef]:
    """Routes to mount on the device API, behind the middleware that sets DEVICE_ID.

    At most `memory` bytes of bodies are in memory at a time; whoever finds no room gets 503 and comes back.
    """
    uploads = Uploads(memory)

    async def answer(request: web.Request) -> web.Response:
        device, arrived = request[DEVICE_ID], answers.now()
        size = _MAX_BODY if request.content_length is None else min(request.content_length, _MAX_BODY)
        try:
            answers.check(device)
            with uploads.room(device, size):
                sample, payload = _open(await read_body(request, _MAX_BODY, _UPLOAD_S))
                return json_response(briefly(sample, await answers.answer(device, sample, payload, arrived)))
        except (EnvelopeError, PackageError) as error:
            raise HttpProblem(400, str(error)) from None
        except UnknownModel as error:
            raise HttpProblem(404, str(error)) from None
        except (ImageError, PictureRefused, UnfitModel) as error:
            raise HttpProblem(422, str(error)) from None
        except NoRoom as error:
            raise HttpProblem(503, str(error), _UPLOAD_RETRY_S) from None
        except Busy as error:
            raise HttpProblem(503, str(error), error.retry_after_s) from None
        except (StorageError, OSError) as error:
            if isinstance(error, ConnectionError):
                raise
            raise HttpProblem(503, f"the sample cannot be kept at the moment: {error}", _STORAGE_RETRY_S) from None

    return [web.post("/v1/answers", answer)]


def _open(body: bytes) -> tuple[HardSample, bytes]:
    """The sample and its picture or features.

    Raises EnvelopeError, ImageError, PackageError, or HttpProblem for a header that cannot be used.
    """
    header, payload = unseal(body)
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
    try:
        sample, payload = unpacked(sample, payload)
    except RegionError as error:
        raise HttpProblem(400, f"the mosaic of the sample cannot be used: {str(error)[:_MAX_ERROR]}") from None
    if len(payload) > MAX_PICTURE:
        raise HttpProblem(413, f"the picture has {len(payload)} bytes; {MAX_PICTURE} are allowed")
    if sample.features is None:
        info = sniff(payload, webp=sample.mosaic is not None)
        try:
            check_mosaic(sample, (info.width, info.height))
        except RegionError as error:
            raise HttpProblem(400, f"the mosaic of the sample cannot be used: {str(error)[:_MAX_ERROR]}") from None
    else:
        try:
            check_features(sample)
        except RegionError as error:
            raise HttpProblem(400, f"the features of the sample cannot be used: {error}") from None
        if not payload:
            raise HttpProblem(422, "the features are empty")
    serial = printable(sample.serial[:MAX_TEXT])  # as a scanner read it
    return msgspec.structs.replace(sample, serial=serial), payload
