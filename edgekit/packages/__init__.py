"""The model package: a directory whose manifest lists every file by SHA-256, opened strictly, installed atomically."""

from __future__ import annotations

from edgekit.packages.anomaly import AnomalySpec
from edgekit.packages.checkpoint import (
    CHECKPOINT_FOLDER,
    MAX_CHECKPOINT,
    CheckpointSpec,
    checkpoint_files,
    learning_file,
)
from edgekit.packages.detection import DetectionSpec, TemplateSpec
from edgekit.packages.embedding import EmbeddingSpec
from edgekit.packages.heads import HeadCut, HeadSpec, TailCut, TailSpec
from edgekit.packages.manifest import (
    MANIFEST_NAME,
    InputSpec,
    Manifest,
    OutputSpec,
    PackageError,
    ProofSample,
    Variant,
    check_name,
    check_version,
    manifest_text,
    parse_manifest,
    split_ref,
    version_key,
)
from edgekit.packages.package import Package, open_package, read_draft, seal_package
from edgekit.packages.store import adopt, find, install, installed, sweep

__all__ = [
    "CHECKPOINT_FOLDER",
    "MANIFEST_NAME",
    "MAX_CHECKPOINT",
    "AnomalySpec",
    "CheckpointSpec",
    "DetectionSpec",
    "EmbeddingSpec",
    "HeadCut",
    "HeadSpec",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "Package",
    "PackageError",
    "ProofSample",
    "TailCut",
    "TailSpec",
    "TemplateSpec",
    "Variant",
    "adopt",
    "check_name",
    "check_version",
    "checkpoint_files",
    "find",
    "install",
    "installed",
    "learning_file",
    "manifest_text",
    "open_package",
    "parse_manifest",
    "read_draft",
    "seal_package",
    "split_ref",
    "sweep",
    "version_key",
]
