"""One route of the worker: a picture is enrolled in the gallery of an identity service, by the model that serves there.

Only the supervisor knows the token that it needs; people ask the supervisor (`edged gallery`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from functools import partial

from edged.collab.sealing import SealError
from edged.gallery.live import Galleries
from edged.gallery.records import GalleryError, Taken
from edged.serve.engine import Engine
from edged.serve.http import HttpError, Request, Response, json_response
from edged.serve.inspecting import Identifying
from edged.serve.management import Management
from edged.serve.pictures import TOKEN_HEADER
from edged.serve.service_runtime import ServiceFailed, ServiceRuntime
from edged.store import StoreError

WAIT_S = 20.0
"""Longest wait for the model: the line comes first."""
MAX_BY = 128


class Enrolment:
    """Its handler."""

    def __init__(
        self,
        services: Mapping[str, ServiceRuntime],
        engine: Engine,
        galleries: Galleries | None,
        management: Management | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`galleries` None: no service recognises anybody. `management` knows the token."""
        self._services, self._engine = services, engine
        self._galleries, self._management, self._clock = galleries, management, clock

    async def enrol(self, request: Request, name: str) -> Response:
        """`POST /v1/services/NAME/gallery?identity=WHO&by=WHOM&force=1`, the picture as the body.

        Without `identity` the picture shows a stranger. Raises HttpError, and what the engine raises.
        """
        if self._management is None or not self._management.allowed(request.headers.get(TOKEN_HEADER, "")):
            raise HttpError(403, "pictures are enrolled with: edged gallery enrol NAME; here it needs a token")
        service = self._services.get(name)
        if service is None:
            raise HttpError(404, f"there is no service '{name[:64]}'")
        if service.failure:
            raise ServiceFailed(f"{name} cannot run: {service.failure}")
        if self._galleries is None or name not in self._galleries or not isinstance(service.looks, Identifying):
            raise HttpError(409, f'{name} has no gallery; a service with task = "embedding" has one')
        if not request.body:
            raise HttpError(400, "the request has no body; send a JPEG or PNG")
        query = request.query
        by = query.get("by", "")
        if len(by) > MAX_BY or not by.isprintable():
            raise HttpError(400, f"by must be printable text of at most {MAX_BY} characters")
        work = partial(service.looks.embedder.embed, bytes(request.body))
        outcome = await self._engine.submit(name, "audit", self._clock() + WAIT_S, work)
        embedding, _ = outcome.value
        force = query.get("force") == "1"
        try:
            reply = await self._galleries.enrol(name, query.get("identity", ""), embedding, by, force)
        except Taken as error:
            raise HttpError(409, str(error)) from None
        except GalleryError as error:
            raise HttpError(400, str(error)) from None
        except (StoreError, SealError, sqlite3.Error, OSError) as error:
            raise HttpError(507, f"the picture cannot be enrolled: {error}") from None
        return json_response(reply)
