"""The shelf of pruners: each file decides which weights live.

The class in it descends from :class:`Pruner`.
"""

from tasks.calibrate.method import Pruner

__all__ = ["Pruner"]
