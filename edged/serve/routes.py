"""Which path and method leads to which handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from edged.serve.http import HttpError, Request, Response

Answer = Response | Awaitable[Response] | None
RouteHandler = Callable[..., Answer]
"""Called with the request and the path's variable parts, in their order."""

_REMEMBERED = 512
"""Paths whose way is kept: a client asks the same few again and again."""


class Router:
    """Routes like `("POST", "/v2/models/{name}/infer", handler)`. HEAD goes where GET goes."""

    def __init__(self, routes: Iterable[tuple[str, str, RouteHandler]]) -> None:
        """The first of two patterns that fit a path wins."""
        self._patterns: dict[tuple[str, ...], dict[str, RouteHandler]] = {}
        for method, pattern, handler in routes:
            key = tuple("{}" if part.startswith("{") else part for part in pattern.split("/"))
            methods = self._patterns.setdefault(key, {})
            methods[method] = handler
            if method == "GET":
                methods["HEAD"] = handler
        self._known: dict[str, tuple[dict[str, RouteHandler], list[str]]] = {}

    def resolve(self, request: Request) -> tuple[RouteHandler, list[str]]:
        """Handler and variable parts. Raises HttpError 404, or 405 that names what is allowed."""
        path = request.path
        found = self._known.get(path)
        if found is None:
            found = self._find(path)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[path] = found
        methods, values = found
        handler = methods.get(request.method)
        if handler is None:
            raise HttpError(405, "Method Not Allowed", headers={"Allow": ", ".join(sorted(methods))})
        return handler, values

    def _find(self, path: str) -> tuple[dict[str, RouteHandler], list[str]]:
        parts = path.split("/")
        for key, methods in self._patterns.items():
            if len(key) == len(parts) and all(
                want == part or (want == "{}" and part) for want, part in zip(key, parts, strict=True)
            ):
                return methods, [part for want, part in zip(key, parts, strict=True) if want == "{}"]
        raise HttpError(404, "Not Found")
