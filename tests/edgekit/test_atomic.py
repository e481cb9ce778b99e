"""Files and folders are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.atomic import sync_tree, whole_folder


def test_a_folder_has_its_name_only_when_it_is_filled(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "deep" / "plan") as staged:
        (staged / "step").mkdir()
        (staged / "step" / "graph").write_bytes(b"graph")
        assert not (tmp_path / "deep" / "plan").exists()
    assert (tmp_path / "deep" / "plan" / "step" / "graph").read_bytes() == b"graph"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["plan"]


def test_of_a_folder_that_failed_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half"), whole_folder(tmp_path / "plan") as staged:
        (staged / "graph").write_bytes(b"half")
        raise ValueError("half")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "graph").write_bytes(b"old")
    with pytest.raises(OSError), whole_folder(tmp_path / "plan") as staged:
        (staged / "graph").write_bytes(b"new")
    assert (tmp_path / "plan" / "graph").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


KILLED = """
import os, signal, sys
from pathlib import Path
from edgekit.atomic import whole_folder
with whole_folder(Path(sys.argv[1])) as staged:
    (staged / "left").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_one_left_is_taken_over_by_the_next_try(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "plan")], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "plan").exists()
    with whole_folder(tmp_path / "plan") as staged:
        (staged / "graph").write_bytes(b"graph")
    assert [path.name for path in (tmp_path / "plan").iterdir()] == ["graph"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_a_pipe_or_a_link_in_a_folder_holds_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/nowhere")
    sync_tree(tmp_path)
    with pytest.raises(OSError):
        sync_tree(tmp_path / "missing")
