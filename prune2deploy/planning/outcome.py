"""In words: how much of the asked reduction a plan reaches, and what prevents the rest."""

from __future__ import annotations

from collections.abc import Sequence

from prune2deploy.channels import Frozen, Graph
from prune2deploy.channels.groups import IndexTable

_SHOWN = 3
"""Reasons, and layers for each, that are named."""

_EXPECTED = "reaches the model's output"


def reached(
    graph: Graph, kept: Sequence[IndexTable], original: Graph, kind: str, share: object
) -> str:
    """One sentence: the shares of MACs, parameters and channels that a plan keeps.

    kept: indices per group. original: graph of the model that the shares are of.
    kind, share: what the budget asked for.
    """
    counts = graph.full.copy()
    counts[:] = [len(k) for k in kept]
    before = original.full
    found = {
        "macs": graph.cost.macs(counts) / max(original.cost.macs(before), 1),
        "params": graph.cost.params(counts) / max(original.cost.params(before), 1),
        "channels": int(counts.sum()) / max(int(before.sum()), 1),
    }
    names = {"macs": "MACs", "params": "parameters", "channels": "channels that can be cut"}
    asked = f"{share:.1%}" if isinstance(share, float) else "a share per layer"
    parts = [
        f"{found[k]:.1%} of the {name}" + (f" (asked for: {asked})" if k == kind else "")
        for k, name in names.items()
    ]
    return f"Kept: {', '.join(parts)}."


def held_back(frozen: Sequence[Frozen]) -> list[str]:
    """One sentence per reason why channels stay, the one with most channels first.

    The channels of the model's output are left out: nobody expects those to go.
    """
    by_reason: dict[str, list[Frozen]] = {}
    for one in frozen:
        if one.reason != _EXPECTED:
            by_reason.setdefault(one.reason, []).append(one)
    ordered = sorted(by_reason.items(), key=lambda item: -sum(f.size for f in item[1]))
    sentences = []
    for reason, some in ordered[:_SHOWN]:
        layers = list(dict.fromkeys(f.name for f in some))
        named = ", ".join(layers[:_SHOWN]) + (", …" if len(layers) > _SHOWN else "")
        count = sum(f.size for f in some)
        noun = "channel stays" if count == 1 else "channels stay"
        sentences.append(f"{count} {noun} ({named}) because: {reason}.")
    if len(ordered) > _SHOWN:
        rest = sum(f.size for _, some in ordered[_SHOWN:] for f in some)
        sentences.append(
            f"{rest} more stay for {len(ordered) - _SHOWN} other reasons; "
            "'prune2deploy inspect' lists them."
        )
    return sentences
