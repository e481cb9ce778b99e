"""Where decisions go: files, and receivers on the network behind a queue on the disk."""

from __future__ import annotations

from edged.capture.outputs.base import Notify, Output, OutputError
from edged.capture.outputs.files import FileOutput, jsonl_output
from edged.capture.outputs.lines import tail_lines

__all__ = ["FileOutput", "Notify", "Output", "OutputError", "jsonl_output", "tail_lines"]
