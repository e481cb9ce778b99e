"""Network cameras for tests, on real sockets: MJPEG over HTTP, and RTSP with RTP over TCP or UDP."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path

BOUNDARY = "board"


class _Server:
    """Accepts on a port of its own and serves every connection in a thread. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.stopping = threading.Event()
        self.connections: list[socket.socket] = []
        self.requests: list[str] = []
        self._serving: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._serving:  # what they started ends with them
            thread.join(10)

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
            self._serving.append(threading.Thread(target=self._run, args=(connection,), daemon=True))
            self._serving[-1].start()

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
    """Speaks enough RTSP for FFmpeg; RTP goes over the same TCP connection, or over UDP, as the client asks.

    JPEGs are packed here, one packet a frame. A film is packed by the program ffmpeg, whose RTP is passed on.
    """

    def __init__(
        self,
        media: list[bytes] | Path,
        fps: float = 25.0,
        user: str = "",
        loses: Callable[[int], bool] = lambda number: False,
    ) -> None:
        """`media`: JPEGs (at `fps`) or a film, sent over and over. `loses(n)`: packet n is lost on its way."""
        self._media, self._fps, self._loses = media, fps, loses
        self._wanted = f"authorization: basic {base64.b64encode(user.encode()).decode()}".lower() if user else ""
        super().__init__()

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/line"

    def serve(self, connection: socket.socket) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            client_port = 0
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
                    ports = re.search(r"client_port=(\d+)-\d+", fields.get("Transport", ""))
                    client_port = int(ports[1]) if ports else 0
                    own = udp.getsockname()[1]
                    over = f"UDP;unicast;{ports[0]};server_port={own}-{own + 1}" if ports else "TCP;interleaved=0-1"
                    reply += [f"Transport: RTP/AVP/{over}", "Session: 1"]
                elif method == "PLAY":
                    reply.append("Session: 1")
                if body:
                    reply.append(f"Content-Length: {len(body)}")
                connection.sendall(("\r\n".join([f"RTSP/1.0 {status}", *reply]) + "\r\n\r\n" + body).encode())
                if method == "PLAY":
                    self._play(connection, udp, client_port)
                if method in ("PLAY", "TEARDOWN"):
                    return

    def _sdp(self) -> str:
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0"]
        if isinstance(self._media, Path):
            with closing(_Film(self._media)) as film:
                lines += film.description
        else:
            lines += ["m=video 0 RTP/AVP 26", "a=rtpmap:26 JPEG/90000"]
        return "\r\n".join([*lines, "a=control:track"]) + "\r\n"

    def _play(self, connection: socket.socket, udp: socket.socket, client_port: int) -> None:
        if client_port:
            connection.setblocking(False)
        with closing(self._packets()) as packets:
            for number, packet in enumerate(packets):
                if self.stopping.is_set() or (client_port and _has_left(connection)):
                    return
                if self._loses(number):
                    continue
                if client_port:
                    udp.sendto(packet, ("127.0.0.1", client_port))
                else:
                    connection.sendall(struct.pack(">BBH", 0x24, 0, len(packet)) + packet)

    def _packets(self) -> Generator[bytes]:
        """RTP, in real time, without end."""
        if isinstance(self._media, Path):
            with closing(_Film(self._media)) as film:
                while True:
                    yield film.packet()
        number = 0
        while not self.stopping.wait(1 / self._fps):
            stamp = int(number * 90_000 / self._fps) & 0xFFFFFFFF
            head = struct.pack(">BBHII", 0x80, 0x80 | 26, number & 0xFFFF, stamp, 1)
            yield head + _rtp_jpeg(self._media[number % len(self._media)])
            number += 1


def _has_left(client: socket.socket) -> bool:
    """True if the client of a non-blocking RTSP connection has hung up, or says that it will."""
    try:
        said = client.recv(4096)
    except BlockingIOError:
        return False
    return not said or b"TEARDOWN" in said


class _Film:
    """A program ffmpeg that plays a film into a socket of ours."""

    def __init__(self, path: Path) -> None:
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in ("RTP", "RTCP")]
        for one in self._sockets:
            one.bind(("127.0.0.1", 0))
        self._sockets[0].settimeout(10.0)
        self._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        rtp, rtcp = (one.getsockname()[1] for one in self._sockets)
        command = ["ffmpeg", "-v", "error", "-re", "-stream_loop", "-1", "-i", str(path), "-c", "copy", "-f", "rtp"]
        self._program = subprocess.Popen(
            [*command, f"rtp://127.0.0.1:{rtp}?rtcpport={rtcp}&pkt_size=1400"], stdout=subprocess.PIPE, text=True
        )

    @property
    def description(self) -> list[str]:
        """The stream's lines of a session description."""
        assert self._program.stdout is not None
        lines = []
        for line in self._program.stdout:
            if line.startswith(("m=", "a=rtpmap", "a=fmtp")):
                lines.append(re.sub(r"^m=video \d+", "m=video 0", line.strip()))
            elif lines and not line.strip():
                break
        return lines

    def packet(self) -> bytes:
        return self._sockets[0].recv(65_536)

    def close(self) -> None:
        self._program.kill()
        self._program.wait()
        assert self._program.stdout is not None
        self._program.stdout.close()
        for one in self._sockets:
            one.close()


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
