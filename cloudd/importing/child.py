"""Runs one of our own small programs under an interpreter that the user names, bounded, in an empty folder.

PyTorch and TensorFlow are not installed where cloudd is, and what reads their files runs native code on whatever is in
them. So they run in a child: an order as JSON in a file, an answer as JSON in a file, nothing of this process's
environment but where programs are, no rights to write elsewhere or to connect (`confine`), a time limit, and an end
together with everything that it started.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from cloudd.confine import confined
from cloudd.importing.errors import ImportRefused

ORDER_FILE, ANSWER_FILE = "order.json", "answer.json"
_MAX_ANSWER = 4 << 20
_LAST_WORDS = 600
"""Characters of what the child said before it failed."""
_KEEP = ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
_MAX_WRITTEN = 8 << 30
"""Bytes of one file that a child may write."""


def run(interpreter: str, program: Path, folder: Path, order: Any, timeout_s: float, path: str = "") -> dict[str, Any]:
    """Run `program` under `interpreter` with `order` and return its answer.

    The child's working directory, home and temporary directory are `folder`, which keeps what it writes. `path`: what
    it may import from beside its own packages. Raises ImportRefused if it cannot be started, refuses the order, ends
    otherwise, takes longer than `timeout_s`, or answers what is no answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(program, folder / program.name)
    (folder / ORDER_FILE).write_bytes(msgspec.json.encode(order))
    (folder / ANSWER_FILE).unlink(missing_ok=True)
    said = folder / "said.txt"
    with said.open("wb") as sink, confined(folder) as confine:

        def bound() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_WRITTEN, _MAX_WRITTEN))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            confine()

        try:
            child = subprocess.Popen(
                [str(Path(interpreter).absolute()) if "/" in interpreter else interpreter, "-B", program.name],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(folder, path),
                start_new_session=True,
                preexec_fn=bound,
            )
        except (OSError, subprocess.SubprocessError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ImportRefused(f"{interpreter} cannot be started: {why}") from None
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ImportRefused(f"{interpreter} did not finish within {timeout_s:.0f} s and was ended") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return _answer(folder, interpreter, status, said)


def _answer(folder: Path, interpreter: str, status: int, said: Path) -> dict[str, Any]:
    answer: Any = None
    path = folder / ANSWER_FILE
    if path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAX_ANSWER:
        with contextlib.suppress(msgspec.DecodeError):
            answer = msgspec.json.decode(path.read_bytes())
    if isinstance(answer, dict):
        if "refused" in answer:
            raise ImportRefused(str(answer["refused"])[:1000])
        if status == 0:
            return answer
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with the status {status}"
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - 4 * _LAST_WORDS))
        text = " ".join(file.read().decode("utf-8", "replace").split())[-_LAST_WORDS:]
    raise ImportRefused(f"{interpreter} {how}{': ' + text if text else ''}")


def _environment(folder: Path, path: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEEP if name in os.environ}
    own = {"PYTHONUSERBASE": os.environ.get("PYTHONUSERBASE") or str(Path("~/.local").expanduser())}
    own |= dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR"), str(folder))
    return {
        **kept,
        **own,
        **({"PYTHONPATH": path} if path else {}),
        "ORT_DISABLE_TELEMETRY": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # even where torch itself asks for a whole pickle
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
