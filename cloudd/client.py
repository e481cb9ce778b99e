"""Thin client of the admin API: what `cloudd` commands use to talk to the running daemon. Standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from edgekit.command import reason

_TIMEOUT_S = 60.0
_MAX_REPLY = 64 * 1024 * 1024


class ClientError(Exception):
    """The daemon was not reached (status 0) or refused (its HTTP status); the text is a sentence for people."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("cloudd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class AdminClient:
    """One request a call over the daemon's unix socket."""

    def __init__(self, path: Path, timeout_s: float = _TIMEOUT_S) -> None:
        self._path, self._timeout_s = path, timeout_s

    def get(self, route: str) -> Any:
        """JSON reply of a GET. Raises ClientError."""
        return _read(self.request("GET", route))

    def post(self, route: str, body: object = None) -> Any:
        """JSON reply of a POST with a JSON body. Raises ClientError."""
        return _read(self.request("POST", route, json.dumps(body if body is not None else {}).encode()))

    def request(self, method: str, route: str, body: bytes | None = None) -> bytes:
        """Raw reply. Raises ClientError with the daemon's own sentence if it refuses."""
        connection = _UnixConnection(self._path, self._timeout_s)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, route, body, headers)
            reply = connection.getresponse()
            data = reply.read(_MAX_REPLY + 1)
        except (FileNotFoundError, ConnectionRefusedError):
            raise ClientError(
                f"cloudd is not running here (no answer at {self._path}); start it with `cloudd run`, "
                "or name its state directory with --state"
            ) from None
        except PermissionError:
            raise ClientError(f"you may not use {self._path}; run this as root or as a member of its group") from None
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"cloudd did not answer at {self._path}: {reason(error)}") from None
        finally:
            connection.close()
        if len(data) > _MAX_REPLY:
            raise ClientError(f"the reply is larger than {_MAX_REPLY} bytes")
        if reply.status >= 400:
            raise ClientError(_sentence(data, reply.status), reply.status)
        return data


def _read(data: bytes) -> Any:
    try:
        return json.loads(data, object_hook=_Reply)
    except (ValueError, RecursionError):
        raise ClientError("the daemon's answer cannot be read: is it a cloudd, and of this version?", 502) from None


class _Reply(dict[str, Any]):
    """An object of an answer. A daemon of another release may say less than this one's verbs ask of it."""

    def __missing__(self, key: str) -> Any:
        raise ClientError(f"the daemon's answer has no {key!r}: it is of another version; restart it", 502)


def _sentence(data: bytes, status: int) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return f"cloudd answered with status {status}"
