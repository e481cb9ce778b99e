"""The protocol's routes, and `/v1/models/NAME/image` beside them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from edged.serve.engine import Engine
from edged.serve.http import HttpError, Request, Response, json_response
from edged.serve.management import Management, ManagementError
from edged.serve.oip import metadata
from edged.serve.oip.inference import Fault, Inference, PictureWork
from edged.serve.oip.models import ModelTable
from edged.serve.routes import Answer, RouteHandler
from edgekit.messages import ModelStatistics

MANAGEMENT_HEADER = "edged-management"
MAX_ORDER = 64 << 10
"""Bytes of the body of a request to the model repository; an upload of a model is larger."""

_VERSIONED = "/versions/{version}"

S = TypeVar("S", bound=msgspec.Struct)


class _Order(msgspec.Struct):
    parameters: dict[str, Any] = {}


class _Which(msgspec.Struct):
    ready: bool = False


class ProtocolApi:
    """Handlers for requests of the Open Inference Protocol. `routes` says which is whose."""

    def __init__(
        self,
        models: ModelTable,
        engine: Engine,
        fault: Fault,
        *,
        packages: Callable[[], Iterable[str]] = tuple,
        failures: Mapping[str, str] | None = None,
        management: Management | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`packages` gives references of what is installed now.

        `failures` says why models that should be served are not: name@version -> a sentence.
        """
        self._models, self._engine = models, engine
        self._packages, self._failures = packages, dict(failures or {})
        self._management = management
        self._inference = Inference(engine, fault, wall)

    @property
    def routes(self) -> list[tuple[str, str, RouteHandler]]:
        """For the Router."""
        model = "/v2/models/{name}"
        both: list[tuple[str, str, RouteHandler]] = [
            ("POST", "/infer", self._infer),
            ("GET", "", self._metadata),
            ("GET", "/ready", self._ready),
            ("GET", "/config", self._config),
            ("GET", "/stats", self._stats),
        ]
        shared: list[tuple[str, str, RouteHandler]] = [
            (method, f"/v2/{kind}sharedmemory{region}/{action}", handler)
            for kind in ("system", "cuda")
            for region in ("", "/region/{name}")
            for method, action, handler in (
                ("GET", "status", self._regions),
                ("POST", "register", self._unsupported),
                ("POST", "unregister", self._empty),
            )
        ]
        return [
            ("GET", "/v2", self._server),
            ("GET", "/v2/models/stats", self._stats),
            *((method, f"{model}{end}", handler) for method, end, handler in both),
            *((method, f"{model}{_VERSIONED}{end}", handler) for method, end, handler in both),
            ("POST", "/v1/models/{name}/image", self._image),
            ("POST", "/v2/repository/index", self._index),
            ("POST", "/v2/repository/models/{name}/load", self._load),
            ("POST", "/v2/repository/models/{name}/unload", self._unload),
            *shared,
            ("GET", "/v2/trace/setting", self._trace),
            ("POST", "/v2/trace/setting", self._unsupported),
            ("GET", f"{model}/trace/setting", self._trace),
            ("POST", f"{model}/trace/setting", self._unsupported),
            ("GET", "/v2/logging", self._logging),
            ("POST", "/v2/logging", self._unsupported),
        ]

    def statistics(self) -> list[ModelStatistics]:
        """What every model did, for the supervisor."""
        return [
            model.counters.report(model.name, model.version, self._engine.waiting(model.lane)) for model in self._models
        ]

    # --- inference --------------------------------------------------------------------------------------------------

    def _infer(self, request: Request, name: str, version: str | None = None) -> Answer:
        return self._inference.infer(request, self._models.require(name, version))

    def _image(self, request: Request, name: str) -> Answer:
        model = self._models.require(name, None)
        if request.content_type.startswith(("multipart/", "application/json")):
            raise HttpError(
                415, "send the picture itself as the body (image/jpeg or image/png), without a form around it"
            )
        if not request.body:
            raise HttpError(400, "the request has no body; send a JPEG or PNG")
        if not model.takes_pictures:
            raise HttpError(
                400, f"{model.package.ref} takes no pictures; send tensors to /v2/models/{model.name}/infer"
            )
        work = PictureWork(model, bytes(request.body))
        return self._inference.run(request, model, work, time.perf_counter_ns())

    # --- what there is ----------------------------------------------------------------------------------------------

    def _server(self, request: Request) -> Response:
        return json_response(metadata.server())

    def _metadata(self, request: Request, name: str, version: str | None = None) -> Response:
        return json_response(metadata.model(self._models.require(name, version), self._models.versions(name)))

    def _ready(self, request: Request, name: str, version: str | None = None) -> Response:
        if self._models.find(name, version) is None:
            raise HttpError(400, "Model version not ready")
        return Response()

    def _config(self, request: Request, name: str, version: str | None = None) -> Response:
        return json_response(metadata.config(self._models.require(name, version)))

    def _stats(self, request: Request, name: str | None = None, version: str | None = None) -> Response:
        if name is None:
            return json_response(metadata.statistics(self._models))
        if version is None:
            self._models.require(name, None)
            return json_response(metadata.statistics(self._models.versions(name)))
        return json_response(metadata.statistics([self._models.require(name, version)]))

    # --- repository -------------------------------------------------------------------------------------------------

    def _index(self, request: Request) -> Response:
        which = _read(request, _Which)
        return json_response(metadata.index(self._models, self._packages(), self._failures, which.ready))

    def _load(self, request: Request, name: str) -> Awaitable[Response]:
        self._check_order(request)
        return self._ask(name, wanted=True)

    def _unload(self, request: Request, name: str) -> Awaitable[Response]:
        self._check_order(request)
        return self._ask(name, wanted=False)

    def _check_order(self, request: Request) -> None:
        management = self._management
        if management is None or not management.allowed(request.headers.get(MANAGEMENT_HEADER, "")):
            raise HttpError(
                403,
                "This API is restricted, expecting header 'Edged-Management' with the content of the file "
                "management-token in edged's state directory",
            )
        uploads = HttpError(501, "models come as installed packages; no configuration and no file can be sent along")
        if len(request.body) > MAX_ORDER:
            raise uploads
        if any(key == "config" or key.startswith("file:") for key in _read(request, _Order).parameters):
            raise uploads

    async def _ask(self, name: str, wanted: bool) -> Response:
        assert self._management is not None
        try:
            await self._management.ask(name, wanted)
        except ManagementError as error:
            raise HttpError(400, f"failed to {'load' if wanted else 'unload'} '{name[:100]}', {error}") from None
        done = _empty()
        done.close = True  # the client's next request must reach the worker that has the change
        return done

    # --- what Triton has and edged needs not -------------------------------------------------------------------------

    def _regions(self, request: Request, name: str = "") -> Response:
        return json_response([])

    def _trace(self, request: Request, name: str = "") -> Response:
        return json_response(metadata.TRACE_OFF)

    def _logging(self, request: Request) -> Response:
        return json_response(metadata.LOGGING)

    def _unsupported(self, request: Request, name: str = "") -> Response:
        raise HttpError(501, f"{request.path[:100]} is not supported by edged")

    def _empty(self, request: Request, name: str = "") -> Response:
        return _empty()


def _empty() -> Response:
    return Response(200, b"", "application/json")


def _read(request: Request, kind: type[S]) -> S:
    """The JSON body; an empty one stands for the defaults. Raises HttpError 400."""
    if not request.body:
        return kind()
    if len(request.body) > MAX_ORDER:
        raise HttpError(413, f"the request body exceeds {MAX_ORDER} bytes")
    try:
        return msgspec.json.decode(request.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"failed to parse the request JSON buffer: {error}") from None
