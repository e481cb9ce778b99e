"""The `cloudd` command as a person uses it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloudd import config
from cloudd.cli.common import ago, duration, printable
from cloudd.config import ConfigError
from edgekit.identity import parse_token
from edgekit.messages import HardSample, Verdict
from edgekit.regions.cutouts import Context, region
from edgekit.regions.mosaic import compose
from edgekit.regions.select import Candidate
from edgekit.vision.images import decode, encode_png
from tests.edgekit.vision.detection.detection_models import rectangle_package
from tests.support.cloud import Cloud, FakeDevice, ask
from tests.support.models import make_package, picture


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud"), "--name", "plant 7") as running:
        yield running


def cloudd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloudd.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def ok(cloud: Cloud, *arguments: str) -> str:
    done = cloudd(*arguments, "--state", str(cloud.state))
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_way_of_a_device(cloud: Cloud, tmp_path: Path) -> None:
    assert "cloudd invite" in ok(cloud, "devices", "list")
    assert "edged join edg1." in ok(cloud, "invite", "--ttl", "30m", "--name", "press 4")
    made = json.loads(ok(cloud, "invite", "--name", "press 4", "--json"))
    device = FakeDevice(tmp_path / "device")
    assert (await device.enroll(cloud, parse_token(made["token"]))).status == 200
    listing = ok(cloud, "devices", "list")
    assert "press 4" in listing and device.id.split("-")[0] in listing and "offline" in listing

    (tmp_path / "solder.toml").write_text('name = "solder"\nmodel = "small"\n')
    assert "will be told when it connects" in ok(cloud, "devices", "desired", "press 4", str(tmp_path / "solder.toml"))
    assert "1 services" in ok(cloud, "devices", "show", "press 4")
    assert "is locked out" in ok(cloud, "devices", "revoke", "press 4", "--reason", "stolen")
    assert "revoked" in ok(cloud, "devices", "list")
    assert "may connect again" in ok(cloud, "devices", "restore", "press 4")
    shown = json.loads(ok(cloud, "devices", "show", device.id, "--json"))
    assert shown["device"]["name"] == "press 4" and not shown["device"]["revoked"]


async def test_the_way_of_a_sample(cloud: Cloud, tmp_path: Path) -> None:
    make_package(tmp_path / "model", "large", "2")
    assert "large@2 is registered" in ok(cloud, "models", "add", str(tmp_path / "model"))
    assert "large@2" in ok(cloud, "models", "list")
    assert "package.toml" in ok(cloud, "models", "show", "large")
    device = FakeDevice(tmp_path / "device")
    await device.enroll(cloud, cloud.invite())
    for number in range(3):
        sample = HardSample(
            sample_id=f"s-{number}",
            service="solder",
            answer_model="large",
            edge=Verdict(label="ok", score=0.5, margin=0.1, model="small@1"),
            reason="hard",
            captured_at=time.time(),
            serial="\x1b[31mred",
        )
        assert (await ask(device, cloud, sample, picture(0.2 + 0.3 * number))).status == 200
    listing = ok(cloud, "answers", "list", "--limit", "2")
    assert listing.count("solder") == 2 and "\x1b" not in listing
    newest = json.loads(ok(cloud, "answers", "list", "--json"))[0]["id"]
    assert "s-2" in ok(cloud, "answers", "show", newest)
    assert "3 answers with 3 pictures" in ok(cloud, "answers", "export", str(tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [line["sample_id"] for line in lines] == ["s-2", "s-1", "s-0"]
    assert (tmp_path / "out" / lines[0]["picture"]).read_bytes() == picture(0.8)


async def test_the_way_of_a_mosaic(cloud: Cloud, tmp_path: Path) -> None:
    """Two white rectangles of a black frame are cut out and asked about, and one place where there is nothing."""
    frame = np.zeros((480, 640), np.uint8)
    truths = [(20, 20, 120, 60), (400, 300, 440, 380)]
    for left, top, right, bottom in truths:
        frame[top:bottom, left:right] = 255
    wanted = [
        (*map(float, truths[0]), "rectangle"),
        (*map(float, truths[1]), "other"),
        (200.0, 200.0, 240.0, 230.0, ""),
    ]
    asked = [
        region(i, Candidate((left, top, right, bottom), label, 0.6, 0.2), "hard", Context(), 640, 480)
        for i, (left, top, right, bottom, label) in enumerate(wanted)
    ]
    mosaic = compose(frame, asked, longest=100)
    rectangle_package(tmp_path / "finder")
    assert "finder@1 is registered" in ok(cloud, "models", "add", str(tmp_path / "finder"))
    device = FakeDevice(tmp_path / "device")
    await device.enroll(cloud, cloud.invite())
    edge = Verdict(label="other", score=0.6, margin=0.2, model="small@1")
    sample = HardSample(
        sample_id="m-1", service="boards", answer_model="finder", edge=edge, reason="hard", captured_at=1.0,
        mosaic=mosaic.header,
    )  # fmt: skip
    assert (await ask(device, cloud, sample, mosaic.encode(webp=True))).status == 200
    whole = msgspec.structs.replace(sample, sample_id="w-1", mosaic=None)
    assert (await ask(device, cloud, whole, encode_png(frame))).status == 200

    assert "1 of 3 regions differ" in ok(cloud, "answers", "list")
    number = next(one["id"] for one in json.loads(ok(cloud, "answers", "list", "--json")) if one["sample_id"] == "m-1")
    shown = ok(cloud, "answers", "show", number)
    assert "rectangle 0.90  differs" in shown and shown.count("nothing") == 2

    ok(cloud, "answers", "export", str(tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    (line,) = (one for one in lines if one["sample_id"] == "m-1")
    assert [(one["edge"]["label"], one["cloud"]["label"], one["differs"]) for one in line["parts"]] == [
        ("rectangle", "rectangle", False), ("other", "rectangle", True), ("", "", False),
    ]  # fmt: skip
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [one["name"] for one in coco["categories"]] == ["rectangle"]
    assert len(coco["images"]) == 2, "pictures that were only classified are not among them"
    assert line["picture"] == f"{number}.png", "it came as WebP, which few programs that train read"
    for image in coco["images"]:
        pixels = decode((tmp_path / "out" / image["file_name"]).read_bytes(), "grey")
        assert (image["width"], image["height"]) == (pixels.shape[1], pixels.shape[0])
        boxes = [one["bbox"] for one in coco["annotations"] if one["image_id"] == image["id"]]
        for left, top, across, down in boxes:
            inside = pixels[round(top) : round(top + down), round(left) : round(left + across)]
            if image["id"] == int(number):
                assert inside.mean() > 180, "the box is on a white rectangle of the picture beside it"
        assert len(boxes) == (2 if image["id"] == int(number) else 1)


def test_status(cloud: Cloud) -> None:
    text = ok(cloud, "status")
    assert "plant 7" in text and cloud.url in text and cloud.page in text
    assert json.loads(ok(cloud, "status", "--json"))["about"]["fingerprint"] == cloud.about["fingerprint"]


def test_refusals_are_one_sentence_and_a_status(cloud: Cloud, tmp_path: Path) -> None:
    state = str(cloud.state)
    for arguments, status, words in [
        (("devices", "show", "nobody", "--state", state), 1, "there is no device 'nobody'"),
        (("devices", "desired", "nobody", "--state", state), 1, "name at least one FILE"),
        (("devices", "desired", "x", str(tmp_path / "none.toml"), "--state", state), 1, "none.toml"),
        (("models", "add", str(tmp_path), "--state", state), 1, "package.toml"),
        (("status", "--state", str(tmp_path)), 3, "not running here"),
        (("invite", "--ttl", "soon", "--state", state), 2, "is no duration"),
        (("invite", "--ttl", "99d", "--state", state), 2, "the longest is 30d"),
        (("invite", "--name", "x" * 65, "--state", state), 2, "at most 64 characters"),
        (("answers", "list", "--limit", "-3", "--state", state), 2, "whole number from 1 up"),
        (("run", "--config", "/none.toml", "--state", str(tmp_path)), 1, "cloudd: /none.toml: No such file"),
        (("run", "--listen", "here", "--state", str(tmp_path)), 1, "ADDRESS:PORT"),
        (("run", "--dashboard", "0.0.0.0:1", "--state", str(tmp_path)), 1, "loopback only"),
        (("run", "--database", "nosql://x", "--state", str(tmp_path / "s")), 1, "nosql"),
        ((), 2, "VERB"),
    ]:
        done = cloudd(*arguments)
        assert done.returncode == status and words in done.stderr, (arguments, done)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["", "run", "invite", "devices", "devices desired", "models add", "answers export"])
def test_help(verb: str) -> None:
    done = cloudd(*verb.split(), "--help")
    assert done.returncode == 0 and len(done.stdout) > 200


def test_version() -> None:
    assert cloudd("version").stdout.startswith("cloudd 0.")
    assert json.loads(cloudd("version", "--json").stdout)["protocol"] == 1


def test_settings_come_from_the_file_and_then_from_flags(tmp_path: Path) -> None:
    file = tmp_path / "cloudd.toml"
    file.write_text('name = "file"\nlisten = "[::]:9000"\nheartbeat_s = 2.5\n')
    settings = config.load(config.find_config(None, tmp_path), {"name": "flag", "listen": None})
    assert (settings.name, settings.listen, settings.heartbeat_s) == ("flag", "[::]:9000", 2.5)
    assert config.load(None, {}).name
    for text, words in [
        ('nmae = "x"', "nmae"),
        ("heartbeat_s = 0", "heartbeat_s"),
        ('listen = "example.org:1"', "not an IP address"),
        ('listen = "1.2.3.4:99999"', "ADDRESS:PORT"),
        ('dashboard = "10.0.0.1:80"', "loopback"),
        ("name = [", "TOML"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            config.load(file, {})


def test_where_files_are(tmp_path: Path) -> None:
    assert config.default_state_dir({"STATE_DIRECTORY": "/a:/b"}) == Path("/a")
    assert config.runtime_dir(tmp_path, {"RUNTIME_DIRECTORY": "/run/x"}) == Path("/run/x")
    assert config.runtime_dir(tmp_path, {}) == tmp_path / "run"
    with pytest.raises(ConfigError, match="too long"):
        config.runtime_dir(tmp_path / ("x" * 120), {})
    assert config.find_socket(tmp_path, {}) == tmp_path / "run" / "cloudd.sock"


def test_small_things_for_people() -> None:
    assert [ago(at, 100_000.0) for at in (99_990.0, 99_000.0, 90_000.0, 0.0, None)] == [
        "10 s ago",
        "17 min ago",
        "3 h ago",
        "1 d ago",
        "never",
    ]
    assert [duration(text) for text in ("90", "90s", "30m", "2h", "7d")] == [90, 90, 1800, 7200, 604_800]
    with pytest.raises(argparse.ArgumentTypeError):
        duration("m")
    assert printable("a\x1b[0m\nb") == "a?[0m?b"
