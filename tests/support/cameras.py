"""Network cameras for tests, on real sockets: MJPEG over HTTP, and RTSP with RTP over TCP (MJPEG or H.264)."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

BOUNDARY = "board"


class _Server:
    """Accepts on a port of its own and serves every connection in a thread. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.stopping = threading.Event()
        self.connections: list[socket.socket] = []
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Break every connection."""
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.connections.clear()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(10.0)
            self.connections.append(connection)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError):
            self.serve(connection)
        connection.close()

    def serve(self, connection: socket.socket) -> None:
        raise AssertionError("a server serves something")


def _md5(*parts: str) -> str:
    """RFC 2617's H(a:b:c)."""
    return hashlib.md5(":".join(parts).encode()).hexdigest()


def _head(connection: socket.socket) -> str:
    """One request's head, "" when the client hung up."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return ""
        data += byte
    return data.decode("latin-1")


class MjpegCamera(_Server):
    """Sends what `frames` yields, one part every `pause_s`, without end while `frames` has no end."""

    def __init__(
        self,
        frames: Callable[[], Iterator[bytes]],
        pause_s: float = 0.02,
        user: str = "",
        status: str = "200 OK",
        lengths: bool = True,
        digest: bool = False,
    ) -> None:
        """`user`: USER:PASSWORD that clients must send, as Basic or as Digest. `lengths`: parts have a length."""
        self._frames, self._pause_s, self._status, self._lengths = frames, pause_s, status, lengths
        self._wanted = f"authorization: basic {base64.b64encode(user.encode()).decode()}".lower() if user else ""
        self._challenge = "Basic realm=x"
        if digest:
            name, _, password = user.partition(":")
            self._challenge = 'Digest realm="x", nonce="n", algorithm=MD5'
            self._wanted = f'response="{_md5(_md5(f"{name}:x:{password}"), "n", _md5("GET:/video?channel=1"))}"'
        self.mute = threading.Event()
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/video?channel=1"

    def serve(self, connection: socket.socket) -> None:
        head = _head(connection)
        self.requests.append(head)
        if self._wanted and self._wanted not in head.lower():
            reply = f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {self._challenge}\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(reply.encode())
            return
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        connection.sendall(f"HTTP/1.1 {self._status}\r\nContent-Type: {kind}\r\n\r\n".encode())
        for frame in self._frames():
            while self.mute.is_set() and not self.stopping.is_set():
                time.sleep(0.02)
            length = f"Content-Length: {len(frame)}\r\n" if self._lengths else ""
            connection.sendall(f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + frame + b"\r\n")
            if self.stopping.wait(self._pause_s):
                return
        connection.sendall(f"--{BOUNDARY}--\r\n".encode())


class RtspCamera(_Server):
    """Speaks enough RTSP for FFmpeg: RTP interleaved on the same TCP connection, one packet a frame or NAL unit."""

    def __init__(self, frames: list[bytes], fps: float = 25.0, user: str = "") -> None:
        """`frames`: JPEGs, or access units of an H.264 byte stream; sent over and over."""
        self._frames, self._fps = frames, fps
        self._h264 = not frames[0].startswith(b"\xff\xd8")
        self._wanted = f"authorization: basic {base64.b64encode(user.encode()).decode()}".lower() if user else ""
        super().__init__()

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/line"

    def serve(self, connection: socket.socket) -> None:
        while head := _head(connection):
            self.requests.append(head)
            method = head.partition(" ")[0]
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            reply, body = [f"CSeq: {fields.get('CSeq', '0')}"], ""
            status = "200 OK"
            if self._wanted and method != "OPTIONS" and self._wanted not in head.lower():
                status, reply = "401 Unauthorized", [*reply, 'WWW-Authenticate: Basic realm="x"']
            elif method == "OPTIONS":
                reply.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif method == "DESCRIBE":
                body = self._sdp()
                reply += ["Content-Type: application/sdp", f"Content-Base: {self.url}/"]
            elif method == "SETUP":
                reply += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
            elif method == "PLAY":
                reply.append("Session: 1")
            if body:
                reply.append(f"Content-Length: {len(body)}")
            connection.sendall(("\r\n".join([f"RTSP/1.0 {status}", *reply]) + "\r\n\r\n" + body).encode())
            if method == "PLAY":
                self._play(connection)
                return
            if method == "TEARDOWN":
                return

    def _sdp(self) -> str:
        payload, codec = (96, "H264") if self._h264 else (26, "JPEG")
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0"]
        lines += [f"m=video 0 RTP/AVP {payload}", f"a=rtpmap:{payload} {codec}/90000", "a=control:track"]
        if self._h264:
            sets = [base64.b64encode(unit).decode() for unit in _units(self._frames[0]) if unit[0] & 31 in (7, 8)]
            lines.append(f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={','.join(sets)}")
        return "\r\n".join(lines) + "\r\n"

    def _play(self, connection: socket.socket) -> None:
        sequence = number = 0
        while not self.stopping.wait(1 / self._fps):
            frame = self._frames[number % len(self._frames)]
            payloads = _units(frame) if self._h264 else [_rtp_jpeg(frame)]
            for index, payload in enumerate(payloads):
                last = 0x80 if index == len(payloads) - 1 else 0
                kind = 96 if self._h264 else 26
                stamp = int(number * 90_000 / self._fps) & 0xFFFFFFFF
                packet = struct.pack(">BBHII", 0x80, last | kind, sequence & 0xFFFF, stamp, 1) + payload
                connection.sendall(struct.pack(">BBH", 0x24, 0, len(packet)) + packet)
                sequence += 1
            number += 1


def _units(stream: bytes) -> list[bytes]:
    """The NAL units of an Annex B byte stream."""
    return [unit.rstrip(b"\0") for unit in stream.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]


def access_units(stream: bytes) -> list[bytes]:
    """An Annex B byte stream cut before each picture; parameter sets go with the picture that they precede."""
    found: list[bytes] = []
    pending = b""
    for unit in _units(stream):
        pending += b"\0\0\1" + unit
        if unit[0] & 31 in (1, 5):
            found.append(pending)
            pending = b""
    return found


def _rtp_jpeg(jpeg: bytes) -> bytes:
    """RFC 2435, one packet: 4:2:0 baseline with the standard Huffman tables, which is what OpenCV writes."""
    tables, at = b"", 2
    width = height = 0
    while jpeg[at + 1] != 0xDA:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segment = jpeg[at + 4 : at + 2 + length]
        if marker == 0xDB:
            tables += b"".join(segment[start + 1 : start + 65] for start in range(0, len(segment), 65))
        elif marker == 0xC0:
            height, width = struct.unpack(">HH", segment[1:5])
        at += 2 + length
    scan = jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") : jpeg.rfind(b"\xff\xd9")]
    header = struct.pack(">IBBBB", 0, 1, 255, width // 8, height // 8) + struct.pack(">BBH", 0, 0, len(tables))
    return header + tables + scan
