"""Send the figures of a run to TensorBoard and MLflow, where the recipe asks for it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.recipe import LogSection, Recipe
from prune2deploy.report import Metrics
from prune2deploy.report.html.contents import named
from prune2deploy.train import EpochRecord, epochs_told_to

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

log = logging.getLogger(__name__)


def check_tracking(section: LogSection) -> None:
    """See that what the recipe asks for is installed, before there is any work to lose.

    Raises:
        MissingDependencyError: it is not.
    """
    if section.tensorboard or section.mlflow:
        from prune2deploy.train.loggers import check_packages

        check_packages(tensorboard=section.tensorboard, mlflow=section.mlflow is not None)


class Tracker:
    """Those who keep a run's figures; opened with the first stage that has anything to do.

    What fails in the middle of a run is told once and left: nobody loses a training for it.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self._recipe = recipe
        self._folder = folder
        self._loggers: list[Logger] | None = None

    def open(self) -> None:
        """Open them, unless they are.

        Raises:
            TrainingError: MLflow cannot be reached.
        """
        if self._loggers is not None:
            return
        self._loggers = []
        section = self._recipe.log
        if section.tensorboard:
            from prune2deploy.train.loggers import tensorboard_logger

            self._loggers.append(tensorboard_logger(self._folder.file(files.TENSORBOARD)))
        if section.mlflow is not None:
            self._loggers.append(self._mlflow(section.mlflow))
        settings = _flat(self._recipe.model_dump(mode="json"))
        self._send(lambda logger: logger.log_hyperparams(settings))

    def _mlflow(self, uri: str) -> Logger:
        """A run that was stopped goes on in the same run of MLflow."""
        from prune2deploy.train.loggers import MlflowLogger

        path = self._folder.file(files.TRACKING)
        known = None
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            known = record["run_id"] if record["uri"] == uri else None
        logger = MlflowLogger(uri, self._recipe.name, known)
        record = {"uri": uri, "run_id": logger.run_id}
        self._folder.write(files.TRACKING, json.dumps(record) + "\n")
        return logger

    def epoch(self, label: str, record: EpochRecord) -> None:
        """Send what an epoch gave, under the name of its training."""
        training = re.sub(r"[^\w.-]+", "_", label.lower())
        figures = {"loss": record.loss, "lr": record.lr, "images_per_s": record.images_per_s}
        figures |= {f"val_{name}": value for name, value in (record.val or {}).items()}
        shown = {f"{training}/{name}": value for name, value in figures.items()}
        self._send(lambda logger: logger.log_metrics(shown, step=record.epoch))

    def final(self, metrics: Metrics) -> None:
        """Send the figures of a finished run."""
        self._send(lambda logger: logger.log_metrics(final_figures(metrics), step=0))

    def close(self, status: str) -> None:
        """Say how it ended: success, failed or aborted."""
        self._send(lambda logger: logger.finalize(status))
        self._loggers = None

    def _send(self, what: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers or ()):
            try:
                what(logger)
            except Exception as err:
                assert self._loggers is not None
                self._loggers.remove(logger)
                log.warning(
                    "%s failed (%s: %s); the run goes on, and nothing more is sent there.",
                    type(logger).__name__,
                    type(err).__name__,
                    err,
                )


@contextmanager
def tracking(recipe: Recipe, folder: RunFolder) -> Iterator[Tracker]:
    """Tell a tracker of all epochs in the with-block, and of how it ends."""
    tracker = Tracker(recipe, folder)
    try:
        with epochs_told_to(tracker.epoch):
            yield tracker
    except KeyboardInterrupt:
        tracker.close("aborted")
        raise
    except BaseException:
        tracker.close("failed")
        raise
    tracker.close("success")


def final_figures(metrics: Metrics) -> dict[str, float]:
    """What a run came to, by name."""
    before, after = metrics.before, metrics.after
    found: dict[str, float] = {
        "final/macs_share": after.macs / before.macs,
        "final/params_share": after.params / before.params,
        "final/onnx_bytes": after.onnx_bytes,
        "final/gates_held": float(all(gate.held for gate in metrics.gates)),
    }
    for name, value in after.metrics.items():
        found[f"final/{name}"] = value
        found[f"final/{name}_before"] = before.metrics[name]
    for lower in metrics.precisions:
        kind = lower.precision
        found |= {f"final/{kind}_{name}": value for name, value in lower.metrics.items()}
    for one in metrics.latency:
        device = re.sub(r"[^\w.-]+", "_", one["device"])
        faster = named(one["speedups"], "other", "pruned")
        if faster is not None:
            found[f"final/speedup_{device}"] = faster["ratio"]
        for place, name in enumerate(("original", "pruned")):
            median = one["latencies"][place]["median_ms"]
            if median is not None:
                found[f"final/median_ms_{name}_{device}"] = median
    return found


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}.")
        elif value is not None:
            found[f"{above}{name}"] = value
    return found
