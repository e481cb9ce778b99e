"""What this device has in the totals of heads: kept, sealed, for as long as it may want to take it out again.

One record a job, made when the sum that it is in was applied; the job's own folder goes when the job is over. A job
that continues an earlier one finds there what is in the totals already, and this device contributes the difference.
"""

from __future__ import annotations

import hashlib
import shutil
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.federation.book import Book
from edged.federation.files import JobFolder
from edged.federation.shared import Shared
from edgekit.federated.strategy import State
from edgekit.secagg.errors import Refusal

_ROOT = "sums"
"""Beside the folder of all jobs."""
_RECORD = "in-totals"
_CODES = "codes"


class _Kept(msgspec.Struct, frozen=True):
    totals: bytes  # SHA-256 of the totals that the numbers are a part of


def keep(shared: Shared, folder: JobFolder, numbers: NDArray[Any] | None) -> None:
    """This device has `numbers` in the totals (None: nothing) that it holds now. Durable; raises OSError.

    What it had in the totals of earlier jobs is a part of these, so those records go.
    """
    head = shared.rules.head
    assert head is not None, "of a head"
    codes = np.zeros(shared.state.model.size, np.int64) if numbers is None else numbers
    folder.beside(_ROOT, shared.job.id).write(_RECORD, _Kept(_digest(shared.state)), {_CODES: codes})
    for job in head.settings.continues:
        shutil.rmtree(folder.root_beside(_ROOT) / job, ignore_errors=True)


def earlier(shared: Shared, folder: JobFolder, book: Book) -> tuple[str, NDArray[Any] | None]:
    """What this device has in the totals that the job begins with (None: nothing), and the job that it is known from.

    Raises Refusal where the totals are others than those that this device holds, or where it cannot know any more.
    """
    head = shared.rules.head
    assert head is not None, "of a head"
    for place, job in enumerate(head.settings.continues):
        if (folder.root_beside(_ROOT) / job).is_dir():
            kept = folder.beside(_ROOT, job).read(_RECORD, _Kept)
            codes = kept[1].get(_CODES) if kept is not None else None
            if kept is None or codes is None or codes.shape != shared.state.model.shape or codes.dtype != np.int64:
                raise Refusal("policy", f"what this device has in the totals of the job {job[:12]} is damaged: {_ANEW}")
            if place == 0 and kept[0].totals != _digest(shared.state):
                raise Refusal("binding", f"the job does not begin with the totals that the job {job[:12]} ended with")
            return job, codes
        note = book.job(job)
        if note is not None and note.round >= 0:
            raise Refusal("policy", f"this device cannot know what it has in the totals of the job {job[:12]}: {_ANEW}")
    return "", None


def open_head(shared: Shared, folder: JobFolder, book: Book, *, masked: bool = False) -> bool:
    """A head begins, or goes on, on this device; whether it takes its sums out.

    `masked`: its sums are under way already, so it stays to learn whether they are in. Raises Refusal, OSError.
    """
    if shared.state.version == 0 and shared.memory is None:
        shared.had_in, shared.memory = earlier(shared, folder, book)
    leaves = bool(book.leaving(shared.job.service))
    if leaves and not masked and shared.state.version == 0 and not present(shared.memory):
        raise Refusal("policy", f"this device is to have nothing in the heads of {shared.job.service} (edged fl leave)")
    return leaves


def present(numbers: NDArray[Any] | None) -> bool:
    """Whether there is anything in the totals."""
    return numbers is not None and bool(numbers.any())


_ANEW = "let the totals be begun anew, by a job that continues none"


def _digest(state: State) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(state.model, "<i8").data).digest()
