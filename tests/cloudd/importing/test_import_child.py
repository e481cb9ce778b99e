"""Programs that run under a named interpreter are bounded, confined, and told of by their last words."""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cloudd.importing import child
from cloudd.importing.errors import ImportRefused
from cloudd.importing.programs import Program, read_answers


def program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text(
        f"import json, os, pathlib, sys\norder = json.loads(pathlib.Path('order.json').read_text())\n{text}"
    )
    return path


ANSWER = "pathlib.Path('answer.json').write_text(json.dumps({}))\n"


def run(tmp_path: Path, text: str, order: object = None, timeout_s: float = 20.0) -> dict[str, object]:
    return child.run(sys.executable, program(tmp_path, text), tmp_path / "work", order, timeout_s)


def test_an_order_is_answered(tmp_path: Path) -> None:
    text = ANSWER.format("{'twice': order['n'] * 2, 'home': os.environ['HOME'], 'here': os.getcwd()}")
    folder = str(tmp_path / "work")
    assert run(tmp_path, text, {"n": 21}) == {"twice": 42, "home": folder, "here": folder}


def test_nothing_of_the_environment_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDD_SECRET", "x")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    found = run(tmp_path, ANSWER.format("{'names': sorted(os.environ)}"))
    assert not {"CLOUDD_SECRET", "PYTHONPATH"} & set(found["names"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print('the reason'); sys.exit(3)", "ended with the status 3: the reason"),
        ("os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("pathlib.Path('answer.json').write_text('no json')", "ended with the status 0"),
        ("pathlib.Path('answer.json').write_text('[1]')", "ended with the status 0"),
        ("os.symlink('/etc/hostname', 'answer.json')", "ended with the status 0"),
        (ANSWER.format("{'refused': 'no such thing'}"), "^no such thing$"),
        (ANSWER.format("{}") + "sys.exit(1)", "ended with the status 1"),
    ],
)
def test_whatever_else_a_program_does_is_a_refusal(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        run(tmp_path, text)


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    text = (
        "import subprocess, time\n"
        "other = subprocess.Popen(['sleep', '600'])\n"
        "pathlib.Path('pid').write_text(str(other.pid))\n"
        "time.sleep(600)"
    )
    with pytest.raises(ImportRefused, match="did not finish within 1 s"):
        run(tmp_path, text, timeout_s=1.0)
    number = int((tmp_path / "work" / "pid").read_text())
    gone = threading.Event()
    for _ in range(100):
        status = Path(f"/proc/{number}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        gone.wait(0.02)
    else:
        raise AssertionError("it still runs")


def test_an_interpreter_that_is_none_is_told_by_its_name(tmp_path: Path) -> None:
    for name in (tmp_path / "gone", tmp_path):
        with pytest.raises(ImportRefused, match="cannot be started"):
            child.run(str(name), program(tmp_path, ""), tmp_path / "work", None, 5.0)


def landlock() -> bool:
    lsm = Path("/sys/kernel/security/lsm")
    return not lsm.exists() or "landlock" in lsm.read_text()


@pytest.mark.skipif(not landlock(), reason="this kernel has no Landlock")
def test_a_program_writes_nowhere_else_and_connects_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("stays")
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = (
            "import socket\n"
            "def attempt(what):\n"
            "    try: what()\n"
            "    except OSError as error: return type(error).__name__\n"
            "    return 'done'\n"
            "there = pathlib.Path(order['there'])\n"
            "found = {\n"
            "  'new': attempt(lambda: (there / 'new').write_text('x')),\n"
            "  'remove': attempt(lambda: (there / 'theirs').unlink()),\n"
            "  'cut': attempt(lambda: os.truncate(there / 'theirs', 0)),\n"
            "  'move': attempt(lambda: os.rename('order.json', there / 'moved')),\n"
            "  'connect': attempt(lambda: socket.create_connection(('127.0.0.1', order['port']), 2)),\n"
            "}\n" + ANSWER.format("found")
        )
        found = run(tmp_path, text, {"there": str(tmp_path), "port": server.getsockname()[1]})
    assert len(found) == 5 and "done" not in found.values()
    assert (tmp_path / "theirs").read_text() == "stays" and not (tmp_path / "new").exists()


def test_answers_of_other_sizes_than_stated_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "outputs.bin"
    path.write_bytes(np.arange(8, dtype="<f4").tobytes())
    (one, other) = read_answers(path, [(1, 3), (1,)], 2)
    assert one[0].tolist() == [[0, 1, 2]] and other[1].tolist() == [7]
    for shapes, count in (([(1, 3)], 2), ([(1 << 40, 1 << 40)], 1), ([(-1, 8)], 1), ([], 1), ([(8,)], 2)):
        with pytest.raises(ImportRefused):
            read_answers(path, shapes, count)


def test_a_python_without_the_framework_and_none_at_all_are_told_apart(tmp_path: Path) -> None:
    source = tmp_path / "m.pt2"
    source.write_bytes(b"x")
    with pytest.raises(ImportRefused, match="can only be read by PyTorch itself; name a Python"):
        Program(source, "exported", "", tmp_path / "work")
    with pytest.raises(ImportRefused, match="can only be read by TensorFlow itself"):
        Program(source, "keras", "", tmp_path / "work")
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    fake.chmod(0o755)
    with pytest.raises(ImportRefused, match="has no PyTorch"):
        Program(source, "exported", str(fake), tmp_path / "work").export(None)
    assert json.loads((tmp_path / "work" / "order.json").read_text())["kind"] == "exported"
