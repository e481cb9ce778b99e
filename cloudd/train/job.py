"""A training on disk: what is trained, its graphs, and its checkpoint, in one folder until the package is made.

job.json        what is trained, of which pictures, by which recipe
plan/           the graphs, see `edgekit.training.plan`
checkpoint      where it stands

The folder appears whole, so a process that is killed at any time leaves a training that can be gone on with, or none.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from cloudd.train.errors import TrainError
from cloudd.train.recipe import Recipe
from edgekit import atomic
from edgekit.architectures import build
from edgekit.autodiff.losses import CentrePointLoss, CrossEntropy
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.step import build_step
from edgekit.training import write_plan

JOB_FILE = "job.json"
PLAN_FOLDER = "plan"
CHECKPOINT = "checkpoint"
SUFFIX = ".training"
"""NAME@VERSION.training beside the package that is to be."""
_MAX_BYTES = 16 << 20


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training. `source`, `group` and `merge` are how the pictures were read, so that they can be read again."""

    schema: Literal[1] = 1
    name: str
    version: str
    source: str  # absolute path
    group: str
    merge: dict[str, str]  # old label -> new label
    digest: str  # of the dataset, as in Dataset.digest
    recipe: Recipe

    @property
    def ref(self) -> str:
        """name@version"""
        return f"{self.name}@{self.version}"


def folder_of(out: Path, ref: str) -> Path:
    """Where the training of NAME@VERSION lies."""
    return out / f"{ref}{SUFFIX}"


def begin(job: Job, out: Path) -> Path:
    """Make the folder of a new training, with its graphs; returns it.

    Raises TrainError if one of this name and version lies there already, ArchitectureError, AutodiffError, OSError.
    """
    folder = folder_of(out, job.ref)
    if folder.exists():
        raise TrainError(
            f"{job.ref} is being trained already, or its training was interrupted; go on with: "
            f"cloudd train --resume {folder}, or remove {folder}"
        )
    out.mkdir(parents=True, exist_ok=True)
    recipe = job.recipe
    network = build(recipe.network)
    step = build_step(
        network.model,
        CentrePointLoss() if recipe.detection else CrossEntropy(smoothing=recipe.smoothing),
        Clipped(AdamW(weight_decay=recipe.weight_decay), recipe.clip),
        network.parameters(),
        batch_norm="train",
    )
    staged = Path(tempfile.mkdtemp(prefix=".training-", dir=out))
    try:
        write_plan(step, staged / PLAN_FOLDER)
        atomic.write_file(staged / JOB_FILE, msgspec.json.format(msgspec.json.encode(job), indent=1) + b"\n", 0o644)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    atomic.fsync_dir(out)
    return folder


def read_job(folder: Path) -> Job:
    """The training in a folder. Raises TrainError if there is none, or it is damaged."""
    path = folder / JOB_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TrainError(f"{path} has more than {_MAX_BYTES} bytes; it is no training")
        return msgspec.json.decode(path.read_bytes(), type=Job)
    except OSError as error:
        raise TrainError(f"{folder} holds no training that was begun ({JOB_FILE}: {error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TrainError(f"{path} cannot be read ({error}); remove {folder} and train anew") from None
