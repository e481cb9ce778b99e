"""The worker's loop: one question at a time, from the socket to the model and back."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from pathlib import Path

import msgspec

from cloudd.answers.judging import Model, judge, load
from cloudd.answers.limits import KEEP_MODELS, MAX_PICTURE, THUMBNAIL_SIDE
from edgekit.envelope import FrameReader, seal
from edgekit.faults import crash_point
from edgekit.messages import AskModel, ModelAnswer, Verdict
from edgekit.packages import PackageError, open_package
from edgekit.regions.header import RegionError
from edgekit.runtimes import ModelError, SessionOptions
from edgekit.vision.images import ImageError, decode, thumbnail

_MAX_ERROR = 500


def serve(control: socket.socket, threads: int) -> None:
    """Answer AskModel frames until the other end closes. An AskModel without a picture only loads the model."""
    models = _Models(threads)
    reader = FrameReader(MAX_PICTURE)
    while data := control.recv(1 << 18):
        for header, payload in reader.feed(data):
            ask = msgspec.json.decode(header, type=AskModel)
            answer, picture = _answer(models, ask, payload)
            control.sendall(seal(answer, picture))


class _Models:
    """The models used last, loaded and proved on their own samples."""

    def __init__(self, threads: int) -> None:
        self._options = SessionOptions(threads=threads)
        self._loaded: OrderedDict[str, Model] = OrderedDict()

    def get(self, directory: str) -> Model:
        """Raises PackageError or ModelError."""
        model = self._loaded.get(directory)
        if model is None:
            while len(self._loaded) >= KEEP_MODELS:
                self._loaded.popitem(last=False)[1].close()
            model = load(open_package(Path(directory)), self._options)
            self._loaded[directory] = model
        self._loaded.move_to_end(directory)
        return model


def _answer(models: _Models, ask: AskModel, picture: bytes) -> tuple[ModelAnswer, bytes]:
    started = time.perf_counter()
    try:
        model = models.get(ask.directory)
        if not picture:
            return ModelAnswer(ticket=ask.ticket), b""
        crash_point("answer.worker")
        said = judge(model, ask, picture)
        compute_ms = (time.perf_counter() - started) * 1e3
        small = thumbnail(decode(picture, "rgb", reduce_to=(THUMBNAIL_SIDE, THUMBNAIL_SIDE)), THUMBNAIL_SIDE)
        answer = ModelAnswer(
            ticket=ask.ticket,
            verdict=Verdict(label=said.label, score=said.score, margin=said.margin, model=ask.model),
            compute_ms=compute_ms,
            mosaic=said.mosaic,
            differing=list(said.differing),
        )
        return answer, small
    except (ImageError, RegionError) as error:
        return ModelAnswer(ticket=ask.ticket, error=str(error)[:_MAX_ERROR], fault="picture"), b""
    except (PackageError, ModelError, OSError) as error:
        return ModelAnswer(ticket=ask.ticket, error=str(error)[:_MAX_ERROR], fault="model"), b""
    except MemoryError:
        text = "the picture and the model together need more memory than one answer may use"
        return ModelAnswer(ticket=ask.ticket, error=text, fault="picture"), b""
