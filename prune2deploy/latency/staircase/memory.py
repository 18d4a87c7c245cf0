"""The most memory that a network's tensors take at once, for any widths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prune2deploy.latency.layer_names import read_graph
from prune2deploy.latency.staircase.flow import Flow, Length

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prune2deploy.latency.staircase.network import Counts

_BYTES = 4  # of a float32


def peak_activations(path: Path, length: Length, full: Counts) -> Callable[[Counts], float]:
    """Return the bytes that are alive at the node where most are, from the kept counts.

    A tensor is alive from the node that makes it to the last that reads it, all in float32.
    Runtimes that write over their inputs need less, those that copy need more; what is measured
    of the original says how much.

    Args:
        path, length, full: as for `read_network`.
    """
    import numpy as np
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    flow = Flow(proto, length, len(full))
    forms: dict[str, NDArray[np.float64]] = {}
    for node, known in zip(nodes, read_graph(path).nodes, strict=True):
        form = flow.through(node, known.layer).outside
        for name in filter(None, node.output):
            forms[name] = form * flow.area(name) * _BYTES
    ends = {one.name for one in proto.graph.output}
    last = {name: turn for turn, node in enumerate(nodes) for name in node.input}
    alive: set[str] = set()
    rows = []
    for turn, node in enumerate(nodes):
        alive |= {name for name in node.output if name}
        rows.append(sum((forms[name] for name in alive), np.zeros(1 + len(full))))
        alive = {name for name in alive if name in ends or last.get(name, -1) > turn}
    peaks = np.unique(np.array(rows), axis=0)

    def peak(kept: Counts) -> float:
        return float((peaks[:, 0] + peaks[:, 1:] @ kept).max())

    return peak
