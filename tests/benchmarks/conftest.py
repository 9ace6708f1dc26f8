"""The scripts in benchmarks/ import each other by name, as scripts do."""

import sys

from tests.common import ROOT

FOLDER = str(ROOT / "benchmarks")
if FOLDER not in sys.path:
    sys.path.append(FOLDER)
