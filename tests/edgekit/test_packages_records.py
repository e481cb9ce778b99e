"""The record of how a package was made: read as it was written, refused where it is damaged."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgekit import VERSION
from edgekit.packages import InputSpec, Manifest, Package
from edgekit.packages.records import read_record, record_bytes, tools


class Record(msgspec.Struct, frozen=True, kw_only=True):
    made: str
    tools: dict[str, str]


class Refused(Exception):
    pass


def package(root: Path, data: bytes | None) -> Package:
    """No more of a package than a record of it needs."""
    files, sizes = {}, {}
    if data is not None:
        (root / "record.json").write_bytes(data)
        files, sizes = {"record.json": "0" * 64}, {"record.json": len(data)}
    return Package(
        root, Manifest(name="m", version="1", input=InputSpec(width=8, height=8), files=files), "", [], sizes
    )


def test_a_record_comes_back_as_it_was_written_and_equal_ones_have_equal_bytes(tmp_path: Path) -> None:
    record = Record(made="of sand", tools={"numpy": "2"})
    assert record_bytes(record) == record_bytes(Record(tools={"numpy": "2"}, made="of sand"))
    assert read_record(package(tmp_path, record_bytes(record)), "record.json", Record, Refused) == record


def test_a_package_without_one_has_none(tmp_path: Path) -> None:
    assert read_record(package(tmp_path, None), "record.json", Record, Refused) is None


@pytest.mark.parametrize(
    ("data", "says"), [(b"{", "cannot be read"), (b"\xff", "cannot be read"), (b" " * 99, "99 bytes; 64 are allowed")]
)
def test_a_damaged_one_is_refused_in_the_words_of_who_asks(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=rf"record.json of m@1 .*{says}"):
        read_record(package(tmp_path, data), "record.json", Record, Refused, 64)


def test_the_tools_are_those_that_shape_what_is_made() -> None:
    assert set(tools("edged")) == {"edged", "machine", "onnx", "onnxruntime", "numpy"}
    assert tools("edged")["edged"] == VERSION
