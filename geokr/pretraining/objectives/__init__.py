"""What a run minimises: one file an objective, chosen here."""

from geokr.pretraining.objectives.mean_teacher import MeanTeacher
from geokr.pretraining.objectives.objective import Objective
from geokr.pretraining.objectives.reference import Reference
from geokr.pretraining.objectives.supervised import Supervised


def choose(name: str) -> type[Objective]:
    """The objective of a name: see TrainConfig."""
    match name:
        case "geokr":
            return MeanTeacher
        case "reference":
            return Reference
        case "supervised":
            return Supervised
        case other:
            raise ValueError(f"there is no objective {other}")
