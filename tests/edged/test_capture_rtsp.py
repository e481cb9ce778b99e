"""RTSP cameras on real sockets, over TCP and UDP: H.264, H.265, JPEG, lost packets, and a server of somebody else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from edged.capture.cameras.holes import Whole
from edged.capture.wire import FromSource, Opened, Trouble
from edgekit.vision.images import decode
from tests.support.cameras import RtspCamera
from tests.support.films import film, frames_of, needs_ffmpeg
from tests.support.models import picture
from tests.support.source_process import source

_SUPPORT = Path(__file__).resolve().parents[1] / "support"
_HAS_GSTREAMER = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; Gst.init();"
    "assert all(map(Gst.ElementFactory.find, ('qtdemux', 'h264parse', 'h265parse', 'rtph264pay', 'rtph265pay')))"
)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_with_mjpeg_is_passed_on_undecoded(transport: str) -> None:
    sent = [picture((number + 0.5) / 8, side=64, kind=".jpg", seed=number) for number in range(8)]
    with RtspCamera(sent) as camera, source(kind="rtsp", url=camera.url, transport=transport) as one:
        assert one.opened() == f"MJPG 64x64 over RTSP ({transport})"
        brightness = {round(float(decode(one.frame()[1]).mean())) for _ in range(8)}
    wanted = {round(float(decode(jpeg).mean())) for jpeg in sent}
    assert brightness <= wanted, "the same pixels: nothing was encoded again"
    assert len(brightness) > 3


@needs_ffmpeg
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc")])
def test_video_over_rtsp_is_decoded_and_encoded_once(tmp_path: Path, codec: str, name: str, transport: str) -> None:
    path = film(tmp_path / "film.mp4", codec, fps=25)
    known = frames_of(path).astype(np.int16)
    with RtspCamera(path) as camera, source(kind="rtsp", url=camera.url, transport=transport) as one:
        assert one.opened() == f"{name} 160x128 over RTSP ({transport})"
        for _ in range(5):
            shown = decode(one.frame()[1])
            assert np.abs(known - shown).mean(axis=(1, 2, 3)).min() < 6, "it is one of the film's pictures"


@needs_ffmpeg
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(("codec", "parser", "name"), [("libx264", "h264", "h264"), ("libx265", "h265", "hevc")])
def test_a_server_of_somebody_else(tmp_path: Path, codec: str, parser: str, name: str, transport: str) -> None:
    if subprocess.run(["/usr/bin/python3", "-c", _HAS_GSTREAMER], capture_output=True).returncode:
        pytest.skip("needs GStreamer's RTSP server: see tests/support/gstreamer_camera.py")
    path = film(tmp_path / "film.mp4", codec, seconds=8)
    known = frames_of(path).astype(np.int16)
    command = ["/usr/bin/python3", str(_SUPPORT / "gstreamer_camera.py"), str(path), parser]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"rtsp://127.0.0.1:{int(server.stdout.readline())}/line"
        try:
            with source(kind="rtsp", url=url, transport=transport) as one:
                assert one.opened() == f"{name} 160x128 over RTSP ({transport})"
                for _ in range(10):
                    shown = decode(one.frame()[1])
                    assert np.abs(known - shown).mean(axis=(1, 2, 3)).min() < 6
        finally:
            server.kill()


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_with_lost_packets_and_those_that_build_on_them_are_left_out(tmp_path: Path, codec: str) -> None:
    path = film(tmp_path / "film.mp4", codec, fps=25)
    known = frames_of(path).astype(np.int16)
    lost = {31, 58, 59, 97}
    with (
        RtspCamera(path, loses=lost.__contains__) as camera,
        source(kind="rtsp", url=camera.url, transport="udp") as one,
    ):
        one.opened()
        frames = [decode(one.frame()[1]) for _ in range(50)]
    assert max(np.abs(known - shown).mean(axis=(1, 2, 3)).min() for shown in frames) < 6


@needs_ffmpeg
def test_a_stream_without_whole_frames_is_said(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", "libx264", fps=25)
    with (
        RtspCamera(path, loses=lambda number: number > 60 and number % 5 == 0) as camera,
        source(kind="rtsp", url=camera.url, transport="udp", silent_s=1.0) as one,
    ):
        message: FromSource = Opened(text="")
        while not isinstance(message, Trouble):
            one.more()
            message, _ = one.next()
        assert message.text == (
            'so many packets get lost that no picture was whole for 0.8 s; source.transport = "tcp" loses none'
        )


def test_the_frame_with_a_hole_the_one_after_it_and_all_until_one_stands_alone() -> None:
    whole = Whole()
    seen = [
        (0, "I"),
        (0, "P"),
        (1, "P"),
        (1, "I"),
        (1, "P"),
        (1, "I"),
        (1, "P"),
        (2, "I"),
        (3, "I"),
        (3, "P"),
        (3, "I"),
    ]
    judged = [whole.look(holes, kind == "I") for holes, kind in seen]
    assert judged == [True, True, False, False, False, True, True, False, False, False, True]


@needs_ffmpeg
def test_pictures_of_a_large_video_come_whole_over_udp(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", "libx264", seconds=1.0, fps=25, size="1920x1080")
    with RtspCamera(path) as camera, source(kind="rtsp", url=camera.url, transport="udp") as one:
        assert one.opened() == "h264 1920x1080 over RTSP (udp)"
        assert {decode(one.frame()[1]).shape for _ in range(5)} == {(1080, 1920, 3)}


def test_rtsp_credentials(tmp_path: Path) -> None:
    secret = tmp_path / "camera.txt"
    secret.write_text("opera:p@ss/word:x")
    jpegs = [picture(0.5, side=64, kind=".jpg")]
    with RtspCamera(jpegs, user="opera:p@ss/word:x") as camera:
        with source(kind="rtsp", url=camera.url, credentials=str(secret)) as one:
            one.opened()
            one.frame()
        secret.write_text("opera:s3cret")
        with source(kind="rtsp", url=camera.url, credentials=str(secret)) as one:
            said = one.trouble()
            one.process.kill()
            assert one.process.stderr is not None
            assert "s3cret" not in said + one.process.stderr.read().decode()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_stream_that_breaks_is_said(transport: str) -> None:
    jpegs = [picture(0.5, side=64, kind=".jpg")]
    with RtspCamera(jpegs) as camera, source(kind="rtsp", url=camera.url, transport=transport) as one:
        one.opened()
        one.frame()
        camera.hang_up()
        message: FromSource = Opened(text="")
        while not isinstance(message, Trouble):
            one.more()
            message, _ = one.next()
        assert message.text == "it ended its stream, or the connection broke"
