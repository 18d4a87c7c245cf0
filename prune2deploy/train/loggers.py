"""TensorBoard and MLflow behind one interface, that of Lightning Fabric's loggers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from prune2deploy.errors import TrainingError, require

EXPERIMENT = "prune2deploy"
_LONGEST_PARAMETER = 500  # what every version of MLflow takes
_PARAMETERS_AT_ONCE = 100


def check_packages(*, tensorboard: bool, mlflow: bool) -> None:
    """See that what is asked for is installed.

    Raises:
        MissingDependencyError: it is not; the message says how to get it.
    """
    if tensorboard:
        require("tensorboard", extra="tensorboard")
    if mlflow:
        require("mlflow", extra="mlflow")


def tensorboard_logger(folder: Path) -> Logger:
    """Writes events to a folder, beside those that are there."""
    check_packages(tensorboard=True, mlflow=False)
    return TensorBoardLogger(folder.parent, name=folder.name, version="", default_hp_metric=False)


class MlflowLogger(Logger):
    """One run of an MLflow server or store.

    Args:
        uri: of the tracking server or store.
        run_name: what the run is called there.
        run_id: of a run to go on with; None: a new one in the experiment 'prune2deploy'.

    Raises:
        TrainingError: the server or store does not answer, or has no such run.
    """

    def __init__(self, uri: str, run_name: str, run_id: str | None = None) -> None:
        check_packages(tensorboard=False, mlflow=True)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self._client = MlflowClient(tracking_uri=uri)
            if run_id is None:
                found = self._client.get_experiment_by_name(EXPERIMENT)
                place = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
                run_id = self._client.create_run(place, run_name=run_name).info.run_id
            else:
                self._client.update_run(run_id, status="RUNNING")
        except MlflowException as err:
            raise TrainingError(
                f"MLflow at {uri} cannot be used: {err}. Check log.mlflow and that the server "
                "runs, or leave it out."
            ) from err
        self.run_id: str = run_id
        self._run_name = run_name

    @property
    def name(self) -> str:
        """What the run is called."""
        return self._run_name

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send figures of one step."""
        for name, value in metrics.items():
            self._client.log_metric(self.run_id, name, value, step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Send settings, a mapping; MLflow lets none be changed, so those that are there stay."""
        from mlflow.entities import Param

        there = self._client.get_run(self.run_id).data.params
        new = [
            Param(name, str(value)[:_LONGEST_PARAMETER])
            for name, value in params.items()
            if name not in there
        ]
        for start in range(0, len(new), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMETERS_AT_ONCE])

    def finalize(self, status: str) -> None:
        """Say how the run ended: success, failed or aborted."""
        known = {"success": "FINISHED", "failed": "FAILED", "aborted": "KILLED"}
        self._client.set_terminated(self.run_id, known[status])
