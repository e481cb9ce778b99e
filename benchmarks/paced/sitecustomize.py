"""Makes models of onnxruntime stand for an accelerator's: a run waits until its time is over, and takes no CPU.

Python runs this file in every process that has its folder in PYTHONPATH. How long a run takes is in the name of the
model's file: `model-100ms.onnx`. Only for benchmarks; nothing of the daemons knows about it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

DRIVER = "edgekit.runtimes.onnxruntime_driver"
_NAME = re.compile(r"-(\d+(?:\.\d+)?)ms\.onnx$")


def pace(driver: ModuleType) -> None:
    """Let the sessions of this driver take their time."""
    session = driver.OnnxSession
    opened, ran = session.__init__, session.run

    @functools.wraps(opened)
    def open_(self: Any, path: Any, *rest: Any, **named: Any) -> None:
        opened(self, path, *rest, **named)
        found = _NAME.search(str(path))
        self.paced_s = float(found[1]) / 1e3 if found else 0.0

    @functools.wraps(ran)
    def run(self: Any, feeds: Any) -> Any:
        until = time.monotonic() + self.paced_s
        results = ran(self, feeds)
        time.sleep(max(0.0, until - time.monotonic()))
        return results

    session.__init__, session.run = open_, run


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the driver to be imported: most processes never do."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != DRIVER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute: Callable[[ModuleType], None] = spec.loader.exec_module

        def then_pace(module: ModuleType) -> None:
            execute(module)
            pace(module)

        spec.loader.exec_module = then_pace  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
