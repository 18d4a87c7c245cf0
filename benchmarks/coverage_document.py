"""The document that `coverage.py` writes from its JSON. Needs nothing but that."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Entry = dict[str, Any]
"""All that is known of one model; what was not reached is not in it."""

FAMILIES = {
    "torchvision": "torchvision: classification",
    "segmentation": "torchvision: segmentation",
    "detection": "torchvision: detection",
    "timm": "timm",
}
CHECKS = ("runs", "trains", "equal", "onnx")
OUTPUT = "reaches the model's output"
_CODE = re.compile(r"the model's code does not allow it: (\S+:\d+) in ")
_LONGEST = 70

_READING = """\
- **groups**: sets of coupled channels that the planner chooses from.
- **can be cut**: output channels of convolutions and linear layers that are in a group, as a \
share of all of them. What the model returns (1000 classes, say) counts as what cannot be cut.
- **MACs**, **parameters**: what is left of them. MACs include the products inside attention.
- **runs**, **trains**: in eval mode; one step in train mode with finite gradients for every \
parameter that has one in the original.
- **equal**: in eval mode, on two random images, the cut model gives the numbers of the original \
in which all removed entries are zero, in float64, to {tolerance} of the largest number (or of \
the distance between the answers to two images, if that is less). *norm*: \
a normalisation or an average runs over cut channels, where zeros would count, so the reference \
applies it to the kept channels alone. *f32*: the model does not run in float64 or is too large, \
so it was compared in float32, to {float32_tolerance}.
- **ONNX**: exported, and ONNX Runtime agrees with PyTorch; –: not tried, or the original cannot \
be exported either.
- **frozen**: how many channels stay and why. One channel may be many outputs of its layers: a \
whole head, or one place in every head. *output*: they are what the model returns. *code*: the \
model's own code fixes a width at this line; the section on reasons says what is there.

Weights are random. All that a fresh model holds constant (scales and shifts of norms, layer \
scales, zero-initialised branches) was made random too, since a shift of 0 or a scale of 1e-6 \
hides errors; the statistics of batch norms are those of random images, changed at random. Images \
have 128×128 pixels where the model takes them, else the size it was built for. Detectors see one \
image of 320×320; their score thresholds are 0 and few boxes are kept, so that random weights \
return boxes, and what is compared is those boxes, scores, masks and keypoints, not the heads' raw \
outputs.
"""


def write_document(document: dict[str, Any]) -> str:
    """The JSON of `coverage.py` as Markdown."""
    models: list[Entry] = document["models"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    budget = ", ".join(f"{kind} {share}" for kind, share in document["budget"].items())
    parts = [
        "# Coverage: what the channel engine can do with which model",
        f"Written by `{document['command']} --write docs/coverage.md` on {document['date']}; "
        f"do not edit. Python {document['python']}, {versions}. Plan: L1, budget {budget} "
        "(half of each group), `round_to=1`; one process and one thread per model.",
        "## Summary",
        _summary(models),
        "## How to read it",
        _READING.format(**document),
    ]
    for family, title in FAMILIES.items():
        entries = [entry for entry in models if family_of(entry) == family]
        if entries:
            parts += [f"## {title}", _table_of_models(entries)]
    for title, text in (
        ("What does not work", _failures(models)),
        ("Operators without a rule", _operators(models)),
        ("Reasons", _reasons(models)),
    ):
        if text:
            parts += [f"## {title}", text]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def family_of(entry: Entry) -> str:
    """The part of the key before the colon."""
    return str(entry["model"]).split(":")[0]


def outcome(entry: Entry) -> str:
    """One word or a few on how it went: 'right' if nothing is wrong."""
    if "error" in entry:
        return f"{entry['error']['type']} in {entry.get('step', 'start')}"
    if "nothing_to_cut" in entry:
        return "nothing can be cut"
    wrong = [name for name in CHECKS if entry.get(name) is False]
    wrong += ["cost"] if "cost_error" in entry else []
    return f"wrong: {', '.join(wrong)}" if wrong else "right"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 2), "---"], *rows]
    return "\n".join("| " + " | ".join(_cell(x) for x in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _summary(models: list[Entry]) -> str:
    def row(title: str, some: list[Entry]) -> list[str]:
        tried = [entry for entry in some if "onnx" in entry]
        cut = [e for e in some if "error" not in e and "nothing_to_cut" not in e]
        shares = [_share(entry) for entry in some if "channels" in entry]
        counts = [sum(e.get(name) is True for e in some) for name in ("runs", "trains", "equal")]
        return [
            title,
            str(len(some)),
            str(len(cut)),
            *map(str, counts),
            f"{sum(e['onnx'] is True for e in tried)} of {len(tried)}" if tried else "–",
            _percent(statistics.median(shares)) if shares else "–",
            str(sum(outcome(entry) == "right" for entry in some)),
        ]

    families = {f: [e for e in models if family_of(e) == f] for f in FAMILIES}
    rows = [row(title, families[f]) for f, title in FAMILIES.items() if families[f]]
    headings = ("", "models", "cut", "run", "train", "equal", "ONNX", "can be cut, median", "all")
    return _table(headings, [*rows, row("together", models)])


def _table_of_models(entries: list[Entry]) -> str:
    headings = (
        *("model", "groups", "can be cut", "MACs", "parameters"),
        *("runs", "trains", "equal", "ONNX", "frozen, and why"),
    )
    return _table(headings, [_row(entry) for entry in entries])


def _row(entry: Entry) -> list[str]:
    name = f"`{entry['model'].split(':')[1]}`"
    checks = [_yes(entry.get("runs")), _yes(entry.get("trains")), _equal(entry)]
    return [
        name,
        str(entry.get("groups", "–")),
        _percent(_share(entry)) if "channels" in entry else "–",
        *(_percent(entry[k][1] / entry[k][0]) if k in entry else "–" for k in ("macs", "params")),
        *checks,
        _yes(entry.get("onnx")),
        _frozen(entry),
    ]


def _yes(found: bool | None) -> str:
    return "–" if found is None else "yes" if found else "**no**"


def _equal(entry: Entry) -> str:
    if not entry.get("equal"):
        return _yes(entry.get("equal"))
    notes = ["f32"] if entry["compared_in"] == "float32" else []
    if entry["mask_difference"] > entry["difference"] * 100 + 1e-6:
        notes.append("norm")
    return f"yes ({', '.join(notes)})" if notes else "yes"


def _share(entry: Entry) -> float:
    return float(entry["cuttable_channels"] / max(entry["channels"], 1))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _frozen(entry: Entry) -> str:
    if "error" in entry:
        return f"failed in {entry.get('step', 'start')}: {_short(entry['error']['message'])}"
    merged: dict[str, int] = {}
    for one in entry.get("frozen", []):
        short = _short_reason(one["reason"])
        merged[short] = merged.get(short, 0) + one["channels"]
    texts = [f"{count} {why}" for why, count in sorted(merged.items(), key=lambda x: -x[1])]
    if len(texts) > 3:
        texts = [*texts[:3], f"{len(texts) - 3} more reasons"]
    return "; ".join(texts)


def _short_reason(reason: str) -> str:
    if reason == OUTPUT:
        return "output"
    code = _CODE.match(reason)
    return f"code {code[1]}" if code else _short(reason)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _failures(models: list[Entry]) -> str:
    lines = []
    for entry in models:
        if outcome(entry) == "right":
            continue
        problems = [entry[f"{name}_error"] for name in CHECKS if f"{name}_error" in entry]
        problems += [entry["error"]] if "error" in entry else []
        texts = [f"{p['type']}: {' '.join(p['message'].split())[:300]}" for p in problems]
        texts += [entry["cost_error"]] if "cost_error" in entry else []
        if entry.get("equal") is False and "equal_error" not in entry:
            texts.append(f"differs by {min(entry['mask_difference'], entry['difference']):.1e}")
        lines.append(f"- `{entry['model']}`: {outcome(entry)}. {'; '.join(texts)}".rstrip())
    return "\n".join(lines)


def _gathered(models: list[Entry], parts: Callable[[Entry], Iterable[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in models:
        for part in dict.fromkeys(parts(entry)):
            found.setdefault(part, []).append(entry["model"].split(":")[1])
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _names(models: list[str], at_most: int = 6) -> str:
    shown = ", ".join(models[:at_most])
    more = len(models) - at_most
    return f"{shown} and {more} more" if more > 0 else shown


def _operators(models: list[Entry]) -> str:
    found = _gathered(models, lambda entry: entry.get("unknown_ops", {}))
    rows = [(f"`{name}`", str(len(where)), _names(where)) for name, where in found.items()]
    return _table(("operator", "models", "which"), rows) if rows else ""


def _reasons(models: list[Entry]) -> str:
    """Every reason but the output, with the most frequent first."""

    def parts(entry: Entry) -> list[str]:
        return [one["reason"] for one in entry.get("frozen", []) if one["reason"] != OUTPUT]

    channels: dict[str, int] = {}
    for entry in models:
        for one in entry.get("frozen", []):
            channels[one["reason"]] = channels.get(one["reason"], 0) + one["channels"]
    rows = [
        (" ".join(reason.split())[:300], str(channels[reason]), _names(where, 4))
        for reason, where in _gathered(models, parts).items()
    ]
    return _table(("reason", "channels", "models"), rows) if rows else ""
