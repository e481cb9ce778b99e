"""A client that never stops connecting, for tests that kill what it talks to."""

from __future__ import annotations

import socket
import threading
import time

from tests.support.models import picture
from tests.support.stage import EASY


class Hammer(threading.Thread):
    """A client that opens a connection for each picture. It may lose an answer, but never finds the door locked."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._ending = threading.Event()
        body = picture(EASY)
        head = "POST /v1/services/solder/inspect HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.answered = self.lost = 0
        self.slowest_s = 0.0
        self.refused: list[OSError] = []

    def run(self) -> None:
        while not self._ending.wait(0.005):
            began = time.monotonic()
            try:
                connection = socket.create_connection(self._address, 30.0)
            except OSError as error:
                self.refused.append(error)
                continue
            with connection:
                self._ask(connection)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _ask(self, connection: socket.socket) -> None:
        try:
            connection.sendall(self._request)
            reply = b""
            while chunk := connection.recv(65_536):
                reply += chunk
        except ConnectionError:
            self.lost += 1
            return
        if reply.startswith(b"HTTP/1.1 200"):
            self.answered += 1
        else:
            self.lost += 1

    def end(self) -> None:
        self._ending.set()
        self.join(40.0)
