"""What a network is for: its loss, its metric, and when two answers are the same.

Classification is built in. Another task is a class in a file of the user's with
the members of `Task`; nothing outside this file knows what kind of task it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from prune2deploy.errors import DataError, TrainingError, nearest_name_hint
from prune2deploy.models import explain, import_from_file

#: Images in, outputs out: a PyTorch model, an ONNX file, whatever runs.
Predict = Callable[[Tensor], Any]


@runtime_checkable
class Task(Protocol):
    """What a task must have.

    Two more members are optional: `with_label_smoothing(amount) -> Task` returns the
    task with smoothed targets, and `distill_loss(student_output, teacher_output,
    temperature) -> Tensor` replaces `distillation_loss`.

    `metric` and `higher_is_better` may be plain attributes of the class.
    """

    @property
    def metric(self) -> str:
        """Key of the figure that counts, in what `evaluate` returns."""

    @property
    def higher_is_better(self) -> bool:
        """Direction of that figure."""

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the loss of one batch, a scalar; the output is that of train mode."""

    def evaluate(self, predict: Predict, loader: Iterable[tuple[Tensor, Any]]) -> dict[str, float]:
        """Return figures over a whole loader, `metric` among them; shares in percent."""

    def outputs(self, output: Any) -> dict[str, Tensor]:
        """Name the tensors in an output; what is exported and compared, in this order."""

    def agreement(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        """Return the share of samples, 0 to 1, that two networks answer alike.

        a, b: what each returned for one batch, as named by `outputs`.
        """


@dataclass(frozen=True)
class Classification:
    """One class per image.

    Outputs are logits (n, classes), or an object with `.logits` of that shape. In
    train mode torchvision's GoogLeNet and Inception v3 also return the logits of
    auxiliary heads, which join the loss with the weights 0.3 (two heads, GoogLeNet
    paper) and 0.4 (one head, as Inception v3 is usually trained).
    """

    label_smoothing: float = 0.0
    metric: str = "top1"
    higher_is_better: bool = True

    def with_label_smoothing(self, amount: float) -> Classification:
        """Return the task with `amount` of each target spread over all classes."""
        return replace(self, label_smoothing=amount)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean cross entropy, auxiliary heads included.

        Raises:
            DataError: a target that the output has no logit for.
        """
        logits = _logits(output)
        loss = self._cross_entropy(logits, target)
        heads = _auxiliary_logits(output)
        weight = 0.4 if len(heads) == 1 else 0.3
        for head in heads:
            loss = loss + weight * self._cross_entropy(head, target)
        return loss

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        # On a GPU a wrong target would end the process, and looking costs a wait there.
        if target.device.type == "cpu":
            _check_targets(logits, target)
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def evaluate(self, predict: Predict, loader: Iterable[tuple[Tensor, Any]]) -> dict[str, float]:
        """Return top1 and top5 in percent, and the mean cross entropy as "loss".

        top5 is left out with five classes or fewer, where it would always be 100.

        Raises:
            DataError: the loader is empty, or a target that the output has no logit for.
        """
        count, loss, top1, top5, classes = 0, 0.0, 0, 0, 0
        for images, target in loader:
            logits = _logits(predict(images)).float()
            _check_targets(logits, target)
            classes = logits.shape[1]
            best = logits.topk(min(5, classes), dim=1).indices
            hits = best == target[:, None]
            top1 += int(hits[:, 0].sum())
            top5 += int(hits.sum())
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
            count += len(target)
        if count == 0:
            raise DataError("There are no images to evaluate on; expected at least one.")
        figures = {"top1": 100 * top1 / count, "loss": loss / count}
        if classes > 5:
            figures["top5"] = 100 * top5 / count
        return figures

    def outputs(self, output: Any) -> dict[str, Tensor]:
        """Return the logits."""
        return {"logits": _logits(output)}

    def agreement(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        """Return the share of images that get the same class."""
        same = a["logits"].argmax(dim=1) == b["logits"].argmax(dim=1)
        return float(same.float().mean())


def _logits(output: Any) -> Tensor:
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else type(logits).__name__
        )
        raise TrainingError(
            f"Classification needs logits of shape (images, classes); the model returned {found}. "
            "Let the model return logits, or write a task of your own: task: file.py:MyTask."
        )
    return logits


def _auxiliary_logits(output: Any) -> list[Tensor]:
    fields = getattr(output, "_fields", ())
    heads = [getattr(output, name) for name in fields if name.startswith("aux_logits")]
    return [head for head in heads if head is not None]


def _check_targets(logits: Tensor, target: Tensor) -> None:
    classes = logits.shape[1]
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise DataError(
            f"The data has class numbers from {int(target.min())} to {int(target.max())}, the "
            f"model has {classes} outputs, for class numbers 0 to {classes - 1}. "
            "Set the model's number of classes to that of the data, or correct the labels."
        )


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² times KL(softmax(teacher/T) || softmax(student/T)), summed over dimension 1.

    Paper: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531: T² keeps the gradient's size independent of T.

    Args:
        student, teacher: logits (n, classes) or maps (n, classes, ...).
        temperature: T, above 0.

    Returns:
        Scalar: the mean over samples, and over places of maps.
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="sum",
        log_target=True,
    )
    places = student.numel() // student.shape[1]
    return divergence * (temperature**2 / places)


def task_distillation_loss(
    task: Task, student_output: Any, teacher_output: Any, temperature: float
) -> Tensor:
    """Return the task's own `distill_loss`, else `distillation_loss`, mean over its outputs."""
    if hasattr(task, "distill_loss"):
        own: Tensor = task.distill_loss(student_output, teacher_output, temperature)
        return own
    students, teachers = task.outputs(student_output), task.outputs(teacher_output)
    losses = [distillation_loss(students[k], teachers[k], temperature) for k in students]
    return torch.stack(losses).mean()


TASKS: dict[str, Callable[[], Task]] = {"classification": Classification}


def load_task(spec: str, base_dir: Path) -> Task:
    """Return a task.

    Args:
        spec: "classification", or "file.py:Class"; the class is made without arguments.
        base_dir: what a relative file is relative to.

    Raises:
        TrainingError: no such task, or its class lacks members of `Task`.
    """
    if spec in TASKS:
        return TASKS[spec]()
    if ".py:" not in spec:
        hint = nearest_name_hint(spec, [*TASKS, "file.py:Class"])
        raise TrainingError(f"task '{spec}' does not exist. {hint}")
    make = import_from_file(spec, base_dir, error=TrainingError)
    try:
        task = make()
    # The user's class may raise anything; it is the user's to mend.
    except Exception as err:
        raise TrainingError(
            f"task {spec} could not be made: {explain(err)}. It must be a class (or function) "
            "that takes no arguments."
        ) from err
    if not isinstance(task, Task):
        members = ("metric", "higher_is_better", "loss", "evaluate", "outputs", "agreement")
        missing = [name for name in members if not hasattr(task, name)]
        raise TrainingError(
            f"task {spec} lacks {', '.join(missing)}; expected {', '.join(members)}. "
            "examples/segmentation has a complete one."
        )
    return task
