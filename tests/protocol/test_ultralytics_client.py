"""Ultralytics' remote model against a real worker, in an interpreter of its own: it needs PyTorch, and edged does not.

EDGED_ULTRALYTICS_PYTHON names that interpreter; without it the tests are skipped. One is made so:

    python3 -m venv /tmp/ultra
    /tmp/ultra/bin/pip install --no-deps ultralytics
    /tmp/ultra/bin/pip install --no-deps torchvision
    /tmp/ultra/bin/pip install torch numpy opencv-python-headless pillow pyyaml requests psutil 'tritonclient[http]'

torchvision is only asked for its version here, so it need not fit the torch beside it (a build for the CPU will do).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import SIDE
from tests.support.plant import LABELS, Plant, definition

PYTHON = os.environ.get("EDGED_ULTRALYTICS_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="EDGED_ULTRALYTICS_PYTHON names no interpreter with ultralytics")

REMOTE = """
import json, sys
import numpy as np
from ultralytics.utils.triton import TritonRemoteModel

model = TritonRemoteModel(sys.argv[1])
side = int(sys.argv[2])
outputs = [model(np.full((1, 3, side, side), value, np.float32))[0].argmax() for value in (0.1, 0.5, 0.9)]
print("ANSWER", json.dumps({"labels": [int(at) for at in outputs], "metadata": model.metadata}))
"""

BACKEND = """
import json, sys
import torch
from ultralytics.nn.autobackend import AutoBackend

side = int(sys.argv[2])
backend = AutoBackend(sys.argv[1], device=torch.device("cpu"))
found = [backend(torch.full((1, 3, side, side), value)) for value in (0.1, 0.5, 0.9)]
names = [backend.names[int(one.argmax())] for one in found]
print("ANSWER", json.dumps({"names": names, "task": backend.task}))
"""


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    await plant.close()


async def run(script: str, folder: Path, *arguments: str) -> Any:
    """What the script prints behind ANSWER."""
    environment = os.environ | {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        "-c",
        script,
        *arguments,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(next(line for line in out.decode().splitlines() if line.startswith("ANSWER")).partition(" ")[2])


async def test_the_remote_model(plant: Plant, tmp_path: Path) -> None:
    plant.package(batch=True)
    worker = await plant.start(definition("solder"))
    answer = await run(REMOTE, tmp_path, worker.url("/brightness"), str(SIDE))
    assert answer["labels"] == [0, 1, 2]
    assert answer["metadata"]["names"] == {str(at): name for at, name in enumerate(LABELS)}
    assert answer["metadata"]["imgsz"] == [SIDE, SIDE]


async def test_the_backend_of_yolo_takes_its_labels_from_the_package(plant: Plant, tmp_path: Path) -> None:
    """What `YOLO("http://HOST:PORT/NAME")` runs a picture on once it is a tensor."""
    plant.package(batch=True)
    worker = await plant.start(definition("solder"))
    answer = await run(BACKEND, tmp_path, worker.url("/brightness"), str(SIDE))
    assert answer == {"names": LABELS, "task": "classify"}
