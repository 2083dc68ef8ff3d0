"""MLflow's database as a file of SQLite."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

YOUNG = 60.0  # seconds since it was written to


def made(database: Path) -> bool:
    """Whether MLflow can go on with a SQLite file. One whose making was killed has no experiment yet, and gets none: its tables
    are in the way. What was written to within a minute may be in the making."""
    if not database.exists() or not database.stat().st_size:
        return False
    if time.time() - database.stat().st_mtime < YOUNG:
        return True
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as opened:
        try:
            return opened.execute("SELECT 1 FROM experiments").fetchone() is not None
        except sqlite3.Error:  # none of MLflow's, or locked: whatever it is, nothing is to take its place
            return True
