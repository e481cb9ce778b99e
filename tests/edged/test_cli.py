"""The command line as people use it: real commands, a real daemon, exit statuses, one clear sentence an error."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.edged import Edged
from support.models import make_package, picture

from edged.cli.main import VERBS
from edged.cli.output import age, clean, size
from edged.client import _UnixConnection
from edged.collab.ledger import Ledger
from edgekit.messages import HardSample, Verdict


def edged_command(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    child = {name: value for name, value in os.environ.items() if not name.startswith(("EDGED_", "STATE_"))}
    return subprocess.run(
        [sys.executable, "-m", "edged", *arguments],
        input=stdin, capture_output=True, text=True, timeout=120, env={**child, **environ},
    )  # fmt: skip


@pytest.fixture(scope="module")
def edged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edged]:
    directory = tmp_path_factory.mktemp("cli")
    make_package(directory / "package")
    (directory / "dark.png").write_bytes(picture(0.1))
    (directory / "bright.jpg").write_bytes(picture(0.9, kind=".jpg"))
    (directory / "solder.toml").write_text('name = "solder"\nmodel = "brightness"\ndeadline_ms = 5000\n')
    with Edged(directory / "state") as edged:
        yield edged


@pytest.fixture
def ready(edged: Edged) -> Edged:
    """With a model and a service."""
    if edged.service("solder") is None:
        edged.add_model(edged.state.parent / "package")
        edged.add_service((edged.state.parent / "solder.toml").read_text())
    return edged


def run(edged: Edged, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return edged_command("--state", str(edged.state), *arguments, stdin=stdin)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_teaches(verb: str) -> None:
    done = edged_command(*([verb] if verb else []), "--help")
    assert done.returncode == 0
    assert "--state" in done.stdout or verb in ("install", "uninstall")
    if verb == "":
        assert "exit status: 0 all is well, 1 a problem" in done.stdout
        for known in VERBS:
            assert f"    {known}" in done.stdout


def test_wrong_usage_is_2() -> None:
    assert edged_command("dance").returncode == 2
    assert edged_command().returncode == 2
    assert edged_command("services", "add").returncode == 2


def test_no_daemon_is_3_with_a_sentence(tmp_path: Path) -> None:
    done = edged_command("status", "--state", str(tmp_path))
    assert done.returncode == 3
    assert done.stderr == (
        f"edged: edged is not running: no socket edged.sock in {tmp_path}/run. Start it with 'edged run', "
        "or name its directory with --state DIR.\n"
    )
    (tmp_path / "run").mkdir()
    import socket

    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "run" / "edged.sock"))
    done = edged_command("status", EDGED_STATE=str(tmp_path))
    assert done.returncode == 3
    assert "nobody answers" in done.stderr


def test_first_steps_of_a_user(edged: Edged) -> None:
    directory = edged.state.parent
    done = run(edged, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Everything works." in done.stdout and "edged services add" in done.stdout
    done = run(edged, "models", "add", str(directory / "package"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Installed brightness@1.\n", "")
    done = run(edged, "services", "add", str(directory / "solder.toml"))
    assert (done.returncode, done.stdout) == (0, "The service solder is ready with brightness@1.\n")
    done = run(edged, "inspect", "solder", str(directory / "dark.png"), str(directory / "bright.jpg"))
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0].split() == ["FILE", "LABEL", "SCORE", "DECIDED", "MODEL", "TIME", "NOTE"]
    assert [line.split()[:2] for line in lines[1:]] == [["dark.png", "dark"], ["bright.jpg", "bright"]]


def test_inspect_json_and_its_failures(ready: Edged) -> None:
    directory = ready.state.parent
    done = run(ready, "inspect", "solder", "--json", "--serial", "B7", str(directory / "dark.png"))
    decision = json.loads(done.stdout)
    assert (decision["label"], decision["decided"], decision["serial"]) == ("dark", "edge", "B7")
    done = run(ready, "inspect", "solder", str(directory / "solder.toml"), str(directory / "absent.png"),
               str(directory / "dark.png"))  # fmt: skip
    assert done.returncode == 1
    assert "not a JPEG" in done.stderr and "No such file" in done.stderr
    assert "dark.png" in done.stdout, "the good one is inspected all the same"
    done = run(ready, "inspect", "absent", str(directory / "dark.png"))
    assert done.returncode == 1 and "absent" in done.stderr and "Traceback" not in done.stderr


def test_status_and_lists_as_json(ready: Edged) -> None:
    status = json.loads(run(ready, "status", "--json").stdout)
    assert status["services"][0]["name"] == "solder"
    assert status["addresses"]["inference"].startswith("127.0.0.1:")
    assert json.loads(run(ready, "models", "list", "--json").stdout)[0]["used_by"] == ["solder"]
    assert json.loads(run(ready, "services", "list", "--json").stdout)[0]["report"]["state"] == "ready"
    assert json.loads(run(ready, "spool", "list", "--json").stdout) == []
    assert json.loads(run(ready, "spool", "left", "--json").stdout) == []
    findings = json.loads(run(ready, "doctor", "--json").stdout)["findings"]
    assert {finding["id"] for finding in findings} >= {
        "daemon",
        "identity",
        "key",
        "clock",
        "disk",
        "models",
        "services",
    }


def test_human_lists(ready: Edged) -> None:
    assert "brightness@1" in run(ready, "models", "list").stdout
    assert "solder" in run(ready, "services", "list").stdout
    assert run(ready, "spool", "list").stdout == "Nothing waits.\n"
    assert run(ready, "spool", "left").stdout == "Nothing has left this device.\n"
    assert run(ready, "services", "show", "solder").stdout == (ready.state.parent / "solder.toml").read_text()
    assert run(ready, "version").stdout.startswith("edged ")


def test_what_left_is_shown(ready: Edged) -> None:
    verdict = Verdict(label="dark", score=0.6, margin=0.2, model="brightness@1")

    async def leave() -> None:
        with ThreadPoolExecutor(1) as executor:
            ledger = Ledger(ready.state / "spool" / "left.db", executor, wall=lambda: 1_800_000_000.0)
            for number, service in enumerate(("solder", "labels")):
                header = HardSample(
                    sample_id=f"S{number}", service=service, answer_model="large", edge=verdict, reason="hard",
                    captured_at=1.0, late=bool(number),
                )  # fmt: skip
                ledger.outcome(await ledger.record(header, bytes(2000), "A" * 43), "answered", "bright")
            await ledger.close()

    asyncio.run(leave())
    try:
        lines = run(ready, "spool", "left").stdout.splitlines()
        assert lines[0].split()[:5] == ["LEFT", "AT", "SAMPLE", "SERVICE", "REASON"]
        assert [re.split("  +", line)[1:5] for line in lines[1:]] == [
            ["S1", "labels", "hard, late", "2.0 kB"],
            ["S0", "solder", "hard", "2.0 kB"],
        ]
        assert all(line.endswith(f"{'A' * 12}  answered  bright") for line in lines[1:])
        (record,) = json.loads(run(ready, "spool", "left", "--service", "labels", "--json").stdout)
        assert (record["sample_id"], record["late"], record["authority"]) == ("S1", True, "A" * 43)
        assert len(json.loads(run(ready, "spool", "left", "--limit", "1", "--json").stdout)) == 1
    finally:
        for path in (ready.state / "spool").glob("left.db*"):
            path.unlink()


def test_a_draft_is_sealed_into_a_package_that_can_be_added(ready: Edged, tmp_path: Path) -> None:
    package = make_package(tmp_path / "own", "own")
    manifest = package.root / "package.toml"
    draft = manifest.read_text().partition("[files]")[0]
    manifest.write_text("# mine\n" + draft)
    done = run(ready, "models", "seal", str(package.root))
    files = len(package.manifest.files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"own@1 is sealed: package.toml now lists its {files} files (")
    assert f"edged models add {package.root}" in done.stdout
    assert run(ready, "models", "add", str(package.root)).stdout == "Installed own@1.\n"
    run(ready, "models", "remove", "own@1")
    again = run(ready, "models", "seal", str(package.root))
    assert again.returncode == 1 and "own@1 is sealed already" in again.stderr
    manifest.write_text(draft.replace('file = "model.onnx"', 'file = "absent.onnx"'))
    assert "absent.onnx" in run(ready, "models", "seal", str(package.root)).stderr
    (package.root / "package.toml").unlink()
    assert "package.toml" in run(ready, "models", "seal", str(package.root)).stderr


def test_the_local_api_does_not_tell_what_serves_it(edged: Edged) -> None:
    for path in ("/version", "/nowhere"):
        connection = _UnixConnection(edged.client.path, 10.0)
        connection.request("GET", path)
        assert connection.getresponse().getheader("Server") is None
        connection.close()


def test_doctor_with_and_without_a_daemon(ready: Edged, tmp_path: Path) -> None:
    done = run(ready, "doctor")
    assert done.returncode == 0, done.stdout
    assert "ok     Services: 1 ready: solder" in done.stdout
    done = edged_command("doctor", "--state", str(tmp_path))
    assert done.returncode == 1
    assert "ERROR  Daemon: edged is not running" in done.stdout and "-> start it" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("services", "add", "/absent.toml"), "/absent.toml cannot be read: No such file or directory"),
        (("services", "remove", "absent"), "there is no service 'absent' (services: solder)"),
        (("services", "show", "../x"), "there is no service '../x'"),
        (("services", "recalibrate", "solder"), "asks nobody about hard samples"),
        (("models", "add", "/absent"), "/absent is no directory"),
        (("models", "pull", "brightness"), "has not joined a cloudd"),
        (("models", "pull", "Bad Name"), "no model name"),
        (("models", "remove", "brightness@1"), "used by solder"),
        (("models", "remove", "absent@1"), "absent@1"),
        (("join", "nonsense"), "token"),
    ],
)
def test_every_refusal_is_one_sentence_and_status_1(ready: Edged, arguments: tuple[str, ...], sentence: str) -> None:
    done = run(ready, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("edged: ") and sentence in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_bad_definition_names_the_key(ready: Edged) -> None:
    done = run(ready, "services", "add", "-", stdin='name = "x"\nmodel = "m"\npriorty = "alarm"\n')
    assert done.returncode == 1
    assert "priorty" in done.stderr and "priority" in done.stderr


def test_a_hostile_package_is_refused_with_its_reason(ready: Edged, tmp_path: Path) -> None:
    package = make_package(tmp_path / "evil", "evil")
    (package.root / "extra.bin").write_bytes(b"x")
    done = run(ready, "models", "add", str(package.root))
    assert done.returncode == 1 and "extra.bin" in done.stderr


def test_a_service_can_be_replaced_and_removed(ready: Edged, tmp_path: Path) -> None:
    text = 'name = "second"\nmodel = "brightness"\n'
    assert run(ready, "services", "add", "-", stdin=text).returncode == 0
    assert run(ready, "services", "remove", "second").stdout == "The service second is removed.\n"
    assert ready.service("second") is None
    done = run(ready, "services", "add", "-", stdin=text.replace("brightness", "absent"))
    assert done.returncode == 1
    assert "is added but not ready yet: the model absent is not installed" in done.stdout
    run(ready, "services", "remove", "second")


def test_a_closed_pipe_is_no_error(ready: Edged) -> None:
    command = f"{sys.executable} -m edged --state {ready.state} status --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def test_what_comes_from_files_cannot_move_the_cursor() -> None:
    assert clean("a\x1b[2Jb\n") == "a?[2Jb?"
    assert (size(999), size(1_500_000), size(2_000_000_000_000)) == ("999 B", "1.5 MB", "2000 GB")
    assert (age(5), age(7200), age(-1)) == ("5 s", "2 h", "0 s")
