"""Changes to an exported ONNX graph that leave what it computes alone."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from prune2deploy.errors import ExportError

#: The oldest opset that PyTorch's exporter writes itself.
EXPORTER_OPSET = 18
_NEWER_ATTRIBUTE = "noop_with_empty_axes"


def remove_prefix(proto: onnx.ModelProto, prefix: str) -> None:
    """Take a prefix off the names of initializers."""
    graph = proto.graph
    renamed = {t.name: t.name.removeprefix(prefix) for t in graph.initializer}
    for entry in (*graph.initializer, *graph.value_info):
        entry.name = renamed.get(entry.name, entry.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def use_global_pooling(proto: onnx.ModelProto) -> None:
    """Write means over all places of an image as the pooling operator that they are.

    Runtimes have kernels for it in the layouts of their convolutions, and unlike
    ReduceMean it is the same in all opsets.
    """
    graph = proto.graph
    constants = {t.name: t for t in graph.initializer}
    ranks = {
        info.name: len(info.type.tensor_type.shape.dim)
        for info in (*graph.input, *graph.value_info)
        if info.type.tensor_type.HasField("shape")
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if not _averages_an_image(node, constants, ranks):
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        if _attribute(node, "keepdims", 1):
            nodes.append(_pooling(node.name, source, result))
        else:
            pooled = f"{result}_pooled"
            nodes.append(_pooling(node.name, source, pooled))
            nodes.append(
                helper.make_node("Flatten", [pooled], [result], f"{node.name}_flat", axis=1)
            )
    del graph.node[:]
    graph.node.extend(nodes)
    _remove_unused_initializers(graph)


def _averages_an_image(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], ranks: dict[str, int]
) -> bool:
    if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
        return False
    rank = ranks.get(node.input[0], 0)
    axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    return rank > 2 and sorted(axis % rank for axis in axes) == list(range(2, rank))


def _pooling(name: str, source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("GlobalAveragePool", [source], [result], name)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _remove_unused_initializers(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    # Branches of conditions read initializers too, out of sight of the list above.
    if any(a.HasField("g") for node in graph.node for a in node.attribute):
        return
    used |= {output.name for output in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def to_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model in another version of the ONNX operators.

    Raises:
        ExportError: an operator has no equivalent there.
    """
    source = onnx.ModelProto()
    source.CopyFrom(proto)
    for node in source.graph.node:
        # The converter would keep this one, at its default, where older opsets lack it.
        if not _attribute(node, _NEWER_ATTRIBUTE, 0):
            kept = [a for a in node.attribute if a.name != _NEWER_ATTRIBUTE]
            del node.attribute[:]
            node.attribute.extend(kept)
    try:
        result = onnx.version_converter.convert_version(source, opset)
        onnx.checker.check_model(result)
    except (RuntimeError, onnx.checker.ValidationError) as err:
        reason = str(err).rpartition("failed: ")[2]  # Behind a place in the C++ sources.
        raise ExportError(
            f"The model cannot be expressed in ONNX opset {opset}: {reason}. "
            f"Set export.onnx.opset to {EXPORTER_OPSET} or more, or leave it out."
        ) from err
    return result


def clean(proto: onnx.ModelProto) -> None:
    """Remove what exporters write about themselves: stack traces with local paths, and notes.

    Also asks for the oldest file format that has all that is used, as older runtimes
    refuse newer formats whatever is in them.
    """
    graph = proto.graph
    entries = (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output)
    for item in (proto, graph, *entries):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
