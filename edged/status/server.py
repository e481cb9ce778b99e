"""The page port: the status page, its JSON, the metrics, and the few writes that a page may do.

    GET  /              the page            GET  /state.json, /metrics
    POST /login         form fields `token`, `next`         POST /logout
    GET  /preview/NAME.jpg  the newest picture of a service, with its decision drawn on it
    POST /api/services/NAME/recalibrate     POST /api/spool/purge (field or JSON key `service`)
    POST /api/learning/NAME/start, go, stop, revert     POST /api/federation/JOB/agree, refuse
    /review and what is below it: see edged.status.review_routes

Reads are open on loopback, but for the review page. A page that listens elsewhere shows nothing without the token.
Writes always need the token, as `Authorization: Bearer` or as the cookie of a login, and must not come from another
origin. See edgekit.webguard.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
import psutil
from aiohttp import web

from edged.api import ApiError, Done, Problem, PurgeBody
from edged.config import Address
from edged.federation.front import FederationFront
from edged.learning.door import LearningDoor
from edged.requests import reply
from edged.samples import metrics as sample_metrics
from edged.samples.desk import SampleDesk
from edged.status import metrics, review_routes
from edged.status.history import Sample
from edged.status.review import Classes, Review
from edged.status.state import StatusState
from edgekit.webguard import LOOPBACK_HOSTS, PageGuard, Refusal, security_headers

log = logging.getLogger("edged.page")

MAX_BODY = 16_384
"""Bytes. No write of the page carries more than a service name; a label has a bound of its own."""
COOKIE = "edged-page"
_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>edged</title><link rel="icon" href="data:,">
<h1>edged</h1><p>This page needs the page token: the file <code>page-token</code> in the daemon's state directory.</p>
<form method="post" action="/login"><input type="hidden" name="next" value="NEXT">
<label>Token <input type="password" name="token" autocomplete="current-password">
</label> <button>Log in</button></form></html>"""
_PAGES = ("/", review_routes.PATH)
"""Where a login may come from, and leads back to."""

_OPERATOR = "the operator at the page"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Backend(Protocol):
    """What the page needs of the supervisor."""

    @property
    def samples(self) -> SampleDesk: ...
    @property
    def learning(self) -> LearningDoor: ...
    @property
    def federation(self) -> FederationFront: ...
    async def classes(self) -> Mapping[str, Classes]: ...
    def status(self) -> StatusState: ...
    def history(self) -> tuple[Mapping[str, Sequence[Sample]], float]: ...
    async def preview(self, name: str) -> bytes: ...
    def recalibrate(self, name: str) -> Done: ...
    def purge_spool(self, service: str) -> Done: ...


def is_loopback(address: Address) -> bool:
    """True if only this machine can reach the address."""
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


def allowed_hosts(address: Address, configured: Iterable[str]) -> list[str]:
    """Names the page may be reached under: loopback, the address it listens on, and what the configuration adds.

    For a page on every address these are the machine's own addresses: a number in the Host header is no name that a
    hostile DNS server could have turned towards us.
    """
    own = [address.host]
    if address.host in ("0.0.0.0", "::"):  # noqa: S104
        own = [entry.address.partition("%")[0] for found in psutil.net_if_addrs().values() for entry in found]
    return [*LOOPBACK_HOSTS, *own, *configured]


def build(backend: Backend, token: str, address: Address, hosts: Iterable[str]) -> web.Application:
    """The application behind the page port. `token` is the page token, `address` where the port listens."""
    # One cookie name a port: browsers share cookies between all ports of a host.
    guard = PageGuard(token, f"{COOKIE}-{address.port}", allowed_hosts(address, hosts))
    review = Review(backend.samples, backend.classes)
    page = _Page(backend, guard, review, open_reads=is_loopback(address))
    app = web.Application(client_max_size=MAX_BODY, middlewares=[page.protect])
    app.on_response_prepare.append(no_server_header)
    app.router.add_get("/", page.show)
    app.router.add_get("/state.json", page.state)
    app.router.add_get("/metrics", page.metrics)
    app.router.add_get("/preview/{name}.jpg", page.preview)
    app.router.add_post("/login", page.login)
    app.router.add_post("/logout", page.logout)
    app.router.add_post("/api/services/{name}/recalibrate", page.recalibrate)
    app.router.add_post("/api/spool/purge", page.purge)
    app.router.add_post("/api/learning/{name}/start", page.learn)
    app.router.add_post("/api/learning/{name}/go", page.learning_go)
    app.router.add_post("/api/learning/{name}/stop", page.learning_stop)
    app.router.add_post("/api/learning/{name}/revert", page.learning_revert)
    app.router.add_post("/api/federation/{job:[0-9a-f]{32}}/agree", page.federation_agree)
    app.router.add_post("/api/federation/{job:[0-9a-f]{32}}/refuse", page.federation_refuse)
    review_routes.add(app, review, page.device)
    return app


class _Page:
    def __init__(self, backend: Backend, guard: PageGuard, review: Review, open_reads: bool) -> None:
        self._backend, self._guard, self._review, self._open_reads = backend, guard, review, open_reads

    @web.middleware
    async def protect(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request passes here first; every reply leaves with the security headers."""
        peer = request.remote or "unknown"
        refusal = (
            self._guard.check_source(request.method, request.headers)
            if request.path == "/login"
            else self._guard.check(request.method, request.headers, peer)
        )
        closed = not self._open_reads or review_routes.is_review(request.path)
        if refusal is None and closed and request.path != "/login":
            refusal = self._check_read(request, peer)
        response: web.StreamResponse
        if refusal is not None:
            response = self._refuse(request, refusal)
        else:
            try:
                response = await handler(request)
            except ApiError as error:
                response = _problem(error.status, str(error))
            except web.HTTPException as error:
                response = _problem(error.status, _sentence(error, request)) if error.status >= 400 else error
            except Exception:
                log.exception("The page could not answer %s %s.", request.method, request.path)
                response = _problem(500, "the page has an internal error; the daemon's log has the details")
        for name, value in security_headers().items():
            response.headers.setdefault(name, value)
        return response

    def _check_read(self, request: web.Request, peer: str) -> Refusal | None:
        """Away from loopback reading needs the token too, and so do the samples everywhere."""
        if self._guard.logged_in(request.headers):
            return None
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._guard.login(given.strip(), peer)
        return Refusal(401, "this page needs the page token: log in, or send it as 'Authorization: Bearer TOKEN'")

    def _refuse(self, request: web.Request, refusal: Refusal) -> web.Response:
        if refusal.status == 401 and request.method == "GET" and request.path in _PAGES:
            return web.Response(status=401, text=_LOGIN.replace("NEXT", request.path), content_type="text/html")
        response = _problem(refusal.status, refusal.text)
        if refusal.retry_after_s:
            response.headers["Retry-After"] = str(max(1, round(refusal.retry_after_s)))
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def show(self, request: web.Request) -> web.Response:
        from edged.status import page  # nobody may ever look, and the supervisor's memory is counted

        state = self._backend.status()
        waiting = await self._review.waiting(service.name for service in state.services)
        html = page.render(state, self._guard.logged_in(request.headers), *self._backend.history(), waiting)
        response = web.Response(text=html, content_type="text/html")
        response.headers.update(security_headers(page.STYLES, page.SCRIPTS))
        return response

    async def state(self, request: web.Request) -> web.Response:
        return reply(self._backend.status())

    async def metrics(self, request: web.Request) -> web.Response:
        text = metrics.render(self._backend.status())
        with contextlib.suppress(ApiError):  # the health list says why there are none
            text += sample_metrics.render(await self._backend.samples.overview())
        return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    def device(self) -> tuple[str, str]:
        """Its name and its id."""
        state = self._backend.status()
        return state.name, state.device_id

    async def preview(self, request: web.Request) -> web.Response:
        picture = await self._backend.preview(request.match_info["name"])
        return web.Response(body=picture, content_type="image/jpeg")

    async def login(self, request: web.Request) -> web.Response:
        form = await request.post()
        refusal = self._guard.login(str(form.get("token", "")), request.remote or "unknown")
        if refusal is not None:
            return self._refuse(request, refusal)
        wanted = str(form.get("next", ""))
        cookie = self._guard.session_cookie(request.secure)
        return web.Response(status=303, headers={"Location": wanted if wanted in _PAGES else "/", "Set-Cookie": cookie})

    async def logout(self, request: web.Request) -> web.Response:
        return web.Response(status=303, headers={"Location": "/", "Set-Cookie": self._guard.logout_cookie()})

    async def recalibrate(self, request: web.Request) -> web.Response:
        return _done(request, self._backend.recalibrate(request.match_info["name"]))

    async def learn(self, request: web.Request) -> web.Response:
        return _done(request, await self._backend.learning.start(request.match_info["name"], None, _OPERATOR))

    async def learning_go(self, request: web.Request) -> web.Response:
        return _done(request, await self._backend.learning.go(request.match_info["name"], _OPERATOR))

    async def learning_stop(self, request: web.Request) -> web.Response:
        return _done(request, await self._backend.learning.stop(request.match_info["name"], _OPERATOR))

    async def learning_revert(self, request: web.Request) -> web.Response:
        return _done(request, await self._backend.learning.revert(request.match_info["name"], _OPERATOR))

    async def federation_agree(self, request: web.Request) -> web.Response:
        return _done(request, await self._backend.federation.desk.agree(request.match_info["job"]))

    async def federation_refuse(self, request: web.Request) -> web.Response:
        done = await self._backend.federation.desk.refuse(request.match_info["job"], f"by {_OPERATOR}")
        return _done(request, done)

    async def purge(self, request: web.Request) -> web.Response:
        if _is_form(request):
            service = str((await request.post()).get("service", ""))
        else:
            try:
                service = msgspec.json.decode(await request.read() or b"{}", type=PurgeBody).service
            except msgspec.DecodeError as error:
                raise ApiError(400, f"the body cannot be read: {error}") from None
        return _done(request, self._backend.purge_spool(service))


def _is_form(request: web.Request) -> bool:
    return request.content_type in ("application/x-www-form-urlencoded", "multipart/form-data")


def _done(request: web.Request, done: Done) -> web.Response:
    """A form goes back to the page, a script gets the sentence."""
    return web.Response(status=303, headers={"Location": "/"}) if _is_form(request) else reply(done)


def _problem(status: int, text: str) -> web.Response:
    return reply(Problem(error=text), status)


def _sentence(error: web.HTTPException, request: web.Request) -> str:
    if error.status == 404:
        return f"there is no {request.path[:100]} here"
    if error.status == 405:
        return f"{request.method} is not possible on {request.path[:100]}"
    if error.status == 413:
        return f"the body is larger than the {MAX_BODY} bytes that are allowed"
    return error.reason


async def no_server_header(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: what serves here, and in which version, is nobody's business."""
    response.headers.pop("Server", None)
