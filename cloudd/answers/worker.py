"""The worker's loop: one question at a time, from the socket to the model and back."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from pathlib import Path

import msgspec

from cloudd.answers.judging import Loaded, judge, load
from cloudd.answers.limits import KEEP_MODELS, MAX_PICTURE, THUMBNAIL_SIDE
from cloudd.answers.tails import Tail
from edgekit.envelope import FrameReader, seal
from edgekit.faults import crash_point
from edgekit.messages import AskModel, ModelAnswer, Verdict
from edgekit.packages import PackageError, open_package
from edgekit.regions.header import RegionError
from edgekit.runtimes import ModelError, SessionOptions
from edgekit.splitting.features import FeatureError
from edgekit.vision.images import ImageError, decode, thumbnail

_MAX_ERROR = 500


def serve(control: socket.socket, threads: int) -> None:
    """Answer AskModel frames until the other end closes. An AskModel without payload only loads the model."""
    models = _Models(threads)
    reader = FrameReader(MAX_PICTURE)
    while data := control.recv(1 << 18):
        for header, payload in reader.feed(data):
            ask = msgspec.json.decode(header, type=AskModel)
            answer, small = _answer(models, ask, payload)
            control.sendall(seal(answer, small))


class _Models:
    """The models used last, loaded and proved."""

    def __init__(self, threads: int) -> None:
        self._options = SessionOptions(threads=threads)
        self._loaded: OrderedDict[str, dict[str, Loaded]] = OrderedDict()  # by directory and cut

    def get(self, directory: str, cut: str) -> Loaded:
        """Raises PackageError or ModelError."""
        model = self._loaded.get(directory, {}).get(cut)
        if model is None:
            while directory not in self._loaded and len(self._loaded) >= KEEP_MODELS:
                for old in self._loaded.popitem(last=False)[1].values():
                    old.close()
            model = load(open_package(Path(directory)), self._options, cut)
            self._loaded.setdefault(directory, {})[cut] = model
        self._loaded.move_to_end(directory)
        return model


def _answer(models: _Models, ask: AskModel, payload: bytes) -> tuple[ModelAnswer, bytes]:
    started = time.perf_counter()
    try:
        model = models.get(ask.directory, ask.features.cut if ask.features is not None else "")
        if not payload:
            return ModelAnswer(ticket=ask.ticket), b""
        crash_point("answer.worker")
        said = judge(model, ask, payload)
        compute_ms = (time.perf_counter() - started) * 1e3
        name, small = (
            (model.of, b"") if isinstance(model, Tail) else (ask.model, _thumbnail(payload, ask.mosaic is not None))
        )
        answer = ModelAnswer(
            ticket=ask.ticket,
            verdict=Verdict(label=said.label, score=said.score, margin=said.margin, model=name),
            compute_ms=compute_ms,
            mosaic=said.mosaic,
            differing=list(said.differing),
        )
        return answer, small
    except (ImageError, RegionError, FeatureError) as error:
        return ModelAnswer(ticket=ask.ticket, error=str(error)[:_MAX_ERROR], fault="picture"), b""
    except (PackageError, ModelError, OSError) as error:
        return ModelAnswer(ticket=ask.ticket, error=str(error)[:_MAX_ERROR], fault="model"), b""
    except MemoryError:
        text = "the picture and the model together need more memory than one answer may use"
        return ModelAnswer(ticket=ask.ticket, error=text, fault="picture"), b""


def _thumbnail(picture: bytes, webp: bool) -> bytes:
    small = decode(picture, "rgb", reduce_to=(THUMBNAIL_SIDE, THUMBNAIL_SIDE), webp=webp)
    return thumbnail(small, THUMBNAIL_SIDE)
