"""The un-folded checkpoint of a package: a declared, listed and bounded folder that nothing is served from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgekit.packages import (
    CheckpointSpec,
    InputSpec,
    Manifest,
    PackageError,
    Variant,
    checkpoint,
    checkpoint_files,
    install,
    learning_file,
    manifest_text,
    open_package,
    parse_manifest,
    seal_package,
)

BASE = Manifest(
    name="solder-small",
    version="1",
    labels="labels.txt",
    input=InputSpec(width=8, height=8),
    variants=[Variant(file="fast.onnx", precision="int8"), Variant(file="model.onnx")],
    checkpoint=CheckpointSpec(file="checkpoint/model.onnx"),
)
CONTENT = {
    "fast.onnx": b"8 bits",
    "model.onnx": b"folded",
    "labels.txt": b"good\nbad\n",
    "checkpoint/model.onnx": b"not folded",
    "checkpoint/weights.safetensors": b"weights",
}


def folder(root: Path) -> Path:
    for name, data in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_a_package_with_a_checkpoint_opens_and_installs_with_all_its_files(tmp_path: Path) -> None:
    seal_package(folder(tmp_path / "package"), BASE)
    package = install(tmp_path / "package", tmp_path / "models")
    assert package.manifest.checkpoint == BASE.checkpoint
    assert checkpoint_files(package.manifest) == ["checkpoint/model.onnx", "checkpoint/weights.safetensors"]
    assert learning_file(package.manifest) == "checkpoint/model.onnx"
    assert [one.file for one in package.manifest.variants] == ["fast.onnx", "model.onnx"]


def test_without_one_the_first_float_file_learns_and_the_manifest_is_what_it_was() -> None:
    plain = msgspec.structs.replace(BASE, checkpoint=None)
    assert learning_file(plain) == "model.onnx" and checkpoint_files(plain) == []
    assert "checkpoint" not in manifest_text(plain)
    assert learning_file(msgspec.structs.replace(plain, variants=plain.variants[:1])) is None
    assert learning_file(msgspec.structs.replace(BASE, variants=BASE.variants[:1])) == "checkpoint/model.onnx"


def test_a_changed_checkpoint_is_refused_by_its_hash(tmp_path: Path) -> None:
    seal_package(folder(tmp_path), BASE)
    (tmp_path / "checkpoint" / "weights.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(PackageError, match=r"weights\.safetensors.*was changed or damaged"):
        open_package(tmp_path)


def test_more_bytes_than_a_checkpoint_may_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_CHECKPOINT", 16)
    with pytest.raises(PackageError, match="the checkpoint has 17 bytes; 16 are allowed"):
        seal_package(folder(tmp_path), BASE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": CheckpointSpec(file="plain.onnx")}, "it needs a folder of its own"),
        ({"checkpoint": CheckpointSpec(file="../plain.onnx")}, "must name a file inside the package"),
        ({"checkpoint": CheckpointSpec(file="gone/model.onnx")}, r'"checkpoint.file" names .*does not list'),
        ({"variants": [Variant(file="checkpoint/model.onnx")]}, "the folder of the checkpoint, which is for it alone"),
    ],
)
def test_a_wrong_table_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        seal_package(folder(tmp_path), msgspec.structs.replace(BASE, **changes))


def test_an_unknown_key_in_the_table_is_refused() -> None:
    text = manifest_text(msgspec.structs.replace(BASE, files=dict.fromkeys(CONTENT, "0" * 64)))
    assert parse_manifest(text.encode()).checkpoint == BASE.checkpoint
    with pytest.raises(PackageError, match="epoch"):
        parse_manifest(text.replace("[checkpoint]\n", "[checkpoint]\nepoch = 3\n").encode())
