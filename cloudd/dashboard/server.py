"""The dashboard's HTTP: read for everybody on this machine, write only with the page token."""

from __future__ import annotations

import time
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.typedefs import Handler

from cloudd import metrics
from cloudd.dashboard import page
from cloudd.federation import page as federation_page
from cloudd.federation import views
from cloudd.federation.errors import FederationError
from cloudd.federation.service import Federation
from cloudd.operations import InviteRequest, Operations
from cloudd.web import HttpProblem, json_response, new_app, problem, read_body, read_json
from edgekit import html
from edgekit.webguard import PageGuard, Refusal, security_headers

_MAX_FORM = 4096


def application(operations: Operations, guard: PageGuard, federation: Federation) -> web.Application:
    """The pages (`/`, `/federation/JOB`), data (`/state.json`, `/samples/ID.jpg`), `/metrics`, buttons (`/api/...`)."""
    headers = security_headers(page.STYLES, page.SCRIPTS)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/login":  # its body is the token
            refusal = guard.check_source(request.method, request.headers)
        else:
            refusal = guard.check(request.method, request.headers, request.remote or "")
        if refusal is not None:
            return _refuse(request, refusal)
        try:
            return await handler(request)
        except HttpProblem as error:
            if not _from_form(request):
                raise
            return _message(error.status, "That did not work", html.text(error.text))

    app = new_app(guarded)

    async def secure(_request: web.Request, response: web.StreamResponse) -> None:
        for name, value in headers.items():
            response.headers.setdefault(name, value)

    app.on_response_prepare.append(secure)

    async def show_page(request: web.Request) -> web.Response:
        state = await operations.dashboard(logged_in=guard.logged_in(request.headers))
        jobs = federation_page.section(await views.jobs(federation), state.now)
        return web.Response(text=page.render(state, jobs), content_type="text/html", charset="utf-8")

    async def show_job(request: web.Request) -> web.Response:
        try:
            detail = await views.detail(federation, request.match_info["job"])
        except FederationError as error:
            raise HttpProblem(404, str(error)) from None
        shown = federation_page.render(detail, time.time())
        return web.Response(text=shown, content_type="text/html", charset="utf-8")

    async def show_state(request: web.Request) -> web.Response:
        return json_response(await operations.dashboard(logged_in=guard.logged_in(request.headers)))

    async def show_metrics(_request: web.Request) -> web.Response:
        text = metrics.render(await operations.dashboard(), await views.jobs(federation))
        return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def show_thumbnail(request: web.Request) -> web.Response:
        data = await operations.picture(int(request.match_info["id"]), thumbnail=True)
        return web.Response(body=data, content_type="image/jpeg")

    async def login(request: web.Request) -> web.Response:
        form = parse_qs((await read_body(request, _MAX_FORM)).decode("utf-8", "replace"), max_num_fields=8)
        refusal = guard.login(form.get("token", [""])[0].strip(), request.remote or "")
        if refusal is not None:
            return _refuse(request, refusal)
        return _home({"Set-Cookie": guard.session_cookie()})

    async def logout(_request: web.Request) -> web.Response:
        return _home({"Set-Cookie": guard.logout_cookie()})

    async def invite(request: web.Request) -> web.Response:
        if not _from_form(request):
            return json_response(await operations.invite(await read_json(request, InviteRequest)))
        made = await operations.invite(InviteRequest())
        text = f"On the device type, within one hour:<br><code>{html.text(made.command)}</code>"
        return _message(200, "A token for one device", text)

    async def revoke(request: web.Request) -> web.Response:
        change = await operations.revoke(request.match_info["id"], "dashboard")
        return _home({}) if _from_form(request) else json_response(change)

    app.add_routes(
        [
            web.get("/", show_page),
            web.get("/state.json", show_state),
            web.get("/federation/{job}", show_job),
            web.get("/metrics", show_metrics),
            web.get(r"/samples/{id:\d{1,18}}.jpg", show_thumbnail),
            web.post("/login", login),
            web.post("/logout", logout),
            web.post("/api/invites", invite),
            web.post("/api/devices/{id}/revoke", revoke),
        ]
    )
    return app


def _from_form(request: web.Request) -> bool:
    """A browser sent one of the page's forms and wants a page back; scripts send JSON and get JSON."""
    return request.method == "POST" and request.content_type == "application/x-www-form-urlencoded"


def _refuse(request: web.Request, refusal: Refusal) -> web.Response:
    if _from_form(request):
        return _message(refusal.status, "Not allowed", html.text(refusal.text))
    return problem(refusal.status, refusal.text, refusal.retry_after_s or None)


def _home(headers: dict[str, str]) -> web.Response:
    return web.Response(status=303, headers={"Location": "/", **headers})


def _message(status: int, title: str, body: str) -> web.Response:
    """A small page with ready HTML in it and a way back; it does not refresh itself, because nothing in it changes."""
    document = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.text(title)}</title>'
        f"<style>{html.STYLE}</style></head><body><header><h1>{html.text(title)}</h1></header>"
        f'<main><section class="card"><p>{body}</p><p><a href="/">Back to the dashboard</a></p></section></main>'
        "</body></html>"
    )
    return web.Response(status=status, text=document, content_type="text/html", charset="utf-8")
