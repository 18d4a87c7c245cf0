"""Where the program itself lies, to be started again as a child."""

from __future__ import annotations

import os
import sys

PROGRAM = os.path.abspath(sys.argv[0])
