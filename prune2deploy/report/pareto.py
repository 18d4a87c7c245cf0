"""pareto.svg: what a search tried, and its front."""

from __future__ import annotations

from pathlib import Path

from prune2deploy.report.palette import COLOURS, FROZEN
from prune2deploy.search import SearchRecord, Tried

_WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def write_front(record: SearchRecord, path: Path) -> None:
    """Draw accuracy over cost; the same record gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "prune2deploy", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        searched = [one for one in record.tried if one.start is None]
        for some, label, colour, mark in (
            (searched, "tried", FROZEN, "o"),
            (_started(record, "uniform"), "start: all groups alike", COLOURS[1], "s"),
            (_started(record, "scores"), f"start: by scores ({record.method})", COLOURS[3], "D"),
            ([record.original], "original", "black", "*"),
        ):
            if some:
                x, y = [one.cost for one in some], [one.accuracy for one in some]
                axes.scatter(x, y, s=60 if mark == "*" else 18, c=colour, marker=mark, label=label)
        costs, gains = [p.cost for p in record.front], [p.accuracy for p in record.front]
        axes.plot(costs, gains, color=COLOURS[0], marker=".", label="front", zorder=0)
        for point in record.front:
            axes.annotate(
                str(point.number),
                (point.cost, point.accuracy),
                xytext=(2, 4),
                textcoords="offset points",
                fontsize=6,
            )
        cost = record.cost
        where = f" on {cost.device}" if cost.device else ""
        axes.set_xlabel(f"{_WORDS[cost.name]}{where}, {cost.unit}" if where else cost.unit)
        axes.set_ylabel(f"{record.metric} before training")
        axes.legend(loc="best", fontsize=8)
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, format="svg", metadata={"Date": None})
        temporary.replace(path)


def _started(record: SearchRecord, how: str) -> list[Tried]:
    return [one for one in record.tried if one.start and one.start.startswith(how)]
