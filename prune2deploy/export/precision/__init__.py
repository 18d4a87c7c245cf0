"""Lower precision, made in the ONNX file: fp16 and int8, and what they cost."""

from prune2deploy.export.precision.activations import Images, Statistics, collect
from prune2deploy.export.precision.aware import Rounding, round_like
from prune2deploy.export.precision.calibration import Calibration, Method, calibrate, ranges_from
from prune2deploy.export.precision.comparison import Deviation, compare_files, top1_agreement
from prune2deploy.export.precision.counts import LayerCount, Precision, precision_of
from prune2deploy.export.precision.half import HalfResult, to_fp16
from prune2deploy.export.precision.quantize import QuantizedResult, Runtime, to_int8
from prune2deploy.export.precision.readers import made_for_onnx_runtime
from prune2deploy.export.precision.sensitivity import (
    HeldResult,
    Judge,
    LayerCost,
    sensitivity,
    to_int8_within,
)

__all__ = [
    "Calibration",
    "Deviation",
    "HalfResult",
    "HeldResult",
    "Images",
    "Judge",
    "LayerCost",
    "LayerCount",
    "Method",
    "Precision",
    "QuantizedResult",
    "Rounding",
    "Runtime",
    "Statistics",
    "calibrate",
    "collect",
    "compare_files",
    "made_for_onnx_runtime",
    "precision_of",
    "ranges_from",
    "round_like",
    "sensitivity",
    "to_fp16",
    "to_int8",
    "to_int8_within",
    "top1_agreement",
]
