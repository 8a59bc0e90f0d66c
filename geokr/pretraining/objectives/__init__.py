"""Objectives, which define the loss of a run: one file each."""

from geokr.pretraining.objectives.byol import BYOL
from geokr.pretraining.objectives.geco import GeCo
from geokr.pretraining.objectives.mae import MAE
from geokr.pretraining.objectives.mean_teacher import MeanTeacher
from geokr.pretraining.objectives.moco import MoCo
from geokr.pretraining.objectives.objective import Objective
from geokr.pretraining.objectives.parts import Parts
from geokr.pretraining.objectives.reference import Reference
from geokr.pretraining.objectives.simclr import SimCLR
from geokr.pretraining.objectives.softcon import SoftCon
from geokr.pretraining.objectives.supervised import Supervised


def choose(name: str) -> type[Objective]:
    """Look up an objective by name: see TrainConfig."""
    match name:
        case "geokr":
            return MeanTeacher
        case "byol":
            return BYOL
        case "geco":
            return GeCo
        case "mae":
            return MAE
        case "moco":
            return MoCo
        case "parts":
            return Parts
        case "reference":
            return Reference
        case "simclr":
            return SimCLR
        case "softcon":
            return SoftCon
        case "supervised":
            return Supervised
        case _:
            raise ValueError(f"there is no objective {name}")
