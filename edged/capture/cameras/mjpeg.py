"""A network camera that sends MJPEG over HTTP: its JPEGs are passed on as they come, undecoded."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from edged.capture.cameras.base import OPEN_S, Picture, SourceError, read_credentials, reason
from edged.capture.multipart import MultipartError, MultipartReader, boundary_of
from edged.capture.wire import MAX_FRAME
from edgekit.services import Source

_READ = 262_144


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A camera that sends its reader elsewhere is not the camera that was configured."""

    def redirect_request(self, *_: object) -> None:
        return None


def read(source: Source, wanted: Callable[[], bool], opened: Callable[[str], None]) -> Iterator[Picture]:
    """Frames of `source.url`; see Reader. Basic and Digest authentication; https is verified as usual."""
    response = _open(source)
    with response:
        try:
            parts = MultipartReader(boundary_of(response.headers.get("Content-Type", "")), MAX_FRAME)
        except MultipartError as error:
            raise SourceError(f"it does not send a stream of JPEGs: {error}") from None
        opened("MJPEG over HTTP")
        while data := _some(response):
            try:
                for part in parts.feed(data):
                    if part.body and wanted():
                        yield Picture(part.body, time.time())
            except MultipartError as error:
                raise SourceError(f"it sends nonsense: {error}") from None
            if parts.ended:
                break
    raise SourceError("it ended its stream")


def _open(source: Source) -> http.client.HTTPResponse:
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
    credentials = read_credentials(source.credentials)
    if credentials is not None:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, source.url, *credentials)
        handlers.append(urllib.request.HTTPDigestAuthHandler(passwords))
        handlers.append(urllib.request.HTTPBasicAuthHandler(passwords))
    request = urllib.request.Request(source.url, headers={"User-Agent": "edged"})  # noqa: S310 - http(s), checked
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=OPEN_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            what = "refuses the user and password" if credentials else "wants a user and password (source.credentials)"
            raise SourceError(f"it {what}") from None
        raise SourceError(f"it answers with HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        cause = error.reason
        raise SourceError(reason(cause) if isinstance(cause, OSError) else str(cause)[:200]) from None
    except OSError as error:
        raise SourceError(reason(error)) from None
    except (http.client.HTTPException, ValueError, AttributeError) as error:  # what its parsers make of nonsense
        raise SourceError(f"it does not speak HTTP ({type(error).__name__})") from None
    return response


def _some(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_READ)
    except TimeoutError:
        raise SourceError(f"nothing came for {OPEN_S:.0f} s") from None
    except OSError as error:
        raise SourceError(f"the connection broke: {reason(error)}") from None
    except (http.client.HTTPException, ValueError) as error:
        raise SourceError(f"the connection broke ({type(error).__name__})") from None
