"""Ray: a cluster of workers, here or elsewhere, to whom orders are given."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from prune2deploy.errors import Prune2DeployError, require
from prune2deploy.recipe import Sweep
from prune2deploy.sweep.work import Order, Outcome, carry_out

_STORE_BYTES = 100 << 20  # orders and outcomes are small


@dataclass(frozen=True)
class Died:
    """A worker came to an end that was not its own. reason: what is known of it."""

    reason: str


class Workers(Protocol):
    """Whoever carries out orders."""

    def give(self, name: str, order: Order) -> None:
        """Have an order carried out as soon as there is room."""

    def wait(self, seconds: float) -> list[tuple[str, Outcome | Died]]:
        """Return what has ended since, after so many seconds at most."""


def require_ray() -> Any:
    """Import Ray.

    Raises:
        MissingDependencyError: it is not installed.
    """
    # Read when Ray starts: it is not to report to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return require("ray", extra="sweep")


@contextmanager
def cluster(sweep: Sweep) -> Iterator[Workers]:
    """Start a cluster on this machine, or connect to the one that the settings name.

    Raises:
        Prune2DeployError: it cannot be reached, or no machine of it is large enough for a task.
    """
    ray = require_ray()
    settings = sweep.settings
    local = settings.address is None
    if ray.is_initialized():
        raise Prune2DeployError(
            "This process is connected to a Ray cluster already. Call ray.shutdown() first: a "
            "sweep starts or connects to one of its own."
        )
    more = {"object_store_memory": _STORE_BYTES, "include_dashboard": False} if local else {}
    try:
        ray.init(
            address="local" if local else settings.address,
            log_to_driver=False,
            logging_level="ERROR",
            **more,
        )
    except (ConnectionError, RuntimeError, ValueError) as err:
        raise Prune2DeployError(
            f"Ray cannot {'start' if local else f'connect to {settings.address}'}: {err}"
        ) from err
    workers = None
    try:
        workers = RayWorkers(ray, sweep)
        yield workers
    finally:
        if workers is not None and not local:
            workers.cancel()
        ray.shutdown()


class RayWorkers:
    """Workers of a Ray cluster."""

    def __init__(self, ray: Any, sweep: Sweep) -> None:
        self._ray = ray
        self._at_work: dict[Any, str] = {}
        wanted = _wanted(sweep, ray.cluster_resources())
        _check_size(wanted, [one["Resources"] for one in ray.nodes() if one["Alive"]])
        # Ray's own retries would hide from the board that a worker died.
        self._task = ray.remote(max_retries=0, **wanted)(_on_a_worker)

    def give(self, name: str, order: Order) -> None:
        self._at_work[self._task.remote(order)] = name

    def wait(self, seconds: float) -> list[tuple[str, Outcome | Died]]:
        if not self._at_work:
            return []
        ended, _ = self._ray.wait(list(self._at_work), timeout=seconds)
        return [(self._at_work.pop(one), self._outcome(one)) for one in ended]

    def cancel(self) -> None:
        """End whatever is still at work."""
        for one in self._at_work:
            self._ray.cancel(one, force=True)

    def _outcome(self, ended: Any) -> Outcome | Died:
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(ended)
        except errors.RayTaskError as err:
            # Not of the work, whose errors are outcomes: for example, no prune2deploy there.
            return Outcome(f"A worker could not begin: {err.cause!r}", str(err))
        except errors.RayError as err:
            return Died(" ".join(str(err).split())[:500])
        return outcome


def _on_a_worker(order: Order) -> Outcome:
    return carry_out(order, socket.gethostname())


def _wanted(sweep: Sweep, resources: Mapping[str, float]) -> dict[str, Any]:
    """What a task asks Ray for."""
    settings = sweep.settings
    gpus = settings.gpus
    if gpus is None:
        gpus = 1 if resources.get("GPU", 0) >= 1 else 0
    wanted: dict[str, Any] = {"num_cpus": sweep.cpus, "num_gpus": gpus}
    if gpus == 0 and resources.get("GPU", 0) > 0:
        # Said here, for Ray's versions differ in what a task that asks for none may see.
        wanted["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    if settings.memory_gb is not None:
        wanted["memory"] = int(settings.memory_gb * 1e9)
    return wanted


def _check_size(wanted: Mapping[str, Any], nodes: list[Mapping[str, float]]) -> None:
    """Ray would wait without end for a machine that can take a task."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    asked_for = {names[key]: value for key, value in wanted.items() if key in names}
    if any(all(node.get(name, 0) >= n for name, n in asked_for.items()) for node in nodes):
        return
    asked = f"cpus: {wanted['num_cpus']:g}, gpus: {wanted['num_gpus']:g}"
    if "memory" in wanted:
        asked += f", memory_gb: {wanted['memory'] / 1e9:g}"
    have = "; ".join(
        f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs, "
        f"{node.get('memory', 0) / 1e9:.1f} GB"
        for node in nodes
    )
    raise Prune2DeployError(
        f"No machine of the cluster is large enough for one task ({asked}); there is: {have}. "
        "Ask for less in the sweep."
    )
