"""What continuous integration wants: gates as JUnit XML, and a summary on the page of the job."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

from prune2deploy.errors import RecipeError
from prune2deploy.report.metrics import Metrics
from prune2deploy.report.tables import gate_findings

JUNIT = "junit.xml"
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
# XML has no way to write these.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(metrics: Metrics) -> str:
    """The gates as test cases: failed ones are failures, devices that were not measured errors."""
    gates, lost = metrics.gates, metrics.latency_failures
    failed = sum(not gate.held for gate in gates)
    counts = {"tests": len(gates) + len(lost), "failures": failed, "errors": len(lost)}
    suite = ElementTree.Element(
        "testsuite",
        name=_plain(metrics.name),
        timestamp=metrics.created,
        time=f"{sum(metrics.seconds.values()):.3f}",
    )
    for name, count in counts.items():
        suite.set(name, str(count))
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="gates", name=_plain(gate.name))
        if not gate.held:
            text = _plain(gate_findings(gate))
            ElementTree.SubElement(case, "failure", message=text).text = text
    for one in lost:
        case = ElementTree.SubElement(
            suite, "testcase", classname="devices", name=_plain(one.device)
        )
        text = _plain(one.message)
        ElementTree.SubElement(case, "error", message=text.splitlines()[0]).text = text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def tell_ci(folder: Path, metrics: Metrics) -> list[str]:
    """Write both, and say where.

    Raises:
        RecipeError: the file that GitHub names cannot be written.
    """
    target = folder / JUNIT
    target.write_text(junit_xml(metrics), encoding="utf-8")
    told = [f"Gates are in {target}"]
    summary = folder / "summary.md"
    page = os.environ.get(SUMMARY_VARIABLE)
    if not page:
        return [
            *told,
            f"No {SUMMARY_VARIABLE} here: the summary is in {folder / 'summary.md'} only",
        ]
    try:
        with Path(page).open("a", encoding="utf-8") as file:
            file.write(summary.read_text(encoding="utf-8") + "\n")
    except OSError as err:
        raise RecipeError(
            f"{SUMMARY_VARIABLE} names {page}, which cannot be written: {err.strerror}. Unset it, "
            "or leave --ci out."
        ) from err
    return [*told, f"The summary was added to {page}"]


def _plain(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text) or "(nothing)"
