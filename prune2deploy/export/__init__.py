"""From a model to a file that runs elsewhere, each step compared with the one before."""

from prune2deploy.export.fold import fold_batchnorm, remaining_batchnorms
from prune2deploy.export.model_file import export_model_file
from prune2deploy.export.onnx import export_onnx, onnx_metadata
from prune2deploy.export.outputs import NameOutputs, name_outputs
from prune2deploy.export.parity import OnnxModel, Parity, check_parity

__all__ = [
    "NameOutputs",
    "OnnxModel",
    "Parity",
    "check_parity",
    "export_model_file",
    "export_onnx",
    "fold_batchnorm",
    "name_outputs",
    "onnx_metadata",
    "remaining_batchnorms",
]
