"""What a file is, told by its bytes; what must not be read is refused with what to do instead."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
from foreign_models import brightness, save
from hypothesis import given
from hypothesis import strategies as st

from cloudd.importing.errors import ImportRefused
from cloudd.importing.kinds import recognise


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def test_kinds_are_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    assert recognise(save(brightness(), tmp_path / "picture.jpg")) == "onnx"
    (tmp_path / "m.onnx").write_bytes(b"\x1c\0\0\0TFL3" + bytes(20))
    assert recognise(tmp_path / "m.onnx") == "tflite"
    scripted = {"m/code/__torch__.py": b"", "m/constants.pkl": b"", "m/data.pkl": b"", "m/version": b"3"}
    assert recognise(archive(tmp_path / "a", scripted)) == "torchscript"
    assert recognise(archive(tmp_path / "b", {"m/models/model.json": b"{}"})) == "exported"
    assert recognise(archive(tmp_path / "c", {"config.json": b"{}", "model.weights.h5": b""})) == "keras"
    (tmp_path / "d").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
    assert recognise(tmp_path / "d") == "keras"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    assert recognise(tmp_path / "saved") == "saved_model"


def test_pickles_are_never_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "executed"),))

    (tmp_path / "old.pt").write_bytes(pickle.dumps({"weights": Evil()}, protocol=2))
    new = archive(tmp_path / "new.pt", {"m/data.pkl": pickle.dumps(Evil()), "m/version": b"3"})
    for path in (tmp_path / "old.pt", new):
        with pytest.raises(ImportRefused, match=r"Python objects .* torch\.export\.save"):
            recognise(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"m/data/constants/opaque_obj_0": b"x"}, "carries Python objects"),
        (
            {"m/data/weights/model_weights_config.json": json.dumps({"config": {"w": {"use_pickle": True}}}).encode()},
            "keeps 'w' as a Python object",
        ),
        (
            {"m/data/constants/model_constants_config.json": json.dumps({"config": {"w": {}}}).encode()},
            "keeps 'w' as a Python object",
        ),
        ({"m/data/weights/model_weights_config.json": b"[" * 100_000}, "is damaged"),
        ({"m/data/weights/model_weights_config.json": b'{"config": 1}'}, "is damaged"),
    ],
)
def test_exported_programs_with_python_objects_are_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    path = archive(tmp_path / "m.pt2", {"m/models/model.json": b"{}", **files})
    with pytest.raises(ImportRefused, match=message):
        recognise(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"RKNN" + bytes(60), "Rockchip NPU"),
        (b"\x01HEF" + bytes(60), "Hailo NPU"),
        (b"<?xml version", "OpenVINO"),
        (b"GGUF" + bytes(60), "language model"),
        (b"\x10\0\0\0\0\0\0\0{" + bytes(60), "safetensors"),
        (b"7767517\n", "ncnn"),
        (b"hello, I am no model at all", "none of ONNX, TFLite"),
    ],
)
def test_what_is_known_and_not_taken_says_what_to_do(tmp_path: Path, start: bytes, message: str) -> None:
    (tmp_path / "m").write_bytes(start)
    with pytest.raises(ImportRefused, match=message):
        recognise(tmp_path / "m")


def test_empty_files_folders_and_packages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "package.toml").write_text("")
    for name, message in (
        ("empty", "0 bytes"),
        ("folder", "without saved_model.pb"),
        ("package", "cloudd models add"),
        ("gone", "cannot be read"),
    ):
        with pytest.raises(ImportRefused, match=message):
            recognise(tmp_path / name)


def test_an_archive_that_would_unpack_to_more_than_a_disk_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "bomb", {f"m/{name}": b"" for name in ("models/model.json", "a", "b")})
    first, *entries = path.read_bytes().split(b"PK\x01\x02")
    for place, entry in enumerate(entries):  # the size that the archive's directory states
        entries[place] = entry[:20] + (0xF000_0000).to_bytes(4, "little") + entry[24:]
    path.write_bytes(b"PK\x01\x02".join([first, *entries]))
    with pytest.raises(ImportRefused, match="would unpack to 12079595520 bytes"):
        recognise(path)
    many = archive(tmp_path / "many", {f"m/{number}": b"" for number in range(20_001)})
    with pytest.raises(ImportRefused, match="it has 20001 files; 20000 are allowed"):
        recognise(many)


def test_the_directory_of_an_archive_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    """Archives of PyTorch have a 64-bit record, whose word counts then."""
    end64 = (
        b"PK\x06\x06"
        + bytes(20)
        + bytes(8)
        + (1 << 40).to_bytes(8, "little")
        + (1 << 45).to_bytes(8, "little")
        + bytes(8)
    )
    locator = b"PK\x06\x07" + bytes(4) + (4).to_bytes(8, "little") + bytes(4)
    end = b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2)
    (tmp_path / "wide").write_bytes(b"PK\x03\x04" + end64 + locator + end)
    with pytest.raises(ImportRefused, match="it has 1099511627776 files"):
        recognise(tmp_path / "wide")
    (tmp_path / "far").write_bytes(b"PK\x03\x04" + locator.replace(bytes([4]), b"\xff") + end)
    with pytest.raises(ImportRefused, match="damaged archive"):
        recognise(tmp_path / "far")


@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x08\x08", b"\x89HDF", b"\x80\x02"]))
def test_no_bytes_raise_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk"
    path.write_bytes(start + data)
    try:
        assert recognise(path) in ("onnx", "tflite", "keras")
    except ImportRefused as error:
        assert str(error)
