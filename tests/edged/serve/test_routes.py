"""The router: patterns, methods, and no path that a client makes up is remembered."""

from __future__ import annotations

import pytest

from edged.serve.http import HttpError, Request, Response
from edged.serve.routes import Router


def _answer(request: Request, *values: str) -> Response:
    return Response(200, "|".join(values).encode())


def _other(request: Request, *values: str) -> Response:
    return Response(201)


ROUTER = Router(
    (
        ("GET", "/v2", _answer),
        ("GET", "/v2/models/stats", _other),
        ("GET", "/v2/models/{name}", _answer),
        ("POST", "/v2/models/{name}/versions/{version}/infer", _answer),
        ("GET", "/v2/logging", _answer),
        ("POST", "/v2/logging", _other),
    )
)


def ask(method: str, path: str) -> tuple[object, list[str]]:
    return ROUTER.resolve(Request(method, path, path, "", {}))


def test_routes_lead_to_their_handlers() -> None:
    for _ in range(2):
        assert ask("GET", "/v2") == (_answer, [])
        assert ask("HEAD", "/v2/models/a") == (_answer, ["a"])
        assert ask("GET", "/v2/models/stats") == (_other, [])  # the first pattern that fits
        assert ask("POST", "/v2/models/a/versions/1/infer") == (_answer, ["a", "1"])
        assert ask("POST", "/v2/logging") == (_other, [])


@pytest.mark.parametrize(
    "path", ["/", "", "*", "/v2/", "/v2/models/", "/v2/models//versions/1/infer", "/V2", "//v2", "/v1"]
)
def test_other_paths_are_not_found(path: str) -> None:
    with pytest.raises(HttpError) as caught:
        ask("GET", path)
    assert caught.value.status == 404


def test_other_methods_are_told_what_is_allowed() -> None:
    for method, path, allowed in (
        ("DELETE", "/v2", "GET, HEAD"),
        ("GET", "/v2/models/a/versions/1/infer", "POST"),
        ("PUT", "/v2/logging", "GET, HEAD, POST"),
    ):
        with pytest.raises(HttpError) as caught:
            ask(method, path)
        assert (caught.value.status, caught.value.headers) == (405, {"Allow": allowed})


def test_made_up_names_do_not_fill_the_memory() -> None:
    for number in range(5000):
        ask("GET", f"/v2/models/{number}")
    assert len(ROUTER._known) <= 512
