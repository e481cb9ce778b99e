"""Training: the first model of a new service, made of labelled pictures on this host and judged before it is kept."""

from __future__ import annotations

from cloudd.train.errors import TrainError
from cloudd.train.figures import Figures, LabelFigures, Share
from cloudd.train.finish import Outcome, finish
from cloudd.train.job import Job, begin, folder_of, read_job
from cloudd.train.lineage import Lineage, read_lineage
from cloudd.train.parts import Parts, divide, merged
from cloudd.train.recipe import Recipe, Wishes, choose
from cloudd.train.training import Training

__all__ = [
    "Figures",
    "Job",
    "LabelFigures",
    "Lineage",
    "Outcome",
    "Parts",
    "Recipe",
    "Share",
    "TrainError",
    "Training",
    "Wishes",
    "begin",
    "choose",
    "divide",
    "finish",
    "folder_of",
    "merged",
    "read_job",
    "read_lineage",
]
