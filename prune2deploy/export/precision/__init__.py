"""Versions of an exported ONNX file that compute in fp16 or int8, and how far they are off."""

from prune2deploy.export.precision.difference import Difference, compare
from prune2deploy.export.precision.half import HalfResult, to_fp16
from prune2deploy.export.precision.kinds import precision_of
from prune2deploy.export.precision.quantize import QuantizedResult, to_int8
from prune2deploy.export.precision.sensitivity import (
    LayerCost,
    Within,
    sensitivity,
    to_int8_within,
)

__all__ = [
    "Difference",
    "HalfResult",
    "LayerCost",
    "QuantizedResult",
    "Within",
    "compare",
    "precision_of",
    "sensitivity",
    "to_fp16",
    "to_int8",
    "to_int8_within",
]
