"""What a budget of time brings over a budget of MACs, on this machine.

    python benchmarks/latency_budget.py [MODEL ...] [--threads 1] [--min-time 3]
        [--budgets 0.75 0.5 0.33] [--output latency_budget.json]

For each torchvision model (random weights, L1 scores, 224x224), in parts:

- same MACs: at half the MACs, measured in turns in one session, plain plans with widths as they
  fall and rounded to 8 and 16, Torch-Pruning's own with round_to=8 (where torch-pruning is
  installed), and the widths that the solver chooses by the device's table for as much time as
  leaves half the MACs;
- same time: the time of the plain plan rounded to 8 as a budget, closed loop, and both again in
  one session; what each keeps of the importance;
- budgets: shares of the original's time, closed loop.

Importance is the share of the summed scores that is kept, the same scores for all plans of ours.
What is in the JSON already is not done again: a benchmark that was interrupted goes on, and one
model at a time can be measured. `--table` prints Markdown of what there is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from latency_budget_table import markdown

from prune2deploy.budget import Widths, allowed_counts
from prune2deploy.budget.latency import Counts, keep_under_times, value_of
from prune2deploy.channels import Graph, Plan, cut, trace
from prune2deploy.devices import load_devices
from prune2deploy.errors import Prune2DeployError
from prune2deploy.export import export_model_file
from prune2deploy.latency import ProfileOptions, profile
from prune2deploy.methods import Context
from prune2deploy.planning.plan import make_method, plan
from prune2deploy.planning.sums import summable_scores
from prune2deploy.planning.timed.budget import TimedPlan, fit_into_time, widths_worth_having
from prune2deploy.planning.timed.target import Bench, Goal, open_target

MODELS = (
    "resnet18",
    "mobilenet_v2",
    "resnet50",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "densenet121",
    "regnet_y_400mf",
)
ROUNDINGS = (1, 8, 16)
MACS = 0.5
PLAIN = "MACs, round_to 8"
_HALVINGS = 14


def export(model: torch.nn.Module, path: Path) -> None:
    """As it is deployed."""
    export_model_file(model, path, input_shape=(3, 224, 224))


class Subject:
    """A model with its graph and scores."""

    def __init__(self, name: str, options: ProfileOptions) -> None:
        torch.manual_seed(0)
        self.model = torchvision.models.get_model(name).eval()
        self.image = torch.randn(1, 3, 224, 224)
        self.graph: Graph = trace(self.model, self.image)
        self.scores = summable_scores(Context(self.graph), make_method("l1", {}), None)
        self.options = options

    def figures(self, made: Plan) -> dict[str, float]:
        """What is known of a plan without measuring."""
        return self.of(self.graph.counts(made))

    def of(self, counts: Counts) -> dict[str, float]:
        """The shares of MACs and importance that counts keep."""
        macs = self.graph.cost.macs
        return {
            "macs": macs(counts) / macs(self.graph.full),
            "importance": value_of(self.scores, counts),
        }

    def plain(self, round_to: int) -> Plan:
        """The plan by MACs."""
        return plan(self.graph, "l1", budget={"macs": MACS}, round_to=round_to)

    def fitted(self, goal: Goal) -> TimedPlan:
        """The plan for a time, closed loop."""
        return fit_into_time(
            self.graph,
            self.scores,
            [goal],
            devices=load_devices(),
            options=self.options,
            export=export,
        )

    def measured(self, models: Mapping[str, torch.nn.Module]) -> dict[str, dict[str, float]]:
        """Times as shares of the original's, all in turns in one session."""
        with tempfile.TemporaryDirectory() as folder:
            files = {"original": Path(folder, "original.onnx")}
            export(self.model, files["original"])
            for number, (name, model) in enumerate(models.items()):
                files[name] = Path(folder, f"{number}.onnx")
                export(model, files[name])
            result = profile(files, options=self.options)
        return {
            one.other: {"time": 1 / one.ratio, "low": 1 / one.high, "high": 1 / one.low}
            for one in result.speedups
        }


def widths_of_table(subject: Subject) -> tuple[Plan, float]:
    """The solver's plan for as much time as leaves MACS, and its predicted share of the time."""
    graph = subject.graph
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder, "original.onnx"), load_devices(), subject.options)
        export(subject.model, bench.original)
        target = open_target(graph, Goal("local", speedup=2.0), bench.original, bench)
    widths = [
        Widths(group.name, allowed_counts(some, None))
        for group, some in zip(graph.groups, widths_worth_having(graph, target.step), strict=True)
    ]
    low, high, found = 0.0, 1.0, None
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        try:
            decision, counts = keep_under_times(
                subject.scores, widths, [(target.parts(), share * target.original_us)]
            )
        except Prune2DeployError:
            low = share
            continue
        if subject.of(counts)["macs"] > MACS:
            high = share
        else:
            low, found = share, (decision, counts)
    if found is None:
        raise RuntimeError("no time leaves so few MACs")
    predicted = target.predictor.total_us(found[1]) / target.original_us
    return graph.plan(found[0].kept), predicted


def same_macs(subject: Subject) -> dict[str, Any]:
    """Plans at half the MACs, by what chose their widths."""
    plans = {f"MACs, round_to {one}": subject.plain(one) for one in ROUNDINGS}
    plans["time"], predicted = widths_of_table(subject)
    models = {name: cut(subject.model, made) for name, made in plans.items()}
    found: dict[str, Any] = {name: subject.figures(made) for name, made in plans.items()}
    found["time"]["predicted"] = predicted
    peer: dict[str, Any] = {}
    try:
        from latency_budget_peer import macs_of, pruned_to

        models["Torch-Pruning"] = pruned_to(subject.model, subject.image, MACS, 8)
        peer["macs"] = macs_of(models["Torch-Pruning"], subject.image) / macs_of(
            subject.model, subject.image
        )
    except Exception as err:  # whatever another tool raises is its result
        models.pop("Torch-Pruning", None)
        peer["error"] = f"{type(err).__name__}: {err}"[:200]
    found["Torch-Pruning"] = peer
    for name, times in subject.measured(models).items():
        found[name] |= times
    return found


def told(found: TimedPlan, subject: Subject, seconds: float) -> dict[str, Any]:
    """The figures of a closed loop."""
    attempts = [rounds[0] for rounds in found.attempts]
    return {
        **subject.figures(found.plan),
        "used": [one.used for one in attempts],
        "errors": [one.predicted_ms / one.measured_ms - 1 for one in attempts],
        "chosen": attempts.index(found.chosen[0]),
        "gap": found.gap,
        "seconds": seconds,
    }


def budget(subject: Subject, share: float) -> dict[str, Any]:
    """A share of the original's time."""
    start = time.perf_counter()
    try:
        found = subject.fitted(Goal("local", speedup=1 / share))
    except Prune2DeployError as err:
        return {"error": str(err)}
    return told(found, subject, time.perf_counter() - start)


def same_time(subject: Subject, share: float) -> dict[str, Any]:
    """The plain plan's time as a budget, and both measured beside one another."""
    if share >= 1:
        return {"error": f"the plan by MACs takes {share:.2f} of the original's time"}
    start = time.perf_counter()
    try:
        found = subject.fitted(Goal("local", speedup=1 / share))
    except Prune2DeployError as err:
        return {"error": str(err)}
    seconds = time.perf_counter() - start
    plain = subject.plain(8)
    models = {PLAIN: cut(subject.model, plain), "time": cut(subject.model, found.plan)}
    result: dict[str, Any] = {PLAIN: subject.figures(plain), "time": told(found, subject, seconds)}
    for name, times in subject.measured(models).items():
        result[name] |= times
    return result


def add_parts(one: dict[str, Any], name: str, arguments: argparse.Namespace) -> Any:
    """Measure what is missing of one model, and give back after every part."""
    options = ProfileOptions(threads=arguments.threads, min_time_s=arguments.min_time)
    subject = Subject(name, options)
    if "same_macs" not in one:
        one["same_macs"] = same_macs(subject)
        yield
    if "same_time" not in one:
        one["same_time"] = same_time(subject, one["same_macs"][PLAIN]["time"])
        yield
    for share in arguments.budgets:
        if str(share) not in one.setdefault("budgets", {}):
            one["budgets"][str(share)] = budget(subject, share)
            yield


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", default=[*MODELS])
    parser.add_argument("--budgets", nargs="*", type=float, default=[0.75, 0.5, 0.33])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-time", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=Path("latency_budget.json"))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.output.exists():
        found = json.loads(arguments.output.read_text())
    of_threads = found.setdefault(str(arguments.threads), {})
    for name in [] if arguments.table else arguments.models:
        for _ in add_parts(of_threads.setdefault(name, {}), name, arguments):
            arguments.output.write_text(json.dumps(found, indent=1))
    print(markdown(found))


if __name__ == "__main__":
    main()
