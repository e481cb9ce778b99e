"""A job's rules and its first state out of its files, as cloudd and every device read them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit import tensors
from edgekit.autodiff.manifest import read_manifest, read_states
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import HEAD_FILE, TOTALS_FILE, HeadBase, OneRoundHead
from edgekit.federated.plan import Plan
from edgekit.federated.rounds import JobRules
from edgekit.federated.strategy import State
from edgekit.messages.federation import FederatedJob

STEP_FOLDER = "step"
"""As edgekit.training.plan has it, without importing OpenCV into a daemon; a test compares."""
_MAX_BYTES = 1 << 30


def is_head(job: FederatedJob) -> bool:
    """Whether a job is a head of one round. Raises FederatedError for a plan that cannot be read."""
    try:
        return isinstance(msgspec.json.decode(job.plan, type=Plan).strategy, OneRoundHead)
    except msgspec.DecodeError as error:
        raise FederatedError(f"the plan of the job cannot be read: {error}") from None


def open_rules(job: FederatedJob, folder: Path) -> tuple[JobRules, State]:
    """From the folder with the job's files. Raises AutodiffError, FederatedError, OSError."""
    if not is_head(job):
        manifest = read_manifest(folder / STEP_FOLDER)
        values = read_states(folder / STEP_FOLDER, manifest)
        names = [one.name for one in manifest.of("parameter", "batch_norm")]
        rules = JobRules(job, {name: values[name].shape for name in names})
        return rules, rules.start({name: values[name] for name in names})
    try:
        base = HeadBase.of(tensors.load((folder / HEAD_FILE).read_bytes(), _MAX_BYTES))
        earlier = folder / TOTALS_FILE
        totals = tensors.load(earlier.read_bytes(), _MAX_BYTES) if earlier.exists() else {}
    except tensors.TensorError as error:
        raise FederatedError(f"the files of the head cannot be read: {error}") from None
    rules = JobRules(job, {}, base)
    if bool(totals) != bool(rules.head and rules.head.settings.continues):
        raise FederatedError("a head begins with totals if, and only if, it continues an earlier one")
    return rules, rules.start(totals)
