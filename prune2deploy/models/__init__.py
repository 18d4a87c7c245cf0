"""Where a model comes from: a source named in the recipe, and a checkpoint read without pickle."""

from prune2deploy.models.checkpoint import load_state_dict_file, load_weights_into
from prune2deploy.models.forward import OutputInfo, check_forward, evaluating
from prune2deploy.models.recalibration import recalibrate
from prune2deploy.models.sources import load_model
from prune2deploy.models.user_code import explain, import_from_file

__all__ = [
    "OutputInfo",
    "check_forward",
    "evaluating",
    "explain",
    "import_from_file",
    "load_model",
    "load_state_dict_file",
    "load_weights_into",
    "recalibrate",
]
