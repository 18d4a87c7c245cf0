"""`prune2deploy doctor`: what this machine and this Python can do, and what is missing.

Imports nothing beyond Python's own library, so that it works where packages are missing.
"""

from prune2deploy.doctor.examine import Ability, Diagnosis, examine
from prune2deploy.doctor.machine import Machine
from prune2deploy.doctor.packages import Package
from prune2deploy.probe.cpu_names import FEATURES

__all__ = ["FEATURES", "Ability", "Diagnosis", "Machine", "Package", "examine"]
