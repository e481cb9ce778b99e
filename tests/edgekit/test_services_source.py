"""The `source` table: what is accepted, what each error says, and what cloudd may not name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.paths import check_paths
from edgekit.services import CAMERAS, ServiceError, dump_service, parse_service, place

GOOD = {
    "v4l2": 'path = "/dev/video2"\nwidth = 1280\nheight = 720\nfps = 7.5\nsilent_s = 0',
    "rtsp": 'url = "rtsp://10.0.0.9:554/stream?channel=1"\ncredentials = "/etc/edged/camera"\ntransport = "udp"',
    "mjpeg": 'url = "https://camera.plant/video?user=x&pwd=y"\nfps = 5',
    "replay": 'path = "/srv/film.mp4"\nspeed = 0.5\nrepeat = true\npattern = "*.jpg"',
}


def service(kind: str, rest: str) -> str:
    return f'name = "solder"\nmodel = "small"\n[source]\nkind = "{kind}"\n{rest}'


@pytest.mark.parametrize("kind", GOOD)
def test_cameras_are_read_and_written(kind: str) -> None:
    one = parse_service(service(kind, GOOD[kind]), "x")
    assert one.source.kind == kind
    assert parse_service(dump_service(one), "x") == one


def test_every_camera_has_an_example() -> None:
    assert set(GOOD) == CAMERAS


def test_a_camera_by_its_name() -> None:
    path = "/dev/v4l/by-id/usb-046d_HD_Pro_Webcam_C920-video-index0"
    assert parse_service(service("v4l2", f'path = "{path}"'), "x").source.path == path


@pytest.mark.parametrize(
    ("kind", "rest", "said"),
    [
        ("v4l2", "", '"source.path" is ""'),
        ("v4l2", 'path = "/dev/sda"', "a camera like /dev/video0"),
        ("v4l2", 'path = "/dev/video0"\nwidth = 640', '"source.width" and "source.height" belong together'),
        ("v4l2", 'path = "/dev/video0"\nurl = "rtsp://x/"', '"source.url" is set'),
        ("rtsp", "", '"source.url" is ""'),
        ("rtsp", 'url = "http://x/"', "a URL like rtsp://"),
        ("rtsp", 'url = "file:///etc/passwd"', "a URL like rtsp://"),
        ("rtsp", 'url = "rtsp://x/ y"', "a URL like rtsp://"),
        ("rtsp", 'url = "rtsp://x:99999/"', "a URL like rtsp://"),
        ("rtsp", 'url = "rtsp://[x/"', "a URL like rtsp://"),
        ("rtsp", 'url = "rtsp://x/"\ncredentials = "camera.txt"', "an absolute path"),
        ("mjpeg", 'url = "rtsp://x/"', "a URL like http://"),
        ("mjpeg", 'url = "http://x/"\nspeed = 2', '"source.speed" is set'),
        ("replay", 'path = "film.mp4"', "an absolute path"),
        ("replay", 'path = "/film.mp4"\nspeed = 0', '"source.speed" is 0'),
        ("replay", 'path = "/film"\npattern = "a/b"', "a file name pattern"),
        ("http", "fps = 5", '"source.fps" is set'),
        ("folder", 'path = "/in"\nrepeat = true', '"source.repeat" is set'),
        ("webcam", "", "one of"),
    ],
)
def test_errors_name_the_key(kind: str, rest: str, said: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse_service(service(kind, rest), "x")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "url", ["rtsp://opera:s3cret@10.0.0.9/x", "http://opera:s3cret@x/", "rtsp://opera:s3cret@[bad"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse_service(service("rtsp", f'url = "{url}"'), "x")
    assert "s3cret" not in str(caught.value)


def test_places_for_people_hide_queries() -> None:
    assert place(parse_service(service("mjpeg", GOOD["mjpeg"]), "x").source) == "mjpeg https://camera.plant/video"
    assert place(parse_service(service("v4l2", GOOD["v4l2"]), "x").source) == "v4l2 /dev/video2"
    assert place(parse_service('name = "x"\nmodel = "m"', "x").source) == "http"


@pytest.mark.parametrize(
    ("kind", "rest"),
    [
        ("v4l2", 'path = "/dev/video0"'),
        ("replay", 'path = "/etc"'),
        ("rtsp", 'url = "rtsp://10.0.0.9/"\ncredentials = "/etc/shadow"'),
    ],
)
def test_cloudd_may_not_name_files_and_devices_of_its_choice(kind: str, rest: str, tmp_path: Path) -> None:
    one = parse_service(service(kind, rest), "cloudd")
    with pytest.raises(ServiceError, match="allow_paths"):
        check_paths(one, [tmp_path], "cloudd", ["10.0.0.9"])
    check_paths(one, [Path("/dev"), Path("/etc")], "cloudd", ["10.0.0.9"])


@pytest.mark.parametrize("url", ["rtsp://10.0.0.9/", "rtsp://10.0.0.9:554/x", "rtsps://[fe80::1]:8554/"])
def test_cloudd_may_name_only_cameras_that_the_device_allows(url: str) -> None:
    one = parse_service(service("rtsp", f'url = "{url}"'), "cloudd")
    with pytest.raises(ServiceError, match="allow_hosts"):
        check_paths(one, [], "cloudd", ["10.0.0.8", "10.0.0.9:8554", "[fe80::1]:322"])
    check_paths(one, [], "cloudd", ["10.0.0.9:554", "[FE80::1]"])
