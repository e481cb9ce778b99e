"""The thin client of the local API: plain blocking HTTP over the unix socket, standard library only.

It starts in milliseconds because it imports no web framework; every verb of the command line that talks to the daemon
goes through it.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged import config
from edged.api import ApiError, Problem
from edged.shortpath import short_path
from edgekit.command import reason

T = TypeVar("T")

MAX_REPLY = 32 << 20
"""Bytes. The largest reply is the list of a full spool."""
DEFAULT_TIMEOUT_S = 30.0


class NotRunning(Exception):
    """There is no daemon to talk to, or we may not talk to it; the message says which and what to do."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_path(self._path) as name:
            self.sock.connect(name)


class Client:
    """Speaks to the daemon behind one unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def find(cls, state: str | None) -> Client:
        """The daemon of `--state`, of $EDGED_STATE, or the system's. Raises NotRunning."""
        candidates = config.socket_candidates(state)
        denied: Path | None = None
        for path in candidates:
            try:
                if path.exists():
                    return cls(path)
            except PermissionError:
                denied = denied or path
        if denied is not None:
            raise NotRunning(_denied(denied))
        where = candidates[0].parent if len(candidates) == 1 else "the usual places"
        raise NotRunning(
            f"edged is not running: no socket {config.SOCKET_NAME} in {where}. Start it with 'edged run', "
            "or name its directory with --state DIR."
        )

    def get(self, path: str, reply: type[T], timeout_s: float = DEFAULT_TIMEOUT_S) -> T:
        """GET and decode. Raises ApiError or NotRunning."""
        return self._call("GET", path, reply, None, timeout_s)

    def post(
        self,
        path: str,
        reply: type[T],
        body: msgspec.Struct | str | bytes | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> T:
        """POST a Struct as JSON, a text (a service definition) or bytes as they are. Raises ApiError or NotRunning."""
        return self._call("POST", path, reply, body, timeout_s)

    def delete(self, path: str, reply: type[T], timeout_s: float = DEFAULT_TIMEOUT_S) -> T:
        """DELETE and decode. Raises ApiError or NotRunning."""
        return self._call("DELETE", path, reply, None, timeout_s)

    def text(self, path: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """GET a plain text. Raises ApiError or NotRunning."""
        return self.data(path, MAX_REPLY, timeout_s).decode(errors="replace")

    def data(self, path: str, limit: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> bytes:
        """GET bytes as they are, `limit` at most. Raises ApiError or NotRunning."""
        response, connection = self._request("GET", path, None, timeout_s)
        try:
            data = response.read(limit + 1)
        except (OSError, http.client.HTTPException) as error:
            raise NotRunning(f"edged went away in the middle of its answer: {reason(error)}") from None
        finally:
            connection.close()
        if len(data) > limit:
            raise ApiError(502, f"edged answered with more than {limit} bytes")
        return data

    def stream(self, path: str, line: type[T], body: msgspec.Struct, timeout_s: float = 600.0) -> Iterator[T]:
        """POST and yield the reply line by line as it comes. Raises ApiError or NotRunning."""
        response, connection = self._request("POST", path, body, timeout_s)
        try:
            while data := response.readline(65_536):
                yield msgspec.json.decode(data, type=line)
        except msgspec.DecodeError as error:
            raise _unreadable(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise NotRunning(f"edged went away in the middle of its answer: {reason(error)}") from None
        finally:
            connection.close()

    def _call(
        self, method: str, path: str, reply: type[T], body: msgspec.Struct | str | bytes | None, timeout_s: float
    ) -> T:
        response, connection = self._request(method, path, body, timeout_s)
        try:
            return msgspec.json.decode(response.read(MAX_REPLY), type=reply)
        except msgspec.DecodeError as error:
            raise _unreadable(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise NotRunning(f"edged went away in the middle of its answer: {reason(error)}") from None
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, body: msgspec.Struct | str | bytes | None, timeout_s: float
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        connection = _UnixConnection(self.path, timeout_s)
        data, kind = _encoded(body)
        headers: dict[str, Any] = {"Content-Type": kind} if data is not None else {}
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
        except PermissionError:
            raise NotRunning(_denied(self.path)) from None
        except (ConnectionRefusedError, FileNotFoundError):
            raise NotRunning(
                f"edged is not running: nobody answers on {self.path}. Start it with 'edged run'."
            ) from None
        except TimeoutError:
            raise NotRunning(f"edged did not answer within {timeout_s:.0f} s; look at its log") from None
        except (OSError, http.client.HTTPException) as error:
            raise NotRunning(f"edged cannot be reached on {self.path}: {reason(error)}") from None
        if response.status >= 400:
            raise ApiError(response.status, _error_text(response))
        return response, connection


def _unreadable(error: Exception) -> ApiError:
    return ApiError(502, f"edged answered something that this command cannot read ({error}): is it another version?")


def _encoded(body: msgspec.Struct | str | bytes | None) -> tuple[bytes | None, str]:
    """The body's bytes and what they are."""
    if body is None or isinstance(body, bytes):
        return body, "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "application/toml"
    return msgspec.json.encode(body), "application/json"


def _error_text(response: http.client.HTTPResponse) -> str:
    data = response.read(65_536)
    try:
        return msgspec.json.decode(data, type=Problem).error
    except msgspec.DecodeError:
        return f"edged answered with HTTP status {response.status}"


def _denied(path: Path) -> str:
    return f"you may not talk to edged on {path}: use sudo, or add your user to the group 'edged' and log in again"
