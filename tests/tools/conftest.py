"""The tools are scripts: they find each other when their folder is on Python's path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))
