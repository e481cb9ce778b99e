"""Packages in closed form on frozen features: anomaly detectors from good parts, embedders from a few pictures each."""

from __future__ import annotations

from cloudd.frozen.anomaly import AnomalyFigures, AnomalyWishes, learn_anomaly
from cloudd.frozen.embedding import EmbeddingFigures, EmbeddingWishes, learn_embedding
from cloudd.frozen.package import Made, Record, read_record

__all__ = [
    "AnomalyFigures",
    "AnomalyWishes",
    "EmbeddingFigures",
    "EmbeddingWishes",
    "Made",
    "Record",
    "learn_anomaly",
    "learn_embedding",
    "read_record",
]
