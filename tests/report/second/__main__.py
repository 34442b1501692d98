"""Scores the report on the second suite: runs that were written without a look at the report.

PYTHONPATH=tests python -m report.second                         every run, seed 0
PYTHONPATH=tests python -m report.second --seeds 0 1 --only bn   a part of the names
PYTHONPATH=tests python -m report.second --keep DIR              keeps the numbers, or reads them from there
"""

from __future__ import annotations

from report.planted.__main__ import main
from report.second.table import FAULTS, HEALTHY

if __name__ == "__main__":
    main(__doc__, [one.case for one in FAULTS], HEALTHY)
