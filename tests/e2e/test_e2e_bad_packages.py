"""Packages that lie, given to both daemons: each refused with the reason, nothing of it kept, and nobody harmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.packages import open_package, seal_package
from tests.support.edged import wait_for
from tests.support.hostile import PNG, device_api, error_of, hard_sample, start, unharmed
from tests.support.models import make_package
from tests.support.stage import EASY, Plant, Template


@pytest.fixture(scope="module")
def plant(template: Template) -> Iterator[Plant]:
    with Plant(template) as plant:
        start(plant)
        yield plant


@pytest.fixture(autouse=True)
def nobody_is_harmed(plant: Plant) -> Iterator[None]:
    with unharmed(plant):
        yield


def wrong_hash(package: Path) -> str:
    (package / "labels.txt").write_text("dark\nbroken\n")
    return "labels.txt"


def listed_symlink(package: Path) -> str:
    secret = package.parent / "elsewhere.txt"
    (package / "labels.txt").rename(secret)
    (package / "labels.txt").symlink_to(secret)
    return "symbolic link"


def path_traversal(package: Path) -> str:
    (package.parent / "secret.txt").write_text("secret")
    manifest = package / "package.toml"
    text = manifest.read_text()
    assert "[files]\n" in text
    manifest.write_text(text.replace("[files]\n", f'[files]\n"../secret.txt" = "{"0" * 64}"\n'))
    return "../secret.txt"


def unlisted_file(package: Path) -> str:
    (package / "evil.so").write_bytes(b"\x7fELF")
    return "evil.so"


def missing_file(package: Path) -> str:
    (package / "samples" / "0.png").unlink()
    return "samples/0.png"


def unknown_key(package: Path) -> str:
    manifest = package / "package.toml"
    manifest.write_text('colour = "red"\n' + manifest.read_text())
    return "colour"


def no_manifest(package: Path) -> str:
    (package / "package.toml").unlink()
    return "package.toml"


SPOILERS = [wrong_hash, listed_symlink, path_traversal, unlisted_file, missing_file, unknown_key, no_manifest]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_package_is_refused_by_both_daemons(
    plant: Plant, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    package = make_package(tmp_path / "spoiled", "spoiled").root
    words = spoil(package)
    before = snapshot(plant)
    for daemon, name in ((plant.edge, "edged"), (plant.cloud, "cloudd")):
        done = daemon.command("models", "add", str(package))
        assert done.returncode == 1, done
        assert done.stderr.startswith(f"{name}: ") and words in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not done.stdout
    assert snapshot(plant) == before, "nothing of it stays"


def snapshot(plant: Plant) -> tuple[list[str], list[str]]:
    """Installed and registered models, and every file of the two stores."""
    stores = [plant.edge.state_dir / "models", plant.cloud.state_dir / "blobs"]
    files = sorted(str(path) for store in stores for path in store.rglob("*") if path.is_file())
    return files, [model["name"] for model in plant.cloud.client.get("/models")]


def alien(folder: Path, name: str, domain: str) -> Path:
    """A well-formed package whose model needs an operator that no runtime here has."""
    root = make_package(folder / name, name, samples=False).root
    graph = helper.make_graph(
        [helper.make_node("Summon", ["input"], ["logits"], domain=domain)],
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
    )
    imports = [helper.make_opsetid("", 13), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=imports), str(root / "model.onnx"))
    manifest = open_package(root, verify=False).manifest
    (root / "package.toml").unlink()
    return seal_package(root, manifest).root


def refusal(plant: Plant, path: str) -> str:
    """The sentence of a 503; a worker that is being replaced may ask us to come again, never to go away for good."""

    def attempt() -> str:
        status, reply = plant.edge.request("POST", path, PNG)
        assert status == 503, reply
        text = error_of(status, reply)
        return "" if "connect again" in text else text

    return wait_for(attempt)


def test_an_unknown_operator_fails_its_service_alone(template: Template, tmp_path: Path) -> None:
    """A package is bytes that are what they say; what runs is proved by the worker, before the line depends on it.

    A new service fails with the reason; one that ran goes on with the model it had.
    """
    with Plant(template) as plant:
        plant.start_edge("https://127.0.0.1:1", wait_for_link=False)
        supervisor = plant.edge.pid
        for name, domain, words in (("foreign", "com.evil", "com.evil"), ("unheard", "", "Summon")):
            added = plant.edge.command("models", "add", str(alien(tmp_path, name, domain)))
            assert added.returncode == 0, added.stderr
            file = tmp_path / f"{name}.toml"
            file.write_text(f'name = "{name}"\nmodel = "{name}"\n')
            done = plant.edge.command("services", "add", str(file))
            assert done.returncode == 1 and words in done.stderr + done.stdout, done
            assert words in refusal(plant, f"/v1/services/{name}/inspect")
        changed = tmp_path / "solder.toml"
        changed.write_text('name = "solder"\nmodel = "foreign"\n')
        done = plant.edge.command("services", "add", str(changed))
        assert done.returncode == 1 and "com.evil" in done.stderr + done.stdout, done
        decision = plant.send("solder", EASY)
        assert (decision.decided, decision.model) == ("edge", "small@1")
        status = plant.edge.status()
        assert plant.edge.pid == supervisor and status.worker.restarts == 0
        plant.edge.wait_for(
            lambda: all(
                any(name in item.text for item in plant.edge.status().health.items)
                for name in ("foreign", "unheard", "solder")
            ),
            "to list what cannot run",
        )


def test_an_unknown_operator_at_cloudd_is_an_error_in_words_and_its_other_model_answers(
    plant: Plant, tmp_path: Path
) -> None:
    added = plant.cloud.command("models", "add", str(alien(tmp_path, "foreign", "com.evil")))
    assert added.returncode == 0, added.stderr
    status, reply = device_api(plant, "/v1/answers", hard_sample(answer_model="foreign"))
    assert status == 503 and "com.evil" in error_of(status, reply)
    assert plant.send().decided == "cloud"
