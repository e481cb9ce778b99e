"""Two commands each: from a folder of good pictures to a served anomaly service, from one of things to identities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.api import ApiError, Done
from edged.gallery.records import EnrolReply, GalleryInfo
from edgekit.vision.images import encode_png
from tests.support.edged import Edged, wait_for
from tests.support.models import make_package
from tests.support.parts import make_embedder, part, quarters, thing, write_parts, write_things

CHILD = {name: value for name, value in os.environ.items() if not name.startswith(("EDGED_", "STATE_"))}
RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.9, 0.1)
PEOPLE = {"Anna": (RED, BLUE, RED, BLUE), "Bert": (BLUE, RED, GREEN, GREEN), "Cora": (GREEN, GREEN, RED, BLUE)}


@pytest.fixture(scope="module")
def edged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edged]:
    with Edged(tmp_path_factory.mktemp("gallery") / "state") as edged:
        yield edged


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=110, env=CHILD, check=False)


def said(*arguments: object) -> str:
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def here(edged: Edged, *arguments: object) -> tuple[object, ...]:
    return "edged", "--state", edged.state, *arguments


def decided(edged: Edged, service: str, picture: bytes, place: Path) -> dict[str, object]:
    place.write_bytes(picture)
    found: dict[str, object] = json.loads(said(*here(edged, "inspect", service, place, "--json")))
    return found[0] if isinstance(found, list) else found


def test_from_a_folder_of_good_pictures_to_a_served_anomaly_service(edged: Edged, tmp_path: Path) -> None:
    good = write_parts(tmp_path / "good", 20)
    said("cloudd.cli.main", "train", "--task", "anomaly", "--data", good, "--model", "plate", "--out", tmp_path)
    assert "The service plate is ready with plate@1." in said(*here(edged, "services", "add", tmp_path / "plate@1"))
    decision = decided(edged, "plate", encode_png(part(600, "hole")), tmp_path / "bad.png")
    assert (decision["label"], decision["verdict"]) == ("anomaly", "fail") and decision["regions"]
    decision = decided(edged, "plate", (good / "0001.png").read_bytes(), tmp_path / "good.png")
    assert (decision["label"], decision["verdict"]) == ("normal", "pass")
    again = command(*here(edged, "services", "add", tmp_path / "plate@1"))
    assert again.returncode == 1 and "there is a service plate already" in again.stderr
    refused = command(*here(edged, "gallery", "list", "plate"))
    assert refused.returncode == 1 and 'plate has the task "anomaly" and no gallery' in refused.stderr


def test_from_a_folder_of_things_to_an_identity_service_with_an_unknown_answer(edged: Edged, tmp_path: Path) -> None:
    things = write_things(tmp_path / "things", range(10), 3)
    said("cloudd.cli.main", "train", "--task", "embedding", "--data", things, "--model", "things", "--out", tmp_path)
    text = said(*here(edged, "gallery", "enrol", "things", things, "--package", tmp_path / "things@1"))
    assert "The service things is ready with things@1." in text
    assert "things: 30 new pictures of 10 identities, 0 were there already." in text
    assert "10 identities by 30 pictures" in text
    decision = decided(edged, "things", encode_png(thing(3, 77)), tmp_path / "known.png")
    assert (decision["label"], decision["verdict"]) == ("thing-003", "pass")
    decision = decided(edged, "things", encode_png(thing(555, 1)), tmp_path / "other.png")
    assert (decision["label"], decision["verdict"]) == ("unknown", "fail")


def test_enrolling_listing_and_forgetting(edged: Edged, tmp_path: Path) -> None:
    package = make_embedder(tmp_path / "door@1", "door").root
    people = tmp_path / "people"
    for number, (name, colours) in enumerate(PEOPLE.items()):
        (people / name).mkdir(parents=True)
        for look in range(2):
            (people / name / f"{look}.png").write_bytes(quarters(*colours, noise=10 * number + look))
    said(*here(edged, "services", "add", package))
    assert "door: 6 new pictures of 3 identities" in said(*here(edged, "gallery", "enrol", "door", people))
    assert "door: 0 new pictures of 3 identities, 6 were" in said(*here(edged, "gallery", "enrol", "door", people))
    one = tmp_path / "dora.png"
    one.write_bytes(quarters(RED, RED, BLUE, BLUE, noise=99))
    assert "1 new picture of 1 identity," in said(*here(edged, "gallery", "enrol", "door", one, "--as", "Dora"))
    stranger = tmp_path / "stranger.png"
    stranger.write_bytes(quarters(GREEN, RED, RED, GREEN, noise=98))
    assert "1 new picture of strangers" in said(*here(edged, "gallery", "strangers", "door", stranger))
    shown = json.loads(said(*here(edged, "gallery", "list", "door", "--json")))
    assert [(one["name"], one["pictures"]) for one in shown["identities"]] == [
        ("Anna", 2), ("Bert", 2), ("Cora", 2), ("Dora", 1),
    ]  # fmt: skip
    assert shown["strangers"] == 1 and shown["identities"][0]["models"] == ["door@1"]
    text = said(*here(edged, "gallery", "list", "door"))
    assert "Anna" in text and "4 identities, 1 picture of strangers." in text and "the package's" in text

    assert decided(edged, "door", quarters(*PEOPLE["Anna"], noise=5), one)["label"] == "Anna"
    assert "Anna is forgotten, with 2 pictures." in said(*here(edged, "gallery", "remove", "door", "Anna"))
    wait_for(lambda: decided(edged, "door", quarters(*PEOPLE["Anna"], noise=5), one)["label"] == "unknown", 20)
    gone = command(*here(edged, "gallery", "remove", "door", "Anna"))
    assert gone.returncode == 1 and "Anna is not enrolled in door" in gone.stderr
    assert "1 picture of strangers is forgotten." in said(*here(edged, "gallery", "clear", "door", "--strangers"))
    assert "Everybody in the gallery of door is forgotten" in said(
        *here(edged, "gallery", "clear", "door", "--everybody")
    )
    stored = (edged.state / "gallery" / "gallery.db").read_bytes()
    assert b"Bert" not in stored


def test_who_was_enrolled_is_known_after_the_power_failed(tmp_path: Path) -> None:
    package = make_embedder(tmp_path / "door@1", "door").root
    state, one = tmp_path / "state", tmp_path / "anna.png"
    one.write_bytes(quarters(*PEOPLE["Anna"], noise=1))
    with Edged(state) as edged:
        said(*here(edged, "gallery", "enrol", "door", one, "--as", "Anna", "--package", package))
        edged.kill()
    with Edged(state) as edged:
        edged.wait_ready("door")
        assert decided(edged, "door", quarters(*PEOPLE["Anna"], noise=2), one)["label"] == "Anna"


def test_what_goes_wrong_is_said(edged: Edged, tmp_path: Path) -> None:
    unknown = command(*here(edged, "gallery", "list", "nobody"))
    assert unknown.returncode == 1 and "there is no service nobody, and no gallery of one" in unknown.stderr
    nowhere = command(*here(edged, "gallery", "enrol", "nobody", __file__, "--as", "Anna"))
    assert nowhere.returncode == 1 and "there is no service nobody" in nowhere.stderr
    loose = tmp_path / "loose.png"
    loose.write_bytes(quarters(RED, RED, RED, RED))
    unnamed = command(*here(edged, "gallery", "enrol", "nobody", loose))
    assert unnamed.returncode == 1 and "say whom" in unnamed.stderr
    other = make_package(tmp_path / "brightness").root
    wrong = command(*here(edged, "gallery", "enrol", "x", loose, "--as", "A", "--package", other))
    assert wrong.returncode == 1 and 'a gallery needs "embedding"' in wrong.stderr
    empty = command(*here(edged, "services", "add", tmp_path))
    assert empty.returncode == 1 and "holds no package that could be served" in empty.stderr


def test_the_local_api_takes_no_nonsense(edged: Edged) -> None:
    for call, status in (
        (lambda: edged.client.post("/gallery/x/pictures?identity=A", EnrolReply, b""), 400),
        (lambda: edged.client.post("/gallery/x/pictures?identity=A", EnrolReply, bytes(17 << 20)), 413),
        (lambda: edged.client.get("/gallery/never-was", GalleryInfo), 404),
        (lambda: edged.client.delete("/gallery/x?what=some", Done), 400),
        (lambda: edged.client.delete("/gallery/x/identities?name=", Done), 404),
        (lambda: edged.client.delete("/gallery/..%2f..%2fx/identities?name=y", Done), 404),
    ):
        with pytest.raises(ApiError) as caught:
            call()
        assert caught.value.status == status, caught.value
