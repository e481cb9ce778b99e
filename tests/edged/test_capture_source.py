"""The source process against real cameras on sockets, recordings made by ffmpeg, and what is neither."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path

import pytest

from edged.capture.wire import Ended, Opened, Trouble
from tests.support.cameras import MjpegCamera
from tests.support.films import film, needs_ffmpeg
from tests.support.models import picture
from tests.support.source_process import source


def endless(kind: str = ".jpg") -> Iterator[bytes]:
    for number in count():
        yield picture(0.5, side=64, kind=kind, seed=number)


# --- MJPEG over HTTP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [True, False])
def test_mjpeg_is_passed_on_as_it_comes(lengths: bool) -> None:
    sent = [picture(0.2, side=64, kind=".jpg", seed=number) for number in range(50)]
    with MjpegCamera(lambda: iter(sent), lengths=lengths) as camera, source(kind="mjpeg", url=camera.url) as one:
        assert one.opened() == "MJPEG over HTTP"
        got = [one.frame()[1] for _ in range(10)]
    assert [sent.index(frame) for frame in got] == sorted({sent.index(frame) for frame in got})


def test_only_the_newest_frame_waits() -> None:
    with MjpegCamera(endless, pause_s=0.01) as camera, source(kind="mjpeg", url=camera.url) as one:
        one.opened()
        one.frame()
        time.sleep(1.0)
        frame, _ = one.frame()
        assert time.time() - frame.captured_at < 0.2, "it came after the pause, not before it"
        assert frame.skipped > 20


def test_the_frame_clock_thins_a_stream_evenly() -> None:
    with MjpegCamera(endless, pause_s=0.005) as camera, source(kind="mjpeg", url=camera.url, fps=20.0) as one:
        one.opened()
        times = [one.frame()[0].captured_at for _ in range(21)]
    assert 0.7 < times[-1] - times[0] < 1.6
    assert min(after - before for before, after in pairwise(times)) > 0.02


def test_basic_credentials_come_from_a_file_and_stay_in_the_process(tmp_path: Path) -> None:
    secret = tmp_path / "camera.txt"
    secret.write_text("opera:s3cret:word\n")
    with MjpegCamera(endless, user="opera:s3cret:word") as camera:
        with source(kind="mjpeg", url=camera.url, credentials=str(secret)) as one:
            one.opened()
            one.frame()
            command = Path(f"/proc/{one.process.pid}/cmdline").read_bytes()
            assert b"s3cret" not in command
        with source(kind="mjpeg", url=camera.url) as one:
            assert one.trouble() == "it wants a user and password (source.credentials)"
        secret.write_text("opera:wrong")
        with source(kind="mjpeg", url=camera.url, credentials=str(secret)) as one:
            assert one.trouble() == "it refuses the user and password"
        secret.write_text("no colon")
        with source(kind="mjpeg", url=camera.url, credentials=str(secret)) as one:
            assert "does not hold one line USER:PASSWORD" in one.trouble()


def test_digest_credentials(tmp_path: Path) -> None:
    secret = tmp_path / "camera.txt"
    secret.write_text("opera:s3cret")
    with (
        MjpegCamera(endless, user="opera:s3cret", digest=True) as camera,
        source(kind="mjpeg", url=camera.url, credentials=str(secret)) as one,
    ):
        one.opened()
        one.frame()
        assert not any("s3cret" in head for head in camera.requests)


@pytest.mark.parametrize(
    ("status", "said"),
    [("404 Not Found", "HTTP status 404"), ("302 Found\r\nLocation: http://127.0.0.1:1/", "HTTP status 302")],
)
def test_a_camera_that_does_not_stream_is_named(status: str, said: str) -> None:
    with MjpegCamera(endless, status=status) as camera, source(kind="mjpeg", url=camera.url) as one:
        assert said in one.trouble()


def test_what_ends_is_said() -> None:
    with MjpegCamera(lambda: iter([picture(0.5, kind=".jpg")])) as camera, source(kind="mjpeg", url=camera.url) as one:
        one.opened()
        one.frame()
        assert one.trouble() == "it ended its stream"


@pytest.mark.parametrize(
    "reply",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
        b"--b\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: multipart/x-mixed-replace; boundary=b\r\n\r\nzz\r\n",
    ],
)
@pytest.mark.parametrize("kind", ["mjpeg", "rtsp"])
def test_nonsense_is_one_sentence(reply: bytes, kind: str) -> None:
    with answering(reply) as port:
        scheme = "http" if kind == "mjpeg" else "rtsp"
        with source(kind=kind, url=f"{scheme}://127.0.0.1:{port}/x") as one:
            while isinstance(answer := one.next()[0], Opened):
                pass
            assert isinstance(answer, Trouble)
            assert len(answer.text) < 200


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A server that says the same to everybody and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize("kind", ["rtsp", "mjpeg"])
def test_nobody_there(kind: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        scheme = "http" if kind == "mjpeg" else "rtsp"
        with source(kind=kind, url=f"{scheme}://127.0.0.1:{bound.getsockname()[1]}/x") as one:
            assert one.trouble() == "Connection refused"


# --- recordings -------------------------------------------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize(("codec", "name"), [("mjpeg", "film.avi"), ("libx264", "film.mp4")])
def test_a_film_plays_with_its_own_timing(tmp_path: Path, codec: str, name: str) -> None:
    path = film(tmp_path / name, codec)
    with source(kind="replay", path=str(path), speed=4.0) as one:
        assert one.opened().endswith("160x128 from a file")
        times = [one.frame()[0].captured_at for _ in range(20)]
        one.more()
        assert isinstance(one.next()[0], Ended)
    assert 0.4 < times[-1] - times[0] < 0.9, "1.9 s of film at four times the speed"


def test_a_folder_plays_in_the_order_and_pace_of_its_times(tmp_path: Path) -> None:
    start = time.time() - 1000
    for number, at in enumerate([0.0, 0.4, 0.6, 1.2]):
        path = tmp_path / f"board-{9 - number}.png"
        path.write_bytes(picture(0.5, seed=number))
        os.utime(path, (start + at, start + at))
    (tmp_path / "notes.txt").write_text("no picture")
    with source(kind="replay", path=str(tmp_path), speed=2.0) as one:
        assert one.opened() == "4 pictures from a folder"
        frames = [one.frame()[0] for _ in range(4)]
    assert [frame.serial for frame in frames] == ["board-9", "board-8", "board-7", "board-6"]
    pauses = [after.captured_at - before.captured_at for before, after in pairwise(frames)]
    assert pauses == pytest.approx([0.2, 0.1, 0.3], abs=0.09)


def test_a_folder_repeats_at_a_given_rate(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(picture(0.5))
    with source(kind="replay", path=str(tmp_path), fps=50.0, repeat=True) as one:
        one.opened()
        times = [one.frame()[0].captured_at for _ in range(26)]
    assert 0.4 < times[-1] - times[0] < 1.0


def test_recordings_that_cannot_be_read(tmp_path: Path) -> None:
    with source(kind="replay", path=str(tmp_path / "gone.mp4")) as one:
        assert one.trouble() == "it cannot be read: No such file or directory"
    (tmp_path / "bad.mp4").write_bytes(os.urandom(5000))
    with source(kind="replay", path=str(tmp_path / "bad.mp4")) as one:
        assert "cannot be opened as a video" in one.trouble()
    (tmp_path / "empty").mkdir()
    with source(kind="replay", path=str(tmp_path / "empty"), repeat=True) as one:
        assert one.trouble() == "it holds no picture that can be read"


# --- the process ------------------------------------------------------------------------------------------------------


def test_it_is_confined() -> None:
    with MjpegCamera(endless) as camera, source(kind="mjpeg", url=camera.url) as one:
        one.opened()
        limits = Path(f"/proc/{one.process.pid}/limits").read_text()
        rows = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()[1:]}
        assert rows["Max data size"] == str(1 << 30)
        assert rows["Max core file size"] == "0"
        assert rows["Max open files"] == "256"
        assert "NoNewPrivs:\t1" in Path(f"/proc/{one.process.pid}/status").read_text()
        maps = Path(f"/proc/{one.process.pid}/maps").read_text()
        assert "numpy" not in maps and "cv2" not in maps, "JPEGs are passed on without either"


def test_it_ends_when_the_worker_hangs_up() -> None:
    with MjpegCamera(endless) as camera, source(kind="mjpeg", url=camera.url) as one:
        one.opened()
        one.frame()
        one.channel.close()
        assert one.process.wait(5) == 0


def test_no_camera_is_one_sentence(tmp_path: Path) -> None:
    with source(kind="v4l2", path="/dev/video987") as one:
        assert one.trouble() == "there is no such device: is the camera plugged in?"
    with source(kind="v4l2", path="/dev/null") as one:
        assert one.trouble()  # ENOTTY: no video device
    (tmp_path / "file").write_text("")
    with source(kind="v4l2", path=str(tmp_path / "file")) as one:
        assert one.trouble() == "it is no camera"
