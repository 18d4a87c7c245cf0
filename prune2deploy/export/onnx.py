"""Write a model as one ONNX file: traced, simplified, cleaned, checked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

import prune2deploy
from prune2deploy.errors import ExportError
from prune2deploy.export.fold import remaining_batchnorms
from prune2deploy.export.graph_edits import (
    EXPORTER_OPSET,
    clean,
    remove_prefix,
    to_opset,
    use_global_pooling,
)
from prune2deploy.export.outputs import NamedOutputs, NameOutputs, name_outputs, run_named
from prune2deploy.export.quiet import quiet
from prune2deploy.models import evaluating, explain

_log = logging.getLogger(__name__)

# A protobuf message ends at 2 GiB; some of it is the graph.
_LARGEST_WEIGHTS_BYTES = 2**31 - 2**26
_PREFIX = "model."  # The attribute of NamedOutputs, in front of every parameter's name.


def onnx_metadata(
    *,
    input_shape: Sequence[int],
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, str]:
    """Return what a program that uses the file must know, as JSON texts by name.

    Args:
        input_shape: (channels, height, width).
        classes: class names in the order of the output's columns.
        mean, std: per channel; the input is (pixel / 255 - mean) / std.
    """
    values = {
        "prune2deploy_version": prune2deploy.__version__,
        "input_shape": list(input_shape),
        "classes": None if classes is None else list(classes),
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
    }
    return {name: json.dumps(value) for name, value in values.items() if value is not None}


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    input_shape: Sequence[int],
    batch: int = 1,
    opset: int | None = None,
    simplify: bool = True,
    outputs: NameOutputs = name_outputs,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the model to one ONNX file, which appears whole or not at all.

    The same model gives the same bytes: no times, paths or stack traces are in it.

    Args:
        model: used in eval mode and left alone; batch norms are best folded before.
        path: the file, replaced if it exists; its folder is made.
        input_shape: (channels, height, width); the input is called "input".
        batch: static size of a batch.
        opset: version of the ONNX operators; None: the exporter's own choice.
        simplify: also run onnx-simplifier.
        outputs: names the tensors to export.
        metadata: texts for the file's metadata_props, for example from `onnx_metadata`.

    Returns:
        The path.

    Raises:
        ExportError: the model cannot be exported (with the cause), is larger than
            2 GiB, the opset is not available, or the file cannot be written.
    """
    _check_request(model, opset)
    proto = _traced(model, (batch, *input_shape), opset, outputs)
    if simplify:
        proto = _simplified(proto)
    clean(proto)
    proto.producer_name = "prune2deploy"
    proto.producer_version = prune2deploy.__version__
    onnx.helper.set_model_props(proto, dict(sorted((metadata or {}).items())))
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(
            f"The exported ONNX model is not valid: {err}. "
            "Try another export.onnx.opset, or simplify: false."
        ) from err
    _report_batchnorms(proto, model)
    write_whole(path, proto.SerializeToString(deterministic=True))
    return path


def _check_request(model: nn.Module, opset: int | None) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _LARGEST_WEIGHTS_BYTES:
        raise ExportError(
            f"The model's weights take {size / 2**30:.2f} GiB, and one ONNX file holds less than "
            "2 GiB. Weights in a second file are not supported yet: prune more, or choose a "
            "smaller model."
        )
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not 1 <= opset <= newest:
        raise ExportError(
            f"ONNX opset {opset} does not exist for the installed onnx {onnx.__version__}: "
            f"the newest is {newest}. Leave opset out to have one chosen."
        )


def _traced(
    model: nn.Module, shape: tuple[int, ...], opset: int | None, outputs: NameOutputs
) -> onnx.ModelProto:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    names = list(run_named(model, images, outputs))
    first = next(model.parameters(), None)
    if first is not None:
        images = images.to(first.device)
    try:
        with quiet(), evaluating(model):
            program = torch.onnx.export(
                NamedOutputs(model, outputs).eval(),
                (images,),
                input_names=["input"],
                output_names=names,
                # Older ones are left to us: the exporter cannot convert a ReduceMean.
                opset_version=None if opset is None else max(opset, EXPORTER_OPSET),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
    except Exception as err:
        raise ExportError(
            f"PyTorch could not export the model to ONNX: {explain(_root_cause(err))}. "
            "Change that part of the model's forward, or keep it out of what is exported."
        ) from err
    remove_prefix(proto, _PREFIX)
    use_global_pooling(proto)
    if opset is not None and opset < EXPORTER_OPSET:
        proto = to_opset(proto, opset)
    found = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and found != opset:
        # The exporter only warns, and hands over what it has.
        raise ExportError(
            f"The model could not be converted to ONNX opset {opset}: it has opset {found}. "
            f"Set export.onnx.opset to {found}, or leave it out."
        )
    return proto


def _root_cause(err: BaseException) -> BaseException:
    while err.__cause__ is not None:
        err = err.__cause__
    return err


def _simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim  # Half a second, for those who fold and do not export.

    try:
        with quiet():
            simple, sound = onnxsim.simplify(proto)
    except Exception as err:
        raise ExportError(
            f"onnx-simplifier failed: {explain(err)}. Set export.onnx.simplify to false."
        ) from err
    if not sound:
        raise ExportError(
            "onnx-simplifier changed what the model computes. Set export.onnx.simplify to false."
        )
    result: onnx.ModelProto = simple
    return result


def _report_batchnorms(proto: onnx.ModelProto, model: nn.Module) -> None:
    count = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    if count:
        level = logging.INFO if remaining_batchnorms(model) else logging.WARNING
        _log.log(level, "%d BatchNormalization operators are in the ONNX model.", count)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half written.

    Raises:
        ExportError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as err:
        raise ExportError(
            f"{path} ({len(content) / 2**20:.1f} MiB) cannot be written: {err.strerror}. "
            f"{_free_space(path)}Free some space or choose another output folder."
        ) from err
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _free_space(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(path.parent).free / 2**20:.1f} MiB are free there. "
    return ""
