"""A LitServe server for one model: `python litserve_server.py NAME PORT WORKERS`. Runs in LitServe's own interpreter.

POST /predict with {"tensor": base64 of float32} or {"jpeg": base64}.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import numpy as np
from common import SIDES, Preparation, open_session


class Api(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def setup(self, device: str) -> None:
        self._session = open_session(self._name)
        self._prepare = Preparation(SIDES[self._name])

    def decode_request(self, request: dict[str, str]) -> Any:
        if "jpeg" in request:
            return self._prepare(base64.b64decode(request["jpeg"]))
        side = SIDES[self._name]
        return np.frombuffer(base64.b64decode(request["tensor"]), np.float32).reshape(1, 3, side, side)

    def predict(self, x: Any) -> Any:
        return self._session.run(None, {"input": x})[0]

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        return {"logits": output[0].tolist()}


if __name__ == "__main__":
    name, port, workers = sys.argv[1:]
    server = litserve.LitServer(Api(name), accelerator="cpu", workers_per_device=int(workers), fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(port),
        generate_client_file=False,
        log_level="error",
        access_log=False,
        pretty_logs=False,
    )
