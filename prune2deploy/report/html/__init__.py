"""report.html of one run, and the page that compares several."""

from prune2deploy.report.html.compare import compare_page
from prune2deploy.report.html.contents import RunContents
from prune2deploy.report.html.page import run_page

__all__ = ["RunContents", "compare_page", "run_page"]
