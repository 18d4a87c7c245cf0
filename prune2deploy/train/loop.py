"""The training loop: SGD on Lightning Fabric, in place."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.data import DataSource, Loader
from prune2deploy.data.order import seed_from
from prune2deploy.errors import TrainingError
from prune2deploy.methods.base import Step
from prune2deploy.train.best import Best, weights_of
from prune2deploy.train.checkpoint import Checkpoint
from prune2deploy.train.engine import Engine, placed
from prune2deploy.train.evaluation import evaluate, map_tensors
from prune2deploy.train.history import EpochRecord, History
from prune2deploy.train.listening import tell_epoch
from prune2deploy.train.moving_parts import OtherStructureError, put_back, take
from prune2deploy.train.randomness import random_state, seeded, set_random_state
from prune2deploy.train.schedule import learning_rate
from prune2deploy.train.settings import Hooks, TrainSettings
from prune2deploy.train.tasks import Task, task_distillation_loss

logger = logging.getLogger(__name__)

# Reading the loss makes a GPU wait, so there it is looked at only so often.
_STEPS_BETWEEN_CHECKS_ON_GPU = 20


def fit(
    model: nn.Module,
    task: Task,
    data: DataSource,
    settings: TrainSettings,
    *,
    hooks: Hooks | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    label: str = "Training",
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train a model in place; it ends in eval mode, on the device where it was.

    Each step: loss and `hooks.extra_loss`, backward, `hooks.after_backward`, gradient
    clipping, optimizer, `hooks.after_step`, learning rate. With the same seed, threads
    and processor a float32 run on the CPU gives the same weights bit by bit.

    Args:
        model: its train-mode output goes to `task.loss`.
        task: the loss, and the metric for early stopping.
        data: "train" is trained on, "val" is measured after each epoch if there is one.
        settings: see `TrainSettings`.
        hooks: of a pruning method.
        teacher: network to distil from; not changed. Needs `settings.distill`.
        seed: of order, augmentation and dropout.
        on_epoch: called after each epoch.
        label: for the progress bar.
        checkpoint: where the training stands is kept there, and it goes on from what is there:
            `model` and `hooks` must then be what they were when the training began.

    Raises:
        TrainingError: settings that do not fit the data or the task, or a loss that is
            no longer finite; the model then has the last good weights.
    """
    _check(task, data, settings, teacher)
    if settings.label_smoothing:
        task = task.with_label_smoothing(settings.label_smoothing)  # type: ignore[attr-defined]
    engine = Engine(settings)
    model.eval()
    with placed(engine, data.input_shape, model, teacher):
        run = _Run(engine, model, task, data, settings, hooks, teacher, seed)
        run.checkpoint = checkpoint
        if checkpoint is not None:
            run.resume(label)
        return run.train(on_epoch, label)


def _check(
    task: Task, data: DataSource, settings: TrainSettings, teacher: nn.Module | None
) -> None:
    if (settings.distill is None) != (teacher is None):
        raise TrainingError(
            "Distillation needs both its settings and a teacher; only one was given. "
            "Give both, or neither."
        )
    if settings.early_stop_patience is not None and not data.size("val"):
        raise TrainingError(
            "Early stopping needs a val set, and the data has none. Set data.val to a share of "
            "the training images, such as 0.1, or remove early_stop."
        )
    if settings.label_smoothing and not hasattr(task, "with_label_smoothing"):
        raise TrainingError(
            f"Task {type(task).__name__} has no with_label_smoothing, and label_smoothing is "
            f"{settings.label_smoothing:g}. Remove it, or add the method to the task."
        )


class _Run:
    """The state of one run."""

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        task: Task,
        data: DataSource,
        settings: TrainSettings,
        hooks: Hooks | None,
        teacher: nn.Module | None,
        seed: int,
    ) -> None:
        self.engine = engine
        self.model = model
        self.task = task
        self.data = data
        self.settings = settings
        self.hooks = hooks
        self.teacher = teacher
        self.seed = seed
        self.wrapped, self.optimizer = engine.setup(
            model, () if hooks is None else hooks.own_parameters()
        )
        self.epoch_steps = len(self.loader(0))
        self.total_steps = max(1, round(settings.epochs * self.epoch_steps))
        self.warmup_steps = round(settings.warmup_epochs * self.epoch_steps)
        if settings.first_step >= self.total_steps:
            raise TrainingError(
                f"first_step is {settings.first_step}, and the run has {self.total_steps} steps. "
                "Let it begin before its last step, or raise epochs."
            )
        self.step_number = settings.first_step
        self.first_epoch = settings.first_step // self.epoch_steps
        self.good = weights_of(model)
        self.checkpoint: Checkpoint | None = None
        self.history = History(engine.precision)
        self.best = Best(task, settings.early_stop_patience)
        self.partial: dict[str, Any] | None = None
        self.done = False

    def loader(self, epoch: int, skip: int = 0) -> Loader:
        """Return the training batches of an epoch, without the first `skip`."""
        return self.data.loader(
            "train",
            batch_size=self.settings.batch_size,
            shuffle=True,
            augment=True,
            seed=self.seed,
            epoch=epoch,
            skip_batches=skip,
            # A batch norm cannot train on one image per device.
            min_batch=2 * self.engine.ranks,
            shard=(self.engine.rank, self.engine.ranks),
            channels_last=self.engine.channels_last,
        )

    def train(self, on_epoch: Callable[[EpochRecord], None] | None, label: str) -> History:
        """Train all epochs, or those that are left."""
        history, best = self.history, self.best
        if self.done:
            return history
        start = time.perf_counter() - history.seconds
        with progress.task(label, total=self.total_steps - self.step_number) as shown:
            while self.step_number < self.total_steps and not history.stopped_early:
                record = self.train_epoch(self.first_epoch + len(history.epochs), shown)
                history.epochs.append(record)
                history.stopped_early = best.see(record, self.model)
                logger.info("%s: %s", label, _text(record))
                tell_epoch(label, record)
                if on_epoch is not None:
                    on_epoch(record)
                history.seconds = time.perf_counter() - start
                if self.checkpoint is not None and self.checkpoint.due:
                    self.keep()
        if best.weights is not None:
            self.model.load_state_dict(best.weights)
            history.best_epoch = best.epoch
        self.optimizer.zero_grad()
        history.seconds = time.perf_counter() - start
        self.done = True
        if self.checkpoint is not None:
            self.keep()
        return history

    def train_epoch(self, epoch: int, shown: progress.Task) -> EpochRecord:
        """Train one epoch, or what is left of it and of the run, and measure the val set."""
        self.wrapped.train()
        candidate = weights_of(self.model)
        partial, self.partial = self.partial, None
        total_loss = torch.zeros((), device=self.engine.device)
        steps, images_seen = 0, 0
        if partial is not None:
            total_loss += partial["loss"].to(self.engine.device)
            steps, images_seen = partial["steps"], partial["images"]
        checked_at, images_before = steps, images_seen
        every = 1 if self.engine.device.type == "cpu" else _STEPS_BETWEEN_CHECKS_ON_GPU
        last_step = steps + self.total_steps - self.step_number
        start = time.perf_counter()
        with seeded(self.engine.device, seed_from(self.seed, epoch, self.engine.rank)):
            if partial is not None:
                set_random_state(self.engine.device, partial["random"])
            # Only where the run goes on from a step within this epoch.
            done = self.step_number - epoch * self.epoch_steps
            for images, targets in self.loader(epoch, done):
                lr = self.set_learning_rate()
                loss = self.step(images, targets)
                total_loss += loss * len(images)
                steps += 1
                images_seen += len(images)
                if steps - checked_at >= every:
                    self.check_finite(total_loss, epoch, steps, lr)
                    # Its loss is known now, so these weights are good to fall back on.
                    self.good = candidate
                    shown.advance(steps - checked_at, info=f"loss {float(loss):.3f}")
                    checked_at = steps
                if steps == last_step:
                    break
                if self.may_stop_here(steps - checked_at):
                    self.keep({"loss": total_loss, "steps": steps, "images": images_seen})
        if steps == 0:
            raise TrainingError("No training image could be read. Check data.root.")
        lr = float(self.optimizer.param_groups[0]["lr"])
        loss_sum = self.check_finite(total_loss, epoch, steps, lr)
        if self.step_number == self.total_steps:
            # No step follows whose loss would tell.
            self.check_finite(_magnitude(self.model), epoch, steps, lr)
        shown.advance(steps - checked_at)
        everybodys = self.engine.sum_over_ranks(total_loss.new_tensor(images_seen))
        ours = (images_seen - images_before) / images_seen
        rate = everybodys * ours / (time.perf_counter() - start)
        self.engine.share_buffers(self.model)
        return EpochRecord(epoch + 1, steps, loss_sum / everybodys, lr, rate, self.validate())

    def may_stop_here(self, unchecked: int) -> bool:
        """Whether to keep the state within an epoch: not with several processes.

        unchecked: steps whose loss nobody has looked at; weights are kept when they are good.
        """
        here = self.checkpoint is not None and self.engine.ranks == 1 and unchecked == 0
        return here and self.checkpoint is not None and self.checkpoint.due

    def keep(self, partial: dict[str, Any] | None = None) -> None:
        """Write where the training stands. partial: sums over the epoch that is not over."""
        assert self.checkpoint is not None
        if partial is not None:
            partial["random"] = random_state(self.engine.device)
        if self.engine.rank > 0:
            return
        best = self.best
        self.checkpoint.write(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "hooks": None if self.hooks is None else take(self.hooks, self.model),
                "step": self.step_number,
                "history": self.history.as_dict(),
                "best": [best.value, best.epoch, best.weights],
                "partial": partial,
                "done": self.done,
            }
        )

    def resume(self, label: str) -> None:
        """Go on from where the training stood, if that is known."""
        assert self.checkpoint is not None
        state = self.checkpoint.read()
        if state is None:
            return
        try:
            if self.hooks is not None:
                put_back(self.hooks, self.model, state["hooks"])
        except OtherStructureError as err:
            logger.info("%s starts anew; its hooks cannot go on from a state: %s", label, err)
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number, self.partial, self.done = state["step"], state["partial"], state["done"]
        self.history = History.from_dict(state["history"])
        self.best.value, self.best.epoch, self.best.weights = state["best"]
        self.good = weights_of(self.model)
        logger.info("%s goes on after step %d of %d", label, self.step_number, self.total_steps)

    def set_learning_rate(self) -> float:
        """Set and return the rate of the step that comes, and count it."""
        lr = learning_rate(self.step_number, self.total_steps, self.warmup_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.step_number += 1
        return lr

    def step(self, images: Tensor, targets: Any) -> Tensor:
        """Do one step and return its loss, penalties included, without its graph."""
        images = self.engine.to_device(images)
        targets = map_tensors(targets, self.engine.to_device)
        self.optimizer.zero_grad()
        with _small_batch_explained(len(images)):
            loss = self.loss(images, targets)
        self.engine.backward(loss * self.weight(len(images)))
        if self.hooks is not None:
            self.hooks.after_backward()
        if self.settings.grad_clip is not None:
            self.engine.clip_gradients(self.wrapped, self.optimizer, self.settings.grad_clip)
        self.optimizer.step()
        if self.hooks is not None:
            self.hooks.after_step(self.where())
        return loss.detach()

    def weight(self, images: int) -> float:
        """Return what the loss of this process counts in the mean over all of them.

        The last batch of an epoch may not be shared out evenly.
        """
        if self.engine.ranks == 1 or self.step_number % self.epoch_steps:
            return 1.0
        everybodys = self.engine.sum_over_ranks(torch.tensor(images, device=self.engine.device))
        return images * self.engine.ranks / everybodys

    def where(self) -> Step:
        """Return where the training stands, after a step."""
        number, total = self.step_number, self.total_steps
        last = number == total or number % self.epoch_steps == 0
        return Step(float(self.optimizer.param_groups[0]["lr"]), number, total, last)

    def loss(self, images: Tensor, targets: Any) -> Tensor:
        """Return the loss with the teacher's part and the method's penalty."""
        output = self.wrapped(images)
        loss = self.task.loss(output, targets)
        distill = self.settings.distill
        if self.teacher is not None and distill is not None:
            with torch.no_grad(), self.engine.autocast():
                answer = self.teacher(images)
            answer = map_tensors(answer, lambda tensor: tensor.float())
            lesson = task_distillation_loss(self.task, output, answer, distill.temperature)
            loss = (1 - distill.alpha) * loss + distill.alpha * lesson
        if self.hooks is not None:
            loss = self.hooks.whole_loss(loss, images, output)
        penalty = None if self.hooks is None else self.hooks.extra_loss()
        return loss if penalty is None else loss + penalty

    def validate(self) -> dict[str, float] | None:
        """Return the task's figures on the val set, if there is one."""
        if not self.data.size("val"):
            return None
        loader = self.data.loader(
            "val", batch_size=self.settings.batch_size, channels_last=self.engine.channels_last
        )
        return evaluate(
            self.model, self.task, loader, precision=self.engine.precision, label="Validating"
        )

    def check_finite(self, value: Tensor, epoch: int, step: int, lr: float) -> float:
        """Return the sum over all processes; if not finite, stop with the last good weights."""
        total = self.engine.sum_over_ranks(value)
        if math.isfinite(total):
            return total
        self.model.load_state_dict(self.good)
        advice = f"lower lr (try {self.settings.lr / 10:g}), add warmup_epochs or grad_clip"
        if self.engine.precision == "bf16":
            advice += ", or set precision: fp32"
        if self.step_number == 1:
            advice = (
                "check the checkpoint and the data for NaN and inf; if they are clean, " + advice
            )
        raise TrainingError(
            f"The loss is no longer finite in epoch {epoch + 1}, at or shortly before its step "
            f"{step} (learning rate {lr:.3g}). The model has its last good weights again, from "
            f"the start of an epoch. Then: {advice}."
        )


def _magnitude(model: nn.Module) -> Tensor:
    """Return a scalar that is finite if and only if all weights are."""
    with torch.no_grad():
        largest = [p.abs().max() for p in model.parameters() if p.numel()]
        # A mean, because a sum of huge weights may be infinite by itself.
        return (torch.stack(largest) / len(largest)).sum()


@contextmanager
def _small_batch_explained(images: int) -> Iterator[None]:
    try:
        yield
    except ValueError as err:
        if "more than 1 value per channel" not in str(err):
            raise
        raise TrainingError(
            f"A batch norm cannot train on a batch of {images} image(s) of this size. "
            "Raise data.batch_size to at least 2 per device."
        ) from err


def _text(record: EpochRecord) -> str:
    val = "" if record.val is None else f", val {record.val}"
    return (
        f"epoch {record.epoch}, {record.steps} steps, loss {record.loss:.4f}, "
        f"lr {record.lr:.3g}, {record.images_per_s:.0f} images/s{val}"
    )
