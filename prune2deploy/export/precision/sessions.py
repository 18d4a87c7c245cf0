"""Run a model in memory, also to see what is computed on the way."""

from __future__ import annotations

from typing import Any

import onnx

from prune2deploy.errors import ExportError
from prune2deploy.models import explain


def session_of(proto: onnx.ModelProto) -> Any:
    """Open a model in ONNX Runtime, on one thread, without optimisation that fuses nodes.

    Raises:
        ExportError: ONNX Runtime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as err:
        raise ExportError(f"ONNX Runtime cannot run the model: {explain(err)}.") from err


def watched(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that returns every intermediate result as well."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {output.name for output in copy.graph.output}
    for node in copy.graph.node:
        for name in node.output:
            if name and name not in known:
                known.add(name)
                copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy
