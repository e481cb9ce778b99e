"""A real HttpServer on a real socket with a handler that tells what it got, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from edged.serve.http import HttpError, HttpServer, Limits, Request, Response, json_response


class Reply:
    """One parsed reply."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """A TCP client that sends exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> RawClient:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, head_only: bool = False, timeout_s: float = 5.0) -> Reply:
        """The next reply. Raises IncompleteReadError if the server closed instead."""
        async with asyncio.timeout(timeout_s):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            version, status, *_ = lines[0].split(" ")
            assert version == "HTTP/1.1"
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            length = int(headers.get("content-length", "0"))
            body = b"" if head_only else await self.reader.readexactly(length)
            return Reply(int(status), headers, body)

    async def ended(self, timeout_s: float = 5.0) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(timeout_s):
            return await self.reader.read()

    async def ask(self, data: bytes) -> Reply:
        self.send(data)
        return await self.reply()

    def close(self) -> None:
        self.writer.close()


class Lab:
    """The server and what happened in it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.server = HttpServer(
            self.handle,
            limits,
            wants_stream=lambda method, path: path == "/stream",
            admit=self.admit,
            split_at=lambda request: int(request.headers.get("split", "0")),
        )
        self.port = 0
        self.clients: list[RawClient] = []
        self.kept: list[Request] = []
        self.gone = 0
        self.cancelled = 0
        self.streamed: list[bytes] = []
        self.together: list[int] = []
        self.release = asyncio.Event()

    def admit(self, request: Request) -> None:
        if request.path == "/refused":
            raise HttpError(404, "Not Found")

    def handle(self, request: Request) -> Any:
        self.together.append(request.together)
        match request.path:
            case "/echo":
                return Response(200, request.body, "application/octet-stream")
            case "/address":
                split = int(request.headers["split"])
                return json_response(np.frombuffer(request.body, np.uint8)[split:].ctypes.data)
            case "/json":
                return json_response({"data": "x" * int(request.query.get("size", "1"))})
            case "/parts":
                return Response(
                    200, [b"head", memoryview(bytes(int(request.query["size"])))], "application/octet-stream"
                )
            case "/slow":
                return self.slow(request)
            case "/later":
                self.kept.append(request)
                request.on_close(self.count_gone)
                if self.release.is_set():
                    asyncio.get_running_loop().call_soon(request.respond, json_response("late"))
                return None
            case "/bug":
                raise RuntimeError("a bug")
            case "/bad-header":
                return Response(200, b"", headers={"X-Told": "a\r\nSet-Cookie: b"})
            case "/stream":
                return self.read(request)
        return json_response(
            {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "headers": request.headers,
                "size": len(request.body),
            }
        )

    def count_gone(self) -> None:
        self.gone += 1

    async def slow(self, request: Request) -> Response:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return json_response({"size": len(request.body)})

    async def read(self, request: Request) -> Response:
        assert request.stream is not None
        async for chunk in request.stream:
            self.streamed.append(chunk)
            if chunk == b"enough":
                raise HttpError(400, "that is enough")
            await self.release.wait()
        return json_response({"size": sum(map(len, self.streamed))})

    async def client(self) -> RawClient:
        client = await RawClient.open(self.port)
        self.clients.append(client)
        return client


@asynccontextmanager
async def lab(limits: Limits | None = None) -> AsyncIterator[Lab]:
    """A lab whose server listens; at the end nothing of it is in flight or held."""
    made = Lab(limits)
    listener = socket.create_server(("127.0.0.1", 0))
    made.port = listener.getsockname()[1]
    listening = await asyncio.get_running_loop().create_server(made.server, sock=listener)
    try:
        yield made
    finally:
        listening.close()
        for client in made.clients:
            client.close()
        await made.server.shutdown(0.5)
        assert not made.server.connections
        assert (made.server.in_flight, made.server.held) == (0, 0)


def post(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """A request with a Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: lab", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: lab", *headers]).encode() + b"\r\n\r\n"
