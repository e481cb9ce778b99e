"""The documented receivers run as they are printed, and the documented table is the one that is written."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import msgspec

from edged.capture.outputs import table
from edged.capture.outputs.opening import Outputs
from edgekit.outputs import Output
from edgekit.services import Service
from tests.support.receivers import Events, decision, free_port, until

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_columns_of_the_table_are_documented_in_their_order() -> None:
    text = (DOCS / "service-definition.md").read_text("utf-8")
    start = text.index("#### The CSV table")
    first_cells = re.findall(r"^\| (`.*?) \|", text[start : text.index("####", start + 4)], re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", " ".join(first_cells))) == table.COLUMNS


async def test_the_documented_receiver_checks_the_signature(tmp_path: Path) -> None:
    text = (DOCS / "operations.md").read_text("utf-8")
    (script,) = [body for body in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def is_ours" in body]
    port = free_port()
    (tmp_path / "receiver.py").write_text(script.replace("9000", str(port)))
    secrets = {name: tmp_path / name for name in ("right", "wrong")}
    for name, path in secrets.items():
        path.write_text(f"{name}\n")
        path.chmod(0o600)
    receiver = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "receiver.py"),
        str(secrets["right"]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert receiver.stdout is not None
        outputs = Outputs(tmp_path / "queues", "DEVICE", Events(), lambda: False)
        for number, (name, path) in enumerate(secrets.items(), 1):
            url = f"http://127.0.0.1:{port}/{name}"
            definition = Output(kind="webhook", url=url, secret=str(path))
            (output,) = outputs.of(Service(name=name, model="m", outputs=[definition])).values()
            one = decision(number)
            await output.write_durably(one, msgspec.json.encode(one))
            if name == "right":
                line = await asyncio.wait_for(receiver.stdout.readline(), 10)
                assert line.decode().split() == ["SAMPLE000001", "good", "board-1"]
            else:
                await until(lambda: output.report().problem == "it answered 403")  # noqa: B023
        await outputs.close()
    finally:
        receiver.kill()
        await receiver.wait()
